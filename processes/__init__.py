"""This machine and its processes: devices, seeds, signals; one training on several, many runs at once."""
