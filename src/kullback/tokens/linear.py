"""KL divergence at every token, from two models' last hidden states, without holding all their logits."""

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from kullback.errors import ShapeError
from kullback.tokens.logits import as_logits, as_mask, logit_kl, require_temperature

__all__ = ["linear_token_kl"]


def linear_token_kl(
    hidden_p: Tensor,
    weight_p: Tensor,
    hidden_q: Tensor,
    weight_q: Tensor,
    *,
    bias_p: Tensor | None = None,
    bias_q: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    chunk: int = 256,
) -> Tensor:
    """KL(p || q) of the next-token distributions at every position, in nats, from hidden states and output heads.

    token_kl(hidden_p @ weight_p.T + bias_p, hidden_q @ weight_q.T + bias_q), a chunk of positions at a time. A chunk's
    logits are dropped once its KL is known and made again for its gradient, so that no more than one chunk's are held.

    Args:
        hidden_p: Shape (..., d): the states that p's head reads, after the final norm.
        weight_p: Shape (V, d): p's output head, in the dtype of `hidden_p`.
        hidden_q: Shape (..., e), the same positions; e may differ from d.
        weight_q: Shape (V, e), over the same vocabulary.
        bias_p: Shape (V,), or none.
        bias_q: Shape (V,), or none.
        mask: Shape (...), true (or not 0) for the positions that count. The rest are not computed: they give 0, with
            gradient 0, whatever their states.
        temperature: What the logits are divided by, > 0.
        chunk: How many positions to hold at once.

    Returns:
        Shape (...), nats per position, float32 or float64; `inf` and nan as in `token_kl`. The products are made in
        the states' dtype, as the models make them; what follows is in float32 at least.

    Raises:
        ShapeError: The shapes do not fit together, or `chunk` is not positive.
        SupportError: The temperature is not a positive number.

    Example:
        >>> hidden, head = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> linear_token_kl(hidden, head, hidden, head)
        tensor([0., 0.])
    """
    _require_shapes(hidden_p, weight_p, bias_p, hidden_q, weight_q, bias_q)
    require_temperature(temperature)
    if chunk < 1:
        raise ShapeError(f"expected a chunk of 1 position or more, got {chunk}")
    shape = hidden_p.shape[:-1]
    rows_p, rows_q = hidden_p.reshape(-1, hidden_p.shape[-1]), hidden_q.reshape(-1, hidden_q.shape[-1])
    kept = None
    if mask is not None:
        kept = as_mask(mask, shape).reshape(-1).nonzero().squeeze(-1)
        rows_p, rows_q = rows_p[kept], rows_q[kept]

    def chunk_kl(rows_p: Tensor, rows_q: Tensor) -> Tensor:
        return logit_kl(*as_logits(linear(rows_p, weight_p, bias_p), linear(rows_q, weight_q, bias_q)), temperature)

    inputs = (hidden_p, weight_p, bias_p, hidden_q, weight_q, bias_q)
    learns = torch.is_grad_enabled() and any(given is not None and given.requires_grad for given in inputs)
    # With nothing kept there is still one chunk, of no rows: its result has a gradient, which is zero.
    pieces = [
        checkpoint(chunk_kl, *rows, use_reentrant=False, preserve_rng_state=False) if learns else chunk_kl(*rows)
        for rows in zip(rows_p.split(chunk), rows_q.split(chunk), strict=True)
    ]
    kl = torch.cat(pieces)
    if kept is not None:
        kl = kl.new_zeros(shape.numel()).index_copy(0, kept, kl)
    return kl.reshape(shape)


def _require_shapes(
    hidden_p: Tensor,
    weight_p: Tensor,
    bias_p: Tensor | None,
    hidden_q: Tensor,
    weight_q: Tensor,
    bias_q: Tensor | None,
) -> None:
    for side, hidden, weight, bias in (("p", hidden_p, weight_p, bias_p), ("q", hidden_q, weight_q, bias_q)):
        if weight.ndim != 2 or hidden.ndim == 0 or hidden.shape[-1] != weight.shape[1]:
            raise ShapeError(
                f"expected hidden_{side} (..., d) and weight_{side} (V, d), got {tuple(hidden.shape)} and "
                f"{tuple(weight.shape)}; a weight has one row for each token, as in torch.nn.Linear"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(f"expected bias_{side} of shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if weight_p.shape[0] != weight_q.shape[0] or weight_p.shape[0] == 0:
        raise ShapeError(
            f"expected one vocabulary, got weight_p with {weight_p.shape[0]} tokens and weight_q with "
            f"{weight_q.shape[0]}; pad or cut the heads to the tokens that both models share"
        )
    if hidden_p.shape[:-1] != hidden_q.shape[:-1]:
        raise ShapeError(
            "expected hidden_p and hidden_q at the same positions, got leading shapes "
            f"{tuple(hidden_p.shape[:-1])} and {tuple(hidden_q.shape[:-1])}"
        )
