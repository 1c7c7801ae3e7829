"""Losses of distillation: divergences between the next-token distributions of a teacher and a student."""

from dataclasses import dataclass
from math import log
from typing import Any, Literal, TypeAlias, get_args

import kullback.tokens  # noqa: F401  first: raises MissingDependencyError where PyTorch is not installed

# isort: split
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from kullback.errors import PenaltyError, ShapeError
from kullback.numerics.arguments import is_name, is_number, shown
from kullback.numerics.array_types import Float, Int, Shaped
from kullback.numerics.records import EqualByValue
from kullback.policy.aggregation import Aggregate, aggregate_tokens, token_mask
from kullback.tokens.linear import linear_token_kl, require_heads, require_positive, require_settings
from kullback.tokens.logits import as_logits, require_tensors, token_kl
from kullback.tokens.stats import token_stats

__all__ = [
    "DISTILLATION_DIVERGENCES",
    "WEIGHTED_DIVERGENCES",
    "DistillationLoss",
    "distillation_loss",
    "logit_divergence",
]

DistillationDivergence: TypeAlias = Literal[
    "forward", "reverse", "js", "skew_forward", "skew_reverse", "generalized_js"
]
DISTILLATION_DIVERGENCES: tuple[str, ...] = get_args(DistillationDivergence)

# The divergences that the engine computes with their gradient in one pass: the statistic for p = teacher, q = student.
_STATISTICS = {"forward": "kl", "reverse": "reverse_kl", "js": "js"}

# The others have a weight of the mixture.
WEIGHTED_DIVERGENCES: tuple[str, ...] = tuple(name for name in DISTILLATION_DIVERGENCES if name not in _STATISTICS)


@dataclass(frozen=True, eq=False)
class DistillationLoss(EqualByValue):
    """The loss of a batch of tokens, and what it is made of.

    Args:
        loss: A scalar to minimise, in nats.
        divergence: The divergence at every position in nats, 0 where masked; without gradient.
        student_entropy: The entropy of the student at every position in nats, 0 where masked; without gradient.
        tokens: The number of tokens that count.
    """

    loss: Float[Tensor, ""]
    divergence: Float[Tensor, "batch time"]
    student_entropy: Float[Tensor, "batch time"]
    tokens: Int[Tensor, ""]


def logit_divergence(
    teacher_logits: Float[Tensor, "*batch vocab"],
    student_logits: Float[Tensor, "*batch vocab"],
    name: DistillationDivergence = "forward",
    *,
    weight: float | None = None,
) -> Float[Tensor, "*batch"]:
    """A divergence between the next-token distributions of a teacher t and a student s at every position.

        forward          KL(t || s)
        reverse          KL(s || t)
        js               (KL(t || m) + KL(s || m))/2           with m = (t + s)/2
        skew_forward     KL(t || m)                            with m = w t + (1 - w) s
        skew_reverse     KL(s || m)                            with m = w s + (1 - w) t
        generalized_js   w KL(t || m) + (1 - w) KL(s || m)     with m = w t + (1 - w) s

    Args:
        teacher_logits: Shape (..., V); -inf for a token of probability 0.
        student_logits: Shape (..., V), differentiable.
        name: One of the names above.
        weight: w, between 0 and 1, for "skew_forward", "skew_reverse" and "generalized_js"; None is 1/2. The others
            have no weight.

    Returns:
        Shape (...), nats per position, >= 0, float32 or float64. `inf` for "forward" where the student excludes a token
        of the teacher, and for "reverse" where the teacher excludes a token of the student.

    Raises:
        PenaltyError: The name is unknown, the weight is not between 0 and 1, or a divergence without a weight got one.
        ShapeError: The shapes differ.

    References:
        Agarwal et al. (2024), "On-Policy Distillation of Language Models", equation 1, for "generalized_js"
        [agarwal2024].
        Ko et al. (2024), "DistiLLM", equations 3 and 4, for the skew divergences [ko2024].

    Example:
        >>> teacher, student = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> [round(logit_divergence(teacher, student, name).item(), 4) for name in ("forward", "reverse", "js")]
        [0.1201, 0.1109, 0.0285]
    """
    weight = _weight_of(name, weight)
    if name in _STATISTICS:
        return getattr(token_stats(teacher_logits, student_logits), _STATISTICS[name])
    log_t, log_s = (logits.log_softmax(-1) for logits in as_logits(teacher_logits, student_logits))

    def to_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
        """KL(p || share p + (1 - share) q)."""
        return token_kl(log_p, torch.logaddexp(log_p + log(share), log_q + log(1 - share)))

    if name == "skew_forward":
        return to_mixture(log_t, log_s, weight)
    if name == "skew_reverse":
        return to_mixture(log_s, log_t, weight)
    return weight * to_mixture(log_t, log_s, weight) + (1 - weight) * to_mixture(log_s, log_t, 1 - weight)


def distillation_loss(
    teacher_hidden: Float[Tensor, "batch time d"],
    teacher_weight: Float[Tensor, "vocab d"],
    student_hidden: Float[Tensor, "batch time e"],
    student_weight: Float[Tensor, "vocab e"],
    *,
    divergence: DistillationDivergence = "forward",
    weight: float | None = None,
    mask: Shaped[Tensor, "batch time"] | None = None,
    aggregate: Aggregate = "token_mean",
    normalizer: float | Tensor | None = None,
    teacher_bias: Float[Tensor, " vocab"] | None = None,
    student_bias: Float[Tensor, " vocab"] | None = None,
    temperature: float = 1.0,
    teacher_softcap: float | None = None,
    student_softcap: float | None = None,
    teacher_logit_scale: float = 1.0,
    student_logit_scale: float = 1.0,
    group: Any = None,
    chunk: int = 256,
) -> DistillationLoss:
    """The mean divergence between teacher and student, from hidden states, without the logits of all positions.

        loss = aggregate over tokens of logit_divergence(teacher logits, student logits, divergence)

    "forward", "reverse" and "js" compute their gradient with the logits of the forward pass, because the weight of each
    token is known: three or four matrix products. The other divergences compute the logits twice.

    Args:
        teacher_hidden: Shape (batch, time, d): the inputs of the teacher's output head; not differentiated.
        teacher_weight: Shape (V, d): the teacher's output head; its width may differ from the width of the student.
        student_hidden: Shape (batch, time, e): the inputs of the student's output head at the same positions.
        student_weight: Shape (V, e): the student's output head over the same vocabulary.
        divergence: A name of `logit_divergence`. "reverse" on completions of the student is on-policy distillation.
        weight: w of `logit_divergence`; None is 1/2. "forward", "reverse" and "js" have no weight.
        mask: Shape (batch, time), true (or nonzero) for the tokens that count. None: all tokens count.
        aggregate: How tokens are averaged: "token_mean", "sequence_mean" or "sequence_sum"; see `aggregate_tokens`.
        normalizer: Replaces the denominator of the average, such as the number of tokens of the whole batch.
        teacher_bias: Shape (V,): the bias of the teacher's head.
        student_bias: Shape (V,): the bias of the student's head.
        temperature: The divisor of the logits of both, > 0. The gradient is not multiplied by its square.
        teacher_softcap: The bound of the teacher's capped logits; None for no cap.
        student_softcap: The bound of the student's capped logits; None for no cap.
        teacher_logit_scale: The factor of the teacher's logits before the cap.
        student_logit_scale: The factor of the student's logits before the cap.
        group: The process group of a head in shards; see `linear_token_kl`. For "forward", "reverse" and "js" only.
        chunk: The number of positions whose logits are computed at a time, >= 1.

    Returns:
        The loss and its parts; see `DistillationLoss`.

    Raises:
        PenaltyError: The divergence or the aggregation is unknown, the weight is not between 0 and 1, or a weight or a
            group is given for a divergence that has none.
        ArrayTypeError: A hidden state, a weight or a bias is not a tensor.
        ShapeError: The shapes do not match.
        SupportError: The temperature, a cap or a scale is not a positive finite number.

    Example:
        >>> hidden, head = torch.eye(2)[None], torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> result = distillation_loss(hidden, head, 2 * hidden, head, divergence="reverse")
        >>> round(result.loss.item(), 4), result.tokens.item()
        (0.04, 2)
    """
    weight = _weight_of(divergence, weight)
    temperature, chunk = require_settings(temperature, chunk)
    given = {"teacher_hidden": teacher_hidden, "teacher_weight": teacher_weight}
    given |= {"student_hidden": student_hidden, "student_weight": student_weight}
    biases = {"teacher_bias": teacher_bias, "student_bias": student_bias}
    require_tensors(**given, **{name: bias for name, bias in biases.items() if bias is not None})
    if student_hidden.ndim != 3 or not student_hidden.shape[-1]:
        raise ShapeError(f"expected student_hidden of shape (batch, time, e), got {tuple(student_hidden.shape)}")
    teacher_logit_scale = require_positive("teacher_logit_scale", teacher_logit_scale)
    student_logit_scale = require_positive("student_logit_scale", student_logit_scale)
    teacher_softcap = None if teacher_softcap is None else require_positive("teacher_softcap", teacher_softcap)
    student_softcap = None if student_softcap is None else require_positive("student_softcap", student_softcap)
    counted = token_mask(student_hidden[..., 0], mask)
    heads = (
        _Head(teacher_weight.detach(), _detached(teacher_bias), teacher_logit_scale, teacher_softcap),
        _Head(student_weight, student_bias, student_logit_scale, student_softcap),
    )
    if divergence in _STATISTICS:
        # The derivative of the loss with respect to the divergence of each token.
        probe = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device, requires_grad=True)
        with torch.enable_grad():
            weights = torch.autograd.grad(aggregate_tokens(probe, counted, aggregate, normalizer=normalizer), probe)[0]
        stats = linear_token_kl(
            teacher_hidden.detach(),
            heads[0].weight,
            student_hidden,
            heads[1].weight,
            token_weights={_STATISTICS[divergence]: weights},
            bias_p=heads[0].bias,
            bias_q=heads[1].bias,
            temperature=temperature,
            softcap_p=heads[0].softcap,
            softcap_q=heads[1].softcap,
            logit_scale_p=heads[0].scale,
            logit_scale_q=heads[1].scale,
            mask=counted,
            group=group,
            chunk=chunk,
        )
        values, entropy = getattr(stats, _STATISTICS[divergence]), stats.entropy_q
    elif group is not None:
        raise PenaltyError(f"expected forward, reverse or js for heads in shards, got divergence={divergence!r}")
    else:
        require_heads(teacher_hidden, teacher_weight, teacher_bias, student_hidden, student_weight, student_bias)
        hidden = teacher_hidden.detach(), student_hidden
        values, entropy = _chunked_divergence(hidden, heads, counted, divergence, weight, temperature, chunk)
    loss = aggregate_tokens(values, counted, aggregate, normalizer=normalizer)
    return DistillationLoss(loss, values.detach(), entropy.detach(), counted.sum())


@dataclass(frozen=True)
class _Head:
    """A linear output head, and what is done to its logits."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    def logits(self, hidden: Tensor, temperature: float) -> Tensor:
        logits = linear(hidden, self.weight, self.bias) * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits / temperature


def _chunked_divergence(
    hidden: tuple[Tensor, Tensor],
    heads: tuple[_Head, _Head],
    counted: Tensor,
    divergence: DistillationDivergence,
    weight: float,
    temperature: float,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """The divergence and the student's entropy at every position; the logits of a chunk are computed twice."""
    kept = counted.reshape(-1).nonzero().squeeze(-1)
    rows = [states.flatten(0, -2)[kept] for states in hidden]

    def part(rows_t: Tensor, rows_s: Tensor) -> tuple[Tensor, Tensor]:
        teacher, student = heads[0].logits(rows_t, temperature), heads[1].logits(rows_s, temperature)
        teacher, student = as_logits(teacher, student)
        log_s = student.detach().log_softmax(-1)
        entropy = -torch.where(log_s > -torch.inf, log_s.exp() * log_s, 0.0).sum(-1)
        return logit_divergence(teacher, student, divergence, weight=weight), entropy

    pieces = [
        checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False)
        for piece in zip(*(states.split(chunk) for states in rows), strict=True)
    ]
    return tuple(  # pyright: ignore[reportReturnType]
        values.new_zeros(counted.numel()).index_copy(0, kept, values).reshape(counted.shape)
        for values in (torch.cat(column) for column in zip(*pieces, strict=True))
    )


def _detached(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _weight_of(name: str, weight: float | None) -> float:
    """The weight, 1/2 for None; PenaltyError for an unknown divergence, or a weight that it does not have."""
    if not is_name(name, DISTILLATION_DIVERGENCES):
        raise PenaltyError(f"expected a divergence out of {', '.join(DISTILLATION_DIVERGENCES)}, got {shown(name)}")
    if weight is None:
        return 0.5
    if not (is_number(weight) and 0 < weight < 1):
        raise PenaltyError(f"expected a weight between 0 and 1, got {shown(weight)}")
    if name not in WEIGHTED_DIVERGENCES:
        raise PenaltyError(f"expected no weight, because the divergence {name!r} has none, got weight={weight}")
    return float(weight)
