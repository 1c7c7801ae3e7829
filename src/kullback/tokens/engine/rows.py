"""Statistics of two next-token distributions from chunks of logits: the sums, and the gradients in place of the logits.

With p = softmax(z_p), q = softmax(z_q), d = log q - log p, m = (p + q)/2 and phi(d) = e^d - 1 - d, the sums over a
vocabulary, or over a part of it, are

    0 sum p                      4 sum |q - p|                7 sum m g(d), the Jensen-Shannon divergence
    1 sum p phi(d)               5 sum p (z_p - max z_p)      8 sum p log(p/m)
    2 sum q - p                  6 sum q (z_q - max z_q)      9 sum q log(q/m)
    3 sum q phi(-d)

where g(d) = u tanh(u) - log cosh(u) with u = d/2. The gradients are

    p (c_0 + c_1 d + c_3 log(m/p) + c_4 (z_p - max z_p)) + c_2 (q - p)  with respect to z_p, and
    q (c_0 + c_1 d + c_3 log(q/m) + c_4 (z_q - max z_q)) + c_2 (q - p)  with respect to z_q,

each multiplied by c_5 - c_6 z^2, the derivative of a scaled and capped logit.
"""

from typing import Any

from torch import Tensor

from kullback.numerics.array_types import Float
from kullback.tokens.engine import compiled_rows, torch_rows

__all__ = ["gradients", "normalizers", "sums"]


def _implementation(*logits: Tensor) -> Any:
    """The fastest module that accepts these logits."""
    if compiled_rows.applies(*logits):
        return compiled_rows
    if logits[0].is_cuda:
        try:  # the import takes time that is only spent for a GPU
            from kullback.tokens.engine import triton_rows
        except ImportError:  # Triton is not installed
            return torch_rows
        if triton_rows.applies(*logits):
            return triton_rows
    return torch_rows


def normalizers(
    z: Float[Tensor, "rows vocab"], added: Float[Tensor, "rows vocab"] | None = None
) -> Float[Tensor, "rows 3"]:
    """max z, log sum exp(z - max z) and the index of max z of each row, in float64; z is the sum of both arguments."""
    return _implementation(z).normalizers(z, added)


def sums(
    p: Float[Tensor, "rows vocab"],
    q: Float[Tensor, "rows vocab"],
    given: Float[Tensor, "rows 4"],
    *,
    middles: bool,
    difference: bool = False,
) -> Float[Tensor, "rows 10"]:
    """The sums of each pair of rows, in float64; the sums 7 to 9 are 0 without `middles`.

    Args:
        p: The logits of p, float32 or float64.
        q: The logits of q.
        given: max z_p, log Z_p, max z_q and log Z_q of each row, where Z is the sum of exp(z) over the whole vocabulary
            and the maxima are over this part.
        middles: Whether the sums with m are computed, which takes half of the time.
        difference: Whether `q` is z_q - z_p, which has more digits than the difference of two rounded logits.
    """
    return _implementation(p, q).sums(p, q, given, middles=middles, difference=difference)


def gradients(
    p: Float[Tensor, "rows vocab"],
    q: Float[Tensor, "rows vocab"],
    given: Float[Tensor, "rows 4"],
    of_p: Float[Tensor, "rows 7"] | None,
    of_q: Float[Tensor, "rows 7"] | None,
    *,
    difference: bool = False,
) -> None:
    """Overwrite the logits with their gradients, unless the coefficients of a side are None.

    With `difference`, `q` is z_q - z_p, and is overwritten with the gradient with respect to z_q.
    """
    _implementation(p, q).gradients(p, q, given, of_p, of_q, difference=difference)
