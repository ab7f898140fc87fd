"""Many runs, the notebooks, and what comes of them: tables, figures, answers, the report.

`python -m study` runs every notebook; `from study import figures, report` are what they draw with.
"""

from study.many_runs import test_all, train_all

__all__ = ["test_all", "train_all"]
