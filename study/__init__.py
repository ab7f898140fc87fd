"""Many runs, the notebooks, and what comes of them: tables, figures, answers, the report.

`python -m study` runs every notebook; `from study import figures, tables` are what they show with.
"""

from study.many_runs import ready_run, test_all, train_all
