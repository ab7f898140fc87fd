"""A batch, for what is to be minimised on it."""

import pytest
import torch


@pytest.fixture
def batch(blobs):
    return blobs.train.batch(torch.arange(32))
