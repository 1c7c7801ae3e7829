"""KL divergence at every token, from two models' logits."""

import torch
from array_api_compat import torch as xp
from torch import Tensor

from kullback.discrete.kl import differentiable_kl_logits
from kullback.errors import ShapeError, SupportError

__all__ = ["token_kl"]


def token_kl(p_logits: Tensor, q_logits: Tensor, *, mask: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """KL(p || q) of the next-token distributions at every position, in nats: exact over the vocabulary.

    KL(p || q) = sum_v p_v phi(log q_v/p_v), where phi(d) = e^d - 1 - d, p = softmax(p_logits / temperature) and
    q = softmax(q_logits / temperature). Never negative; exactly 0, with gradient exactly 0, for identical logits.

    Args:
        p_logits: Shape (..., V): -inf for a token that cannot come. float16 and bfloat16 are computed in float32.
        q_logits: Shape (..., V).
        mask: Shape (...), true (or not 0) for the positions that count. The rest give 0, with gradient 0, whatever
            their logits.
        temperature: What the logits are divided by, > 0.

    Returns:
        Shape (...), nats per position, float32 or float64; `inf` where q_logits is -inf and p_logits is not, nan where
        a logit is nan or +inf or every one is -inf (which is not checked, so that no device has to wait).

    Raises:
        ShapeError: The shapes do not fit together.
        SupportError: The temperature is not a positive number.

    Example:
        >>> policy, reference = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.001]])
        >>> f"{token_kl(policy, reference).item():.4g}"
        '1.113e-07'
    """
    if p_logits.shape != q_logits.shape or p_logits.ndim == 0 or p_logits.shape[-1] == 0:
        raise ShapeError(
            f"expected p_logits and q_logits of one shape (..., V), got {tuple(p_logits.shape)} and "
            f"{tuple(q_logits.shape)}; the models must share a vocabulary and see the same positions"
        )
    require_temperature(temperature)
    p, q = as_logits(p_logits, q_logits)
    if mask is None:
        return logit_kl(p, q, temperature)
    mask = as_mask(mask, p.shape[:-1])
    # Before and after: 0 * nan is nan in the gradient of the outer `where` alone.
    p, q = (torch.where(mask[..., None], z, 0.0) for z in (p, q))
    return torch.where(mask, logit_kl(p, q, temperature), 0.0)


def logit_kl(p_logits: Tensor, q_logits: Tensor, temperature: float) -> Tensor:
    if temperature != 1:
        p_logits, q_logits = p_logits / temperature, q_logits / temperature
    return differentiable_kl_logits(xp, p_logits, q_logits)


def as_logits(p_logits: Tensor, q_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 where either is, else in float32."""
    dtype = torch.promote_types(torch.promote_types(p_logits.dtype, q_logits.dtype), torch.float32)
    return p_logits.to(dtype), q_logits.to(dtype)


def as_mask(mask: Tensor, shape: torch.Size) -> Tensor:
    if mask.shape != shape:
        raise ShapeError(f"expected a mask with one entry a position, shape {tuple(shape)}, got {tuple(mask.shape)}")
    return mask if mask.dtype == torch.bool else mask != 0


def require_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise SupportError(f"expected a temperature above 0, got {temperature!r}")
