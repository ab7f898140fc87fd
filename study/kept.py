"""What is kept of a study for readers."""

import json
import shutil
from pathlib import Path

from storage.atomic_files import read_json, replacing, write_json
from study.report import write_page


def keep(study, target):
    """Copy what a reader wants of a study to `target`: scores, figures (PNG) and provenance, but no weights."""
    study, target = Path(study), Path(target)
    if not (study / "scores.csv").exists():
        write_page(study)
    environments = {}
    for path in sorted(study.glob("*/*/environment.json")):
        values = read_json(path)
        environments.setdefault(json.dumps({k: v for k, v in values.items() if k != "started"}), []).append(values)
    same = [group[0] | {"runs": len(group)} for group in environments.values()]
    command = (study / "command.txt").read_text().splitlines()
    write_json(target / "provenance.json", {"commands": command, "environments": same})
    for path in (study / "scores.csv", *sorted(study.glob("*/figures/[!.]*.png"))):
        with replacing(target / path.relative_to(study)) as partial:
            shutil.copyfile(path, partial)
