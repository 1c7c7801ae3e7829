"""The implementations of the statistics of rows of logits, behind one dispatch.

`normalizers`, `sums` and `gradients` are the three operations on a chunk of logits. `compiled_rows` implements them by
the C++ kernels, for float32 and float64 on a CPU; `triton_rows` by Triton kernels, for float32 on a GPU; `torch_rows`
by PyTorch's operations, for every device and dtype. `torch_rows` in float64 is the reference of the tests.
"""

from kullback.tokens.engine.rows import gradients, normalizers, sums

__all__ = ["gradients", "normalizers", "sums"]
