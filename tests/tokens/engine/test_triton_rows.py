"""The Triton kernels agree with PyTorch's operations in float64, run by Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has wheels for Linux alone")


@pytest.mark.slow
def test_the_kernels_agree_with_float64() -> None:
    # The interpreter is chosen when the kernels are defined.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    script = Path(__file__).with_name("triton_cases.py")
    completed = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert completed.stdout == "equal\n", completed.stderr
