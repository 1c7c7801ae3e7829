"""Bounds of the KL of next-token distributions where one side is known for its most probable tokens alone."""

import math
from dataclasses import dataclass

import torch
from array_api_compat import torch as torch_namespace
from torch import Tensor

from kullback.discrete.kl import differentiable_kl_logits
from kullback.errors import ArrayTypeError, NotNormalizedError, ShapeError
from kullback.numerics.array_types import Float, Int
from kullback.tokens.logits import can_be_checked, require_tensors

__all__ = ["TopKTokenKL", "bounds_of_events", "topk_token_kl"]


@dataclass(frozen=True, eq=False)
class TopKTokenKL:
    """Bounds of KL(p || q) and KL(q || p) at every position, in nats, from the k most probable tokens of p.

    Args:
        kl: A lower bound of KL(p || q): the KL after all tokens outside the top k are merged into one event.
        reverse_kl: A lower bound of KL(q || p), by the same event.
        missing_mass: The probability under p of the tokens outside the top k, up to the rounding of the inputs.
        kl_upper: An upper bound of KL(p || q); `inf` where q excludes a token outside the top k that p may not exclude.

    Example:
        >>> bounds = topk_token_kl(torch.tensor([0.75]).log(), torch.tensor([0]), torch.tensor([1.0, 0.0, 0.0]))
        >>> f"{bounds.kl.item():.3f} <= KL <= {bounds.kl_upper.item():.3f}, {bounds.missing_mass.item():.2f} missing"
        '0.066 <= KL <= 0.239, 0.25 missing'
    """

    kl: Float[Tensor, "..."]
    reverse_kl: Float[Tensor, "..."]
    missing_mass: Float[Tensor, "..."]
    kl_upper: Float[Tensor, "..."]


def topk_token_kl(
    p_topk_log_probs: Float[Tensor, "*batch k"],
    p_topk_ids: Int[Tensor, "*batch k"],
    q_logits: Float[Tensor, "*batch vocab"],
) -> TopKTokenKL:
    """Bounds of KL(p || q) and KL(q || p) from the k largest log-probabilities of p and the logits of q.

        kl = sum_{v in top k} p_v log(p_v/q_v) + P log(P/Q) <= KL(p || q), where P and Q are the probabilities of all
        other tokens, by the data-processing inequality;
        KL(p || q) <= kl + P (log(min(p_k, P)/P) + log(Q/min_v q_v)), with the minimum of q over the other tokens,
        because each of them has at most the probability p_k of the last of the top k.

    `kl` and `reverse_kl` are differentiable with respect to `q_logits`, for distillation from the top k of a teacher.

    Args:
        p_topk_log_probs: Shape (..., k): log p of the k most probable tokens, normalised over the vocabulary; -inf for
            a token of probability 0.
        p_topk_ids: Shape (..., k): their token ids, without repetition.
        q_logits: Shape (..., V), V >= k; -inf for a token of probability 0.

    The mass outside of the top k is known up to the rounding of the log-probabilities, 1e-7 to 1e-6 in float32, and is
    at most p_k for each token. The bounds hold for each mass within these limits.

    Returns:
        The bounds, each of shape (...), in nats, float32 or float64. `kl` is `inf` where q excludes a token that p does
        not; `reverse_kl` is `inf` where p excludes a token that q does not, which p_k = 0 shows.

    Raises:
        ArrayTypeError: An argument is not a tensor, or the ids are not integers.
        ShapeError: The shapes do not match, or an id is repeated or outside the vocabulary.
        NotNormalizedError: The probabilities of the top k sum to more than 1, or to less than 1 by more than the other
            tokens can have, each of which has at most p_k.

    Example:
        >>> log_probs, ids = torch.tensor([[0.5, 0.3]]).log(), torch.tensor([[2, 0]])
        >>> bounds = topk_token_kl(log_probs, ids, torch.zeros(1, 4))
        >>> f"{bounds.kl.item():.4f} <= KL <= {bounds.kl_upper.item():.4f}, {bounds.missing_mass.item():.2f} missing"
        '0.2180 <= KL <= 0.3566, 0.20 missing'
    """
    require_tensors(p_topk_log_probs=p_topk_log_probs, p_topk_ids=p_topk_ids, q_logits=q_logits)
    if p_topk_ids.is_floating_point() or p_topk_ids.is_complex() or p_topk_ids.dtype == torch.bool:
        raise ArrayTypeError(f"expected p_topk_ids of integers, got {p_topk_ids.dtype}")
    shapes = p_topk_log_probs.shape, p_topk_ids.shape, q_logits.shape
    if shapes[0] != shapes[1] or shapes[0][:-1] != shapes[2][:-1] or not 0 < shapes[0][-1] <= shapes[2][-1]:
        raise ShapeError(
            "expected p_topk_log_probs and p_topk_ids of shape (..., k) and q_logits (..., V) with k <= V, got "
            + ", ".join(str(tuple(shape)) for shape in shapes)
        )
    dtype = torch.promote_types(torch.promote_types(p_topk_log_probs.dtype, q_logits.dtype), torch.float32)
    log_p, q, ids = p_topk_log_probs.to(dtype), q_logits.to(dtype), p_topk_ids.long()
    # A relative error e of log p is a relative error |log p| e of p.
    rounding = torch.finfo(p_topk_log_probs.dtype).eps
    entropy = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(-1)
    resolution = rounding * (2 + entropy)
    if can_be_checked(q) and can_be_checked(log_p):
        least = log_p.amin(-1)
        _check(log_p, ids, q.shape[-1], resolution - rounding * torch.where(least > -torch.inf, least, 0.0))
    return bounds_of_events(log_p, ids, q, resolution=resolution, are_largest=True)


def bounds_of_events(
    log_p: Tensor, ids: Tensor, q: Tensor, *, resolution: Tensor | float, are_largest: bool
) -> TopKTokenKL:
    """The bounds of `topk_token_kl` for probabilities whose sum is known up to an error.

    All bounds hold for each probability of the other tokens within the error, and for at most p_k for each of them.

    Args:
        log_p: Shape (..., k): log-probabilities of tokens, float32 or float64.
        ids: Shape (..., k): their token ids.
        q: Shape (..., V): logits.
        resolution: The largest error of the sum of the probabilities, a number or of shape (...).
        are_largest: Whether the tokens are the k most probable; otherwise `kl_upper` is not valid.

    Returns:
        The bounds, each of shape (...), in nats.
    """
    log_z = q.logsumexp(-1)
    log_q = q.gather(-1, ids) - log_z[..., None]
    number, least_p = q.shape[-1] - ids.shape[-1], log_p.amin(-1)
    if number:
        # The sum of the other tokens, because one minus the sum of the top k would cancel.
        rest_q = q.scatter(-1, ids, -torch.inf).logsumexp(-1) - log_z
        least_q = q.scatter(-1, ids, torch.inf).amin(-1) - log_z
        # A sum above 1 by rounding leaves no mass.
        missing = -log_p.logsumexp(-1).clamp(max=0).expm1() + 0.0  # not -0.0
        lowest, highest = (missing - resolution).clamp(min=0), missing + resolution
        if are_largest:
            # Not 0 where the probability underflows: a token with a small probability is possible.
            smallest = torch.where(least_p > -torch.inf, torch.finfo(log_p.dtype).tiny, 0.0)
            limit = torch.maximum(number * least_p.exp(), smallest)
            lowest, missing, highest = (torch.minimum(mass, limit) for mass in (lowest, missing, highest))
    else:
        rest_q = torch.full_like(log_z, -torch.inf)
        least_q = missing = lowest = highest = torch.zeros_like(log_z)
    with torch.no_grad():  # P log(P/Q) has its minimum at P = Q/e
        nearest = torch.minimum(torch.maximum(rest_q.exp() / math.e, lowest), highest)
        # The sum of p log(p/q) over the other tokens is at most a convex function of P, whose maximum is at an end.
        largest = torch.maximum(
            *(_products(mass, torch.minimum(least_p, mass.log()), least_q) for mass in (lowest, highest))
        )
        excess = (largest - _products(nearest, nearest.log(), rest_q)).clamp(min=0)
    q_events = torch.cat([log_q, rest_q[..., None]], -1)
    kl, reverse_kl = (
        differentiable_kl_logits(torch_namespace, *pair)
        for pair in (
            (torch.cat([log_p, nearest.log()[..., None]], -1), q_events),
            (q_events, torch.cat([log_p, highest.log()[..., None]], -1)),
        )
    )
    # An infinite KL needs no excess, which is then inf - inf.
    upper = torch.where(kl.detach() == torch.inf, torch.inf, kl.detach() + excess)
    return TopKTokenKL(kl=kl, reverse_kl=reverse_kl, missing_mass=missing, kl_upper=upper)


def _products(mass: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """mass (log p - log q), which is 0 where the mass is 0."""
    return torch.where(mass > 0, mass * (log_p - log_q), 0.0)


def _check(log_p: Tensor, ids: Tensor, vocabulary: int, errors: Tensor) -> None:
    """Raises unless the ids are different tokens whose probabilities can be the largest of a distribution.

    `errors` are the rounding errors of the largest sum that all tokens can have, of shape (...).
    """
    if not ids.numel():
        return
    ordered = ids.sort(dim=-1).values
    if int(ordered.min()) < 0 or int(ordered.max()) >= vocabulary:
        raise ShapeError(f"expected ids from 0 to {vocabulary - 1}, got {int(ordered.min())} to {int(ordered.max())}")
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise ShapeError("expected k different ids at each position, got a repeated id")
    tolerance = 1e-9 if log_p.dtype == torch.float64 else 1e-5 * log_p.shape[-1] ** 0.5
    masses = log_p.exp().sum(-1)
    if not bool((mass := masses.max()) <= 1 + tolerance):
        raise NotNormalizedError(
            f"expected log-probabilities whose probabilities sum to at most 1, got a sum of {float(mass):.6g}; "
            "normalise them over the whole vocabulary"
        )
    least_p, others = log_p.amin(-1).exp(), vocabulary - ids.shape[-1]
    shortfall = 1 - masses - others * least_p - errors
    if bool(shortfall.max() > tolerance):
        worst = int(shortfall.argmax())
        raise NotNormalizedError(
            f"expected the {ids.shape[-1]} largest probabilities of a distribution over {vocabulary} tokens, got a sum "
            f"of {float(masses.flatten()[worst]):.6g}, which {others} others of at most "
            f"{float(least_p.flatten()[worst]):.6g} do not complete to 1; pass the most probable tokens, with "
            "log-probabilities that are normalised over the whole vocabulary"
        )
