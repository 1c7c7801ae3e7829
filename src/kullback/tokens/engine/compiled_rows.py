"""The sums over rows of logits and their gradients by the C++ kernels; see `rows` for the equations."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from kullback.compiled import kernels
from kullback.numerics.array_types import Float

__all__ = ["applies", "gradients", "normalizers", "sums"]

_ENTRIES_PER_THREAD = 2**18  # logits for which an additional thread pays off


def applies(*logits: Tensor) -> bool:
    """Whether the kernels accept these logits: contiguous, in float32 or float64, on a CPU."""
    return kernels is not None and all(
        type(z) is Tensor and z.device.type == "cpu" and z.dtype in (torch.float32, torch.float64) and z.is_contiguous()
        for z in logits
    )


def normalizers(z: Float[Tensor, "rows vocab"], added: Float[Tensor, "rows vocab"] | None) -> Float[Tensor, "rows 3"]:
    """max z, log sum exp(z - max z) and the index of max z of each row."""
    result = torch.empty(len(z), 3, dtype=torch.float64)
    assert kernels is not None
    _in_threads(kernels.token_normalizers, z.shape[1], z, added, result)
    return result


def sums(
    p: Float[Tensor, "rows vocab"],
    q: Float[Tensor, "rows vocab"],
    given: Float[Tensor, "rows 4"],
    *,
    middles: bool,
    difference: bool,
) -> Float[Tensor, "rows 10"]:
    """The sums of each pair of rows."""
    result = torch.empty(len(p), 10, dtype=torch.float64)
    compiled = kernels
    assert compiled is not None
    _in_threads(
        lambda p, q, given, out: compiled.token_sums(p, q, given, middles, difference, out),
        p.shape[1],
        p,
        q,
        given,
        result,
    )
    return result


def gradients(
    p: Float[Tensor, "rows vocab"],
    q: Float[Tensor, "rows vocab"],
    given: Float[Tensor, "rows 4"],
    of_p: Float[Tensor, "rows 7"] | None,
    of_q: Float[Tensor, "rows 7"] | None,
    *,
    difference: bool,
) -> None:
    """Overwrite the logits with their gradients, unless the coefficients of a side are None."""
    compiled = kernels
    assert compiled is not None

    def kernel(p: Any, q: Any, given: Any, of_p: Any, of_q: Any) -> None:
        compiled.token_gradients(p, q, given, difference, of_p, of_q)

    _in_threads(kernel, p.shape[1], p, q, given, of_p, of_q)


def _in_threads(kernel: Callable[..., Any], columns: int, *tensors: Tensor | None) -> None:
    """Call the kernel with slices of the rows of the tensors, one slice a thread; the kernels release the GIL."""
    arrays = [None if tensor is None else tensor.detach().contiguous().numpy() for tensor in tensors]
    rows = len(arrays[0]) if arrays[0] is not None else 0
    if not rows:
        return
    threads = max(1, min(torch.get_num_threads(), rows, rows * columns // _ENTRIES_PER_THREAD))

    def part(k: int) -> None:
        kept = slice(rows * k // threads, rows * (k + 1) // threads)
        kernel(*(None if array is None else array[kept] for array in arrays))

    if threads == 1:
        part(0)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, range(threads)))
