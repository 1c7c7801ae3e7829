"""Which KL a penalty trains, by its slope, and which KL a logged number is."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kullback.doctor.finding import Finding
from kullback.errors import ShapeError
from kullback.numerics.phi import phi

__all__ = ["Penalty", "check_kl_value", "check_penalty_gradient"]

Penalty = Callable[[Tensor, Tensor], Tensor]

_FIT = 1e-4  # of a slope's square that a form may leave; rounding in float32 leaves 1e-12


def check_penalty_gradient(penalty: Penalty, log_prob: Tensor, mask: Tensor | None = None) -> list[Finding]:
    """Whether a loss's KL term descends the KL that its value is: of which form in L = log policy/ref its slope is.

    On the policy's own samples KL(policy || ref) has the slope L (up to a constant, whose mean is 0), and
    KL(ref || policy) has 1 - e^-L. The slope is taken at made-up ratios, so that it works before the policy has moved.

    Args:
        penalty: Called with (log_prob, ref_log_prob), both (batch, time), the first with its gradient: the KL term as
            it is added to the loss, one number or one for each token.
        log_prob: Log-probabilities to try it at.
        mask: True for the tokens that count.

    Example:
        >>> k3 = lambda log_prob, ref: (ref - log_prob).exp() - 1 - (ref - log_prob)
        >>> check_penalty_gradient(k3, torch.full((2, 8), -1.0))[0].name
        'logged-is-not-trained'
        >>> check_penalty_gradient(lambda log_prob, ref: (log_prob - ref) ** 2 / 2, torch.full((2, 8), -1.0))
        []
    """
    counted = torch.ones(log_prob.shape, dtype=torch.bool) if mask is None else mask.bool().cpu()
    generator = torch.Generator().manual_seed(0)
    ratio = torch.randn(log_prob.shape, generator=generator, dtype=torch.float64)
    held = log_prob.detach().clone().requires_grad_()
    value = penalty(held, held.detach() - ratio.to(held))
    if not value.requires_grad:
        slope = torch.zeros_like(ratio)
    else:
        total = value if value.ndim == 0 else value[counted.to(value.device)].sum()
        [given] = torch.autograd.grad(total, held, allow_unused=True)
        slope = torch.zeros_like(ratio) if given is None else given.detach().double().cpu()
    forms = {
        "reverse": ratio,
        "reverse, with a constant": ratio + 1,
        "forward": -torch.expm1(-ratio),
        "nothing": torch.ones_like(ratio),
        "swapped": torch.expm1(ratio),
        "k2 weighted": ratio + ratio**2 / 2,
    }
    fits = {name: _fit(slope, form, counted) for name, form in forms.items()}
    best = min(fits, key=lambda name: fits[name][0])
    left, factor = fits[best]
    evidence = {"slope's form": best, "share of its square left": left, "factor": factor}
    if not slope[counted].any():
        cause = "the KL term has no gradient: its value is logged, and nothing is trained by it"
        remedy = "do not detach log_prob, and look at beta; or put the KL into the reward"
        return [Finding("kl-without-gradient", "error", cause, remedy, {"largest slope": 0.0})]
    if left > _FIT:
        cause = "the KL term's gradient is none of a KL's that are known here: it is clamped, clipped or another thing"
        remedy = "compare with kullback.KLPenalty, whose gradients are tested"
        return [Finding("kl-gradient-unknown", "warning", cause, remedy, evidence)]
    if factor < 0:
        cause = "the KL term has the wrong sign: descending the loss drives the policy away from its reference"
        return [Finding("kl-sign", "error", cause, "add beta * KL to the loss; subtract it from a reward", evidence)]
    return _GRADIENT[best](evidence)


def _fit(slope: Tensor, form: Tensor, mask: Tensor) -> tuple[float, float]:
    """Each row may have a weight of its own (a mean over its sequence): the share of slope^2 left, and the weight."""
    slope, form = (torch.where(mask, values, 0.0) for values in (slope, form))
    long = mask.sum(-1) >= 3
    if not long.any():  # a row of one token fits anything
        slope, form, long = slope.reshape(1, -1), form.reshape(1, -1), torch.ones(1, dtype=torch.bool)
    slope, form = slope[long], form[long]
    factors = (slope * form).sum(-1) / (form**2).sum(-1)
    left = ((slope - factors[:, None] * form) ** 2).sum() / (slope**2).sum().clamp(min=1e-300)
    return float(left), float(factors.mean())


def _forward(evidence: Mapping[str, object]) -> list[Finding]:
    cause = (
        "the KL that is logged is not the one that is trained: k3 estimates KL(policy || ref), but differentiated as a "
        "loss on the policy's samples it descends KL(ref || policy)"
    )
    remedy = "use_bias_correction_kl=True in TRL; elsewhere k2, w k3 or the exact KL in the loss: see docs/penalty.md"
    return [Finding("logged-is-not-trained", "error", cause, remedy, evidence)]


def _nothing(evidence: Mapping[str, object]) -> list[Finding]:
    cause = "k1 = log policy/ref is differentiated as a loss: its expected gradient is 0, it only adds noise"
    remedy = "take k2 or the exact KL in the loss, or put k1 into the reward"
    return [Finding("kl-without-gradient", "error", cause, remedy, evidence)]


def _swapped(evidence: Mapping[str, object]) -> list[Finding]:
    cause = "the ratio is upside down: k3 of log policy/ref belongs to samples of the reference, not of the policy"
    remedy = "phi(log ref/policy) is k3 of KL(policy || ref) on the policy's samples: see docs/penalty.md"
    return [Finding("kl-direction", "error", cause, remedy, evidence)]


def _weighted(evidence: Mapping[str, object]) -> list[Finding]:
    cause = "k2 is weighed by policy/old: that has no KL's gradient"
    return [Finding("kl-direction", "error", cause, "weigh k1 or k3, or leave k2 unweighed", evidence)]


_GRADIENT: Mapping[str, Callable[[Mapping[str, object]], list[Finding]]] = {
    "reverse": lambda _: [],
    "reverse, with a constant": lambda _: [],
    "forward": _forward,
    "nothing": _nothing,
    "swapped": _swapped,
    "k2 weighted": _weighted,
}


def check_kl_value(
    logged: Tensor | float, *, log_ratio: Tensor, exact: Tensor, ref_exact: Tensor, mask: Tensor
) -> list[Finding]:
    """Whether a logged KL is KL(policy || ref), by one of its estimators, or what else it is.

    Args:
        logged: One number, the mean over tokens, or (batch, time).
        log_ratio: L = log policy/ref at the sampled tokens, (batch, time).
        exact: KL(policy || ref) at each position; `ref_exact`: KL(ref || policy) there.
        ref_exact: See `exact`.
        mask: True for the tokens that count.

    Example:
        >>> ratio, mask = torch.tensor([[0.5, -0.1, 0.3]]), torch.ones(1, 3, dtype=torch.bool)
        >>> given = dict(log_ratio=ratio, exact=ratio**2, ref_exact=ratio**2 * 1.3, mask=mask)
        >>> check_kl_value(float(-ratio.mean()), **given)[0].name, check_kl_value(float(ratio.mean()), **given)
        ('kl-sign', [])
    """
    if isinstance(logged, Tensor) and logged.ndim and logged.shape != mask.shape:
        raise ShapeError(f"expected one logged KL, or one of shape {tuple(mask.shape)}, got {tuple(logged.shape)}")
    ratio, mask = log_ratio.double(), mask.bool()
    k3, other = phi(-ratio), phi(ratio)
    right = {"exact": exact, "k1": ratio, "k2": ratio**2 / 2, "k3": k3}
    wrong = {
        "-k1": ("kl-sign", -ratio, "its sign is turned: it is log ref/policy"),
        "-exact": ("kl-sign", -exact, "its sign is turned"),
        "-k3": ("kl-sign", -k3, "its sign is turned"),
        "KL(ref || policy)": ("kl-direction", ref_exact, "it is KL(ref || policy)"),
        "k3 upside down": ("kl-direction", other, "it is k3 of the ratio upside down"),
    }
    gaps = {name: _gap(logged, values, mask) for name, values in right.items()}
    gaps |= {name: _gap(logged, values, mask) for name, (_, values, _) in wrong.items()}
    best = min(gaps, key=lambda name: gaps[name])
    truth = float(exact[mask].double().mean())
    evidence = {"KL(policy || ref), nats per token": truth, "what was logged": _mean(logged, mask), "it is": best}
    if gaps[best] < 0.01:
        if best in right:
            return []
        name, _, cause = wrong[best]
        remedy = "log the exact KL(policy || ref), or k3 = phi(log ref/policy) on the policy's samples"
        return [Finding(name, "error", f"the logged KL is another number: {cause}", remedy, evidence)]
    everywhere = torch.ones_like(mask)
    for name, values in right.items():
        share = float(torch.where(mask, values.double(), 0.0).mean())
        if not isinstance(logged, Tensor) and abs(logged - share) < 0.01 * abs(share) and mask.sum() < everywhere.sum():
            cause = "the logged KL is a mean over padding too"
            remedy = "divide by the number of tokens that count"
            return [Finding("padding-counted", "error", cause, remedy, {**evidence, "it is": f"{name}, diluted"})]
    cause = "the logged KL is no estimate of KL(policy || ref) on this batch that is known here"
    remedy = "look at its temperature, its mask, and of which policy it is"
    evidence["it is"] = "unknown"
    return [Finding("logged-kl-unknown", "warning", cause, remedy, evidence)]


def _gap(logged: Tensor | float, values: Tensor, mask: Tensor) -> float:
    values = values.double()[mask]
    if isinstance(logged, Tensor) and logged.ndim:
        away = (logged.double()[mask] - values).abs().mean() / values.abs().mean().clamp(min=1e-300)
        return float(away)
    mean = float(values.mean())
    return abs(float(logged) - mean) / max(abs(mean), 1e-300)


def _mean(logged: Tensor | float, mask: Tensor) -> float:
    return float(logged.double()[mask].mean()) if isinstance(logged, Tensor) and logged.ndim else float(logged)
