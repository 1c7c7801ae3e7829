"""The check of which KL divergence a penalty's gradient descends."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kullback.doctor.finding import Finding
from kullback.errors import ArrayTypeError, ShapeError, SupportError
from kullback.numerics.arguments import shown
from kullback.tokens.logits import require_tensors

__all__ = ["Penalty", "check_penalty_gradient"]

Penalty = Callable[[Tensor, Tensor], Tensor]

_MAX_RESIDUAL = 1e-4  # share of the squared gradient; rounding in float32 leaves 1e-12


class _Fit(NamedTuple):
    """The least-squares fit of a gradient by a multiple of one of the forms.

    Args:
        form: The name of the form.
        residual: The share of the squared gradient that remains.
        factor: The multiple.
    """

    form: str
    residual: float
    factor: float

    @property
    def evidence(self) -> dict[str, object]:
        return {"form of the gradient": self.form, "residual": self.residual, "factor": self.factor}


def check_penalty_gradient(penalty: Penalty, log_prob: Tensor, mask: Tensor | None = None) -> list[Finding]:
    """Check that the KL term of a loss descends KL(policy || reference).

    With L = log policy(x) - log reference(x) at a token x sampled from the policy, the gradient with respect to
    log policy(x) is L (or L + 1: the constant has mean 0) where the term descends KL(policy || reference), and
    1 - e^-L where it descends KL(reference || policy). The gradient is evaluated at random values of L, so the
    check does not require a policy that differs from its reference.

    Criterion: a multiple of one of the known forms, with a separate factor in each row, leaves less than 1e-4 of the
    squared gradient, and this form is L or L + 1 with a positive factor.

    Args:
        penalty: The KL term as it is added to the loss: called with (log_prob, ref_log_prob), both of shape
            (batch, time) in nats, it returns one number or one for each token. Only log_prob has a gradient.
        log_prob: Log-probabilities of the policy at which the gradient is taken, shape (batch, time).
        mask: True for the tokens that count, shape (batch, time); None: all.

    Returns:
        `kl-without-gradient` (error) if the gradient is 0 or does not depend on L,
        `logged-kl-differs-from-trained` (error) for the form 1 - e^-L,
        `kl-direction` (error) for the form e^L - 1 or L + L^2/2,
        `kl-sign` (error) for a negative factor,
        `kl-gradient-unknown` (warning) for another gradient, such as nan or inf; or nothing.

    Raises:
        ArrayTypeError: `penalty` is not a function, or `log_prob` or the term is not a tensor of floats.
        SupportError: A log-probability of a token that counts is not finite.
        ShapeError: The term has neither one value nor one for each token.

    Example:
        >>> k3 = lambda log_prob, ref: (ref - log_prob).exp() - 1 - (ref - log_prob)
        >>> check_penalty_gradient(k3, torch.full((2, 8), -1.0))[0].name
        'logged-kl-differs-from-trained'
        >>> check_penalty_gradient(lambda log_prob, ref: (log_prob - ref) ** 2 / 2, torch.full((2, 8), -1.0))
        []
    """
    if not callable(penalty):
        raise ArrayTypeError(f"expected penalty to be a function of (log_prob, ref_log_prob), got {shown(penalty)}")
    require_tensors(log_prob=log_prob)
    if not log_prob.is_floating_point():
        raise ArrayTypeError(f"expected log_prob to be a tensor of floats, got {log_prob.dtype}; pass log_prob.float()")
    counted = torch.ones(log_prob.shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
    if not log_prob.detach().cpu()[counted].isfinite().all():
        raise SupportError("expected finite log_prob wherever mask is True, got nan or inf")
    generator = torch.Generator().manual_seed(0)
    log_ratio = torch.randn(log_prob.shape, generator=generator, dtype=torch.float64)
    gradient = _gradient(penalty, log_prob, log_ratio, counted)
    invalid = int((~gradient[counted].isfinite()).sum())
    if invalid:
        cause = "the gradient of the KL term is nan or inf where policy and reference differ by about 1 nat"
        remedy = "compare the term with kullback.KLPenalty, whose gradients are tested"
        evidence = {"tokens with nan or inf": invalid, "of": int(counted.sum())}
        return [Finding("kl-gradient-unknown", "warning", cause, remedy, evidence)]
    if not gradient[counted].any():
        cause = "the KL term has no gradient: its value is logged, but it does not train the policy"
        remedy = "do not detach log_prob, and check that beta is not 0; or add the KL to the reward instead"
        return [Finding("kl-without-gradient", "error", cause, remedy, {"largest gradient": 0.0})]
    forms = {
        "reverse": log_ratio,
        "reverse, with a constant": log_ratio + 1,
        "forward": -torch.expm1(-log_ratio),
        "constant": torch.ones_like(log_ratio),
        "inverted ratio": torch.expm1(log_ratio),
        "k2 weighted": log_ratio + log_ratio**2 / 2,
    }
    fit = min((_fit(gradient, name, form, counted) for name, form in forms.items()), key=lambda fit: fit.residual)
    if fit.residual > _MAX_RESIDUAL:
        cause = "the gradient of the KL term is not the gradient of a known KL: the term may be clamped or clipped"
        remedy = "compare the term with kullback.KLPenalty, whose gradients are tested"
        return [Finding("kl-gradient-unknown", "warning", cause, remedy, fit.evidence)]
    if fit.factor < 0:
        cause = "the KL term has the wrong sign: descending the loss moves the policy away from its reference"
        remedy = "add beta * KL to a loss, or subtract it from a reward"
        return [Finding("kl-sign", "error", cause, remedy, fit.evidence)]
    if fit.form == "forward":
        cause = (
            "the logged KL differs from the trained KL: k3 estimates KL(policy || reference), but as a loss on samples "
            "of the policy its gradient descends KL(reference || policy)"
        )
        remedy = (
            "set use_bias_correction_kl=True in TRL; elsewhere use k2, importance-weighted k3 or the exact KL in the "
            "loss: see docs/penalty.md"
        )
        return [Finding("logged-kl-differs-from-trained", "error", cause, remedy, fit.evidence)]
    if fit.form == "constant":
        cause = "k1 = log policy/ref is differentiated as a loss: its expected gradient is 0, so it only adds noise"
        remedy = "use k2 or the exact KL in the loss, or add k1 to the reward"
        return [Finding("kl-without-gradient", "error", cause, remedy, fit.evidence)]
    if fit.form == "inverted ratio":
        cause = (
            "the probability ratio is inverted: phi(log policy/ref) estimates a KL on samples of the reference, not "
            "on samples of the policy"
        )
        remedy = "phi(log ref/policy) is k3 of KL(policy || reference) on samples of the policy: see docs/penalty.md"
        return [Finding("kl-direction", "error", cause, remedy, fit.evidence)]
    if fit.form == "k2 weighted":
        cause = "k2 is weighted by policy/old policy: the weighted term does not have the gradient of a KL"
        remedy = "weight k1 or k3 instead, or do not weight k2"
        return [Finding("kl-direction", "error", cause, remedy, fit.evidence)]
    return []


def _gradient(penalty: Penalty, log_prob: Tensor, log_ratio: Tensor, counted: Tensor) -> Tensor:
    """The gradient of the summed penalty with respect to log_prob, in float64 on the CPU; 0 where there is none."""
    variable = log_prob.detach().clone().requires_grad_()
    value = penalty(variable, variable.detach() - log_ratio.to(variable))
    if not isinstance(value, Tensor) or value.is_complex():
        raise ArrayTypeError(
            f"expected penalty to return a tensor of real numbers, got {_described(value)}; return the KL term that is "
            "added to the loss"
        )
    if value.ndim and value.shape != counted.shape:
        raise ShapeError(
            f"expected penalty to return one number, or one for each token, shape {tuple(counted.shape)}, got shape "
            f"{tuple(value.shape)}; return the KL term before its mean, or its mean over all tokens"
        )
    if not value.requires_grad:
        return torch.zeros_like(log_ratio)
    total = value if value.ndim == 0 else value[counted.to(value.device)].sum()
    [gradient] = torch.autograd.grad(total, variable, allow_unused=True)
    return torch.zeros_like(log_ratio) if gradient is None else gradient.detach().double().cpu()


def _described(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else shown(value)


def _fit(gradient: Tensor, name: str, form: Tensor, mask: Tensor) -> _Fit:
    """Fit a gradient by a form with one factor for each row, because a loss may average within each sequence.

    A row with fewer than 3 tokens that count is ignored, because one factor fits it too easily. If all rows are that
    short, they share one factor.
    """
    gradient, form = (torch.where(mask, values, 0.0) for values in (gradient, form))
    long = mask.sum(-1) >= 3
    if not long.any():
        gradient, form, long = gradient.reshape(1, -1), form.reshape(1, -1), torch.ones(1, dtype=torch.bool)
    gradient, form = gradient[long], form[long]
    factors = (gradient * form).sum(-1) / (form**2).sum(-1)
    residual = ((gradient - factors[:, None] * form) ** 2).sum() / (gradient**2).sum().clamp(min=1e-300)
    return _Fit(name, float(residual), float(factors.mean()))
