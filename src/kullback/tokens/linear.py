"""KL divergence between next-token distributions from hidden states, without storing the logits of all positions."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from kullback.errors import ShapeError
from kullback.numerics.array_types import Float, Shaped
from kullback.tokens.logits import as_logits, as_mask, logit_kl, require_temperature, require_tensors

__all__ = ["head_token_kl", "linear_token_kl"]


def linear_token_kl(
    hidden_p: Float[Tensor, "*batch d"],
    weight_p: Float[Tensor, "vocab d"],
    hidden_q: Float[Tensor, "*batch e"],
    weight_q: Float[Tensor, "vocab e"],
    *,
    bias_p: Float[Tensor, " vocab"] | None = None,
    bias_q: Float[Tensor, " vocab"] | None = None,
    mask: Shaped[Tensor, "*batch"] | None = None,
    temperature: float = 1.0,
    chunk: int = 256,
) -> Float[Tensor, "*batch"]:
    """KL(p || q) of the next-token distributions at every position, from hidden states and output heads.

        KL = token_kl(hidden_p @ weight_p.T + bias_p, hidden_q @ weight_q.T + bias_q)

    The logits are computed for one chunk of positions at a time and recomputed for the gradient, so that the logits of
    at most one chunk are in memory.

    Args:
        hidden_p: Shape (..., d): the inputs of p's output head, after the final normalisation.
        weight_p: Shape (V, d): p's output head, in the dtype of `hidden_p`.
        hidden_q: Shape (..., e): the inputs of q's output head at the same positions; e may differ from d.
        weight_q: Shape (V, e): q's output head over the same vocabulary, in the dtype of `hidden_q`.
        bias_p: Shape (V,): the bias of p's output head; None for no bias.
        bias_q: Shape (V,): the bias of q's output head; None for no bias.
        mask: Shape (...), true (or nonzero) for the positions that count. Other positions are not computed; their
            result and gradient are 0. None: all positions count.
        temperature: The divisor of the logits, > 0.
        chunk: The number of positions per chunk, >= 1.

    Returns:
        Shape (...), nats per position, float32 or float64. `inf` where a logit of q is -inf for a token and the logit
        of p is not; nan where a logit is nan or +inf. The matrix products use the dtype of the hidden states, as the
        models do; the following computation uses float32 or float64.

    Raises:
        ArrayTypeError: A hidden state or a weight is not a tensor.
        ShapeError: The shapes do not match, or `chunk` is less than 1.
        SupportError: The temperature is not a positive finite number.

    Example:
        >>> hidden, head = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> linear_token_kl(hidden, head, hidden, head)
        tensor([0., 0.])
    """
    require_tensors(hidden_p=hidden_p, weight_p=weight_p, hidden_q=hidden_q, weight_q=weight_q)
    _require_shapes(hidden_p, weight_p, bias_p, hidden_q, weight_q, bias_q)

    def chunk_kl(rows_p: Float[Tensor, "rows d"], rows_q: Float[Tensor, "rows e"]) -> Float[Tensor, " rows"]:
        return logit_kl(*as_logits(linear(rows_p, weight_p, bias_p), linear(rows_q, weight_q, bias_q)), temperature)

    inputs = (hidden_p, weight_p, bias_p, hidden_q, weight_q, bias_q)
    needs_gradient = torch.is_grad_enabled() and any(given is not None and given.requires_grad for given in inputs)
    return _chunked(chunk_kl, hidden_p, hidden_q, mask, temperature, chunk, needs_gradient=needs_gradient)


def head_token_kl(
    hidden_p: Float[Tensor, "*batch d"],
    head_p: Callable[[Tensor], Tensor],
    hidden_q: Float[Tensor, "*batch e"],
    head_q: Callable[[Tensor], Tensor],
    *,
    mask: Shaped[Tensor, "*batch"] | None = None,
    temperature: float = 1.0,
    chunk: int = 256,
) -> Float[Tensor, "*batch"]:
    """KL(p || q) of the next-token distributions at every position, for output heads that are any functions.

        KL = token_kl(head_p(hidden_p), head_q(hidden_q))

    The heads are called for one chunk of positions at a time, and again for the gradient, so that the logits of at most
    one chunk are in memory. `linear_token_kl` is the faster function for linear heads.

    Args:
        hidden_p: Shape (..., d): the inputs of p's output head.
        head_p: The output head of p, a function from shape (n, d) to logits of shape (n, V). It must act on each
            position alone. Parameters that it uses receive gradients.
        hidden_q: Shape (..., e): the inputs of q's output head at the same positions; e may differ from d.
        head_q: The output head of q over the same vocabulary.
        mask: Shape (...), true (or nonzero) for the positions that count. Other positions are not computed; their
            result and gradient are 0. None: all positions count.
        temperature: The divisor of the logits, > 0.
        chunk: The number of positions per chunk, >= 1.

    Returns:
        Shape (...), nats per position, float32 or float64. `inf` where a logit of q is -inf for a token and the logit
        of p is not; nan where a logit is nan or +inf.

    Raises:
        ShapeError: The shapes do not match, or `chunk` is less than 1.
        SupportError: The temperature is not a positive finite number.

    Example:
        >>> hidden, head = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> head_token_kl(hidden, lambda h: torch.tanh(h @ head.T), hidden, lambda h: torch.tanh(h @ head.T))
        tensor([0., 0.])
    """
    _require_positions(hidden_p, hidden_q)

    def chunk_kl(rows_p: Float[Tensor, "rows d"], rows_q: Float[Tensor, "rows e"]) -> Float[Tensor, " rows"]:
        if not len(rows_p):
            return rows_p.sum(dim=-1, dtype=torch.promote_types(rows_p.dtype, torch.float32))
        logits_p, logits_q = head_p(rows_p), head_q(rows_q)
        if logits_p.shape != logits_q.shape:
            raise ShapeError(
                f"expected one vocabulary, got logits of shapes {tuple(logits_p.shape)} and {tuple(logits_q.shape)}"
            )
        return logit_kl(*as_logits(logits_p, logits_q), temperature)

    return _chunked(chunk_kl, hidden_p, hidden_q, mask, temperature, chunk, needs_gradient=torch.is_grad_enabled())


def _chunked(
    chunk_kl: Callable[[Tensor, Tensor], Tensor],
    hidden_p: Float[Tensor, "*batch d"],
    hidden_q: Float[Tensor, "*batch e"],
    mask: Shaped[Tensor, "*batch"] | None,
    temperature: float,
    chunk: int,
    *,
    needs_gradient: bool,
) -> Float[Tensor, "*batch"]:
    """The KL at the positions that count, by a function of one chunk of hidden states, recomputed for the gradient."""
    require_temperature(temperature)
    if chunk < 1:
        raise ShapeError(f"expected a chunk of at least 1 position, got {chunk}")
    shape = hidden_p.shape[:-1]
    rows_p, rows_q = hidden_p.reshape(-1, hidden_p.shape[-1]), hidden_q.reshape(-1, hidden_q.shape[-1])
    kept = None
    if mask is not None:
        kept = as_mask(mask, shape).reshape(-1).nonzero().squeeze(-1)
        rows_p, rows_q = rows_p[kept], rows_q[kept]
    # If the mask is false everywhere, there is one empty chunk, so that the result is differentiable with gradient 0.
    pieces = [
        checkpoint(chunk_kl, *rows, use_reentrant=False, preserve_rng_state=False)
        if needs_gradient
        else chunk_kl(*rows)
        for rows in zip(rows_p.split(chunk), rows_q.split(chunk), strict=True)
    ]
    kl = torch.cat(pieces)
    if kept is not None:
        kl = kl.new_zeros(shape.numel()).index_copy(0, kept, kl)
    return kl.reshape(shape)


def _require_shapes(
    hidden_p: Float[Tensor, "*batch d"],
    weight_p: Float[Tensor, "vocab d"],
    bias_p: Float[Tensor, " vocab"] | None,
    hidden_q: Float[Tensor, "*batch e"],
    weight_q: Float[Tensor, "vocab e"],
    bias_q: Float[Tensor, " vocab"] | None,
) -> None:
    """Raises ShapeError unless hidden states, weights and biases match."""
    for side, hidden, weight, bias in (("p", hidden_p, weight_p, bias_p), ("q", hidden_q, weight_q, bias_q)):
        if weight.ndim != 2 or hidden.ndim == 0 or hidden.shape[-1] != weight.shape[1]:
            raise ShapeError(
                f"expected hidden_{side} (..., d) and weight_{side} (V, d), got {tuple(hidden.shape)} and "
                f"{tuple(weight.shape)}; a weight has one row per token, as in torch.nn.Linear"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(f"expected bias_{side} of shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if weight_p.shape[0] != weight_q.shape[0] or weight_p.shape[0] == 0:
        raise ShapeError(
            f"expected one vocabulary, got weight_p with {weight_p.shape[0]} tokens and weight_q with "
            f"{weight_q.shape[0]}; pad or truncate the heads to the tokens that both models share"
        )
    _require_positions(hidden_p, hidden_q)


def _require_positions(hidden_p: Float[Tensor, "*batch d"], hidden_q: Float[Tensor, "*batch e"]) -> None:
    """Raises ShapeError unless the hidden states have the same positions."""
    if hidden_p.shape[:-1] != hidden_q.shape[:-1]:
        raise ShapeError(
            "expected hidden_p and hidden_q at the same positions, got leading shapes "
            f"{tuple(hidden_p.shape[:-1])} and {tuple(hidden_q.shape[:-1])}"
        )
