"""What is written beside a run, for those who judge or repeat it."""

import os
import re

import torch

from processes import machine


def test_what_made_a_number():
    there = machine.environment(torch.device("cpu"))
    assert there["torch"] == torch.__version__
    assert there["threads"] == torch.get_num_threads()
    assert (there["cores"], there["processes"], there["cuda"]) == (os.cpu_count(), 1, None)
    assert there["device"]
    assert there["commit"] is None or re.fullmatch(r"[0-9a-f]{10,}\+?", there["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", there["started"])
