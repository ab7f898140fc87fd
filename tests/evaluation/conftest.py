"""Scores whose numbers are known."""

import pytest
import torch

from evaluation.finding import CLEAN, Finding
from evaluation.scores import Scores


@pytest.fixture
def scores():
    clean, one, other = (
        torch.tensor([int(bit) for bit in bits], dtype=torch.bool) for bits in ("11110", "11000", "10100")
    )
    found = [Finding("catastrophic overfitting", "invalid", 62.0, 30.0, "planted", ("FGSM",))]
    attacks = {"FGSM": "FGSM(ε=8/255)", "PGD-10": "PGD(ε=8/255)"}
    return Scores("blobs test", {CLEAN: clean, "FGSM": one, "PGD-10": other}, attacks, {"FGSM": 0.5}, found)
