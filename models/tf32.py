"""TF32 or full float32: how convolutions and products of matrices are computed on CUDA."""

from contextlib import contextmanager

import torch


def tf32_allowed():
    """May convolutions of float32 on CUDA be rounded to TF32 now?"""
    return _allowed(torch.backends.cudnn)


def _allowed(library):
    try:
        return library.allow_tf32
    except RuntimeError:  # somebody has set it by its newer name, and torch refuses to tell by the older one
        return getattr(library, "conv", library).fp32_precision == "tf32"


@contextmanager
def rounding(*, tf32, tries=False):
    """How float32 is computed on CUDA inside, whatever the caller has set.

    With `tf32` convolutions and products of matrices may round what goes in to 10 bits of mantissa, several times
    as fast. With `tries` cuDNN tries its algorithms for each new shape, which takes seconds in float32 and pays
    where a shape comes back for long.
    """
    if not torch.cuda.is_initialized():  # it concerns nobody
        yield
        return
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    before, tried = [_allowed(library) for library in libraries], torch.backends.cudnn.benchmark
    try:
        for library in libraries:
            library.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = tries
        yield
    finally:
        for library, allowed in zip(libraries, before, strict=True):
            library.allow_tf32 = allowed
        torch.backends.cudnn.benchmark = tried
