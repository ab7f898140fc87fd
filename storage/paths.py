"""Where things lie: this repository, its runs and its data, which STUDY_RUNS and STUDY_DATA move elsewhere."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def runs_root():
    """Where all runs lie. A relative STUDY_RUNS counts from the repository, not from where a kernel runs."""
    return (ROOT / os.environ.get("STUDY_RUNS", "runs")).resolve()


def data_root():
    """Where all data lie; STUDY_DATA as STUDY_RUNS."""
    return (ROOT / os.environ.get("STUDY_DATA", "data")).resolve()
