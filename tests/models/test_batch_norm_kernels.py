"""The kernels without a GPU: by Triton's interpreter, and compiled for GPUs that are not here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
ROWS = {"rows": "i32", "channels": "i32", "per": "i32"}
BFLOAT16, FLOAT32 = "*bf16", "*fp32"
KERNELS = {
    "_spread": {"x": BFLOAT16, "found": FLOAT32} | ROWS,
    "_settle": dict.fromkeys(("found", "moments", "mean", "var"), FLOAT32)
    | {"tracked": "*i64", "parts": "i32", "rows": "i32", "channels": "i32", "momentum": "fp32", "eps": "fp32"},
    "_ahead": dict.fromkeys(("x", "add", "out"), BFLOAT16)
    | dict.fromkeys(("moments", "weight", "bias"), FLOAT32)
    | ROWS,
    "_slopes": dict.fromkeys(("x", "out", "gradient"), BFLOAT16) | {"found": FLOAT32, "moments": FLOAT32} | ROWS,
    "_back": dict.fromkeys(("x", "out", "gradient", "for_x", "for_add"), BFLOAT16)
    | dict.fromkeys(("sums", "moments", "weight"), FLOAT32)
    | ROWS,
}


def test_they_do_what_torch_does():
    here = Path(__file__).parent
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", here / "interpreted_kernels.py"]
    settings = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=settings, cwd=here.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", KERNELS)
def test_they_compile_for_gpus(name, capability):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models import batch_norm_kernels

    kernel = getattr(batch_norm_kernels, name)
    constants = {"R": 64, "C": 64} | ({"ADDS": True} if "ADDS" in kernel.arg_names else {})
    signature = KERNELS[name] | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"]) > 1000
