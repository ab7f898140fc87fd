"""Speed, memory, faults and verdicts, measured against the peers in one run; results/ keeps what was found."""
