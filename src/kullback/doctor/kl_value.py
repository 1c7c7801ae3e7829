"""The check of which quantity a logged KL value is."""

from dataclasses import replace

import torch
from torch import Tensor

from kullback.doctor.finding import Finding
from kullback.doctor.forward_pass import PolicyAndReference, token_log_probs
from kullback.errors import ShapeError
from kullback.numerics.phi import phi
from kullback.tokens import token_kl

__all__ = ["check_kl_value", "check_logged_value", "require_shape_of_kl"]

_TOLERANCE = 0.01  # relative


def check_logged_value(pair: PolicyAndReference, logged: Tensor | float, temperature: float) -> list[Finding]:
    """Recompute the KL of a batch, and check a logged value of it by `check_kl_value`.

    Args:
        pair: The policy, the reference and the whole batch. Logits are computed row by row to limit memory.
        logged: The logged KL: the mean over tokens, or one value for each token, shape (batch, time); nats per token.
        temperature: The sampling temperature, which divides the logits of both models.

    Returns:
        A finding of `check_kl_value`, or nothing.

    Raises:
        ShapeError: `logged` has neither one value nor one for each token.
    """
    batch = pair.batch
    if isinstance(logged, Tensor) and logged.ndim:
        logged = logged.to(batch.ids.device)
    rows = []
    for row in range(len(batch.ids)):
        one = replace(pair, batch=batch.select(slice(row, row + 1), batch.mask.shape[1]))
        logits, ref_logits = one.policy_logits(), one.reference_logits()
        log_prob, ref_log_prob = (
            token_log_probs(values, one.batch.tokens, temperature=temperature) for values in (logits, ref_logits)
        )
        exact = token_kl(logits[:, :-1], ref_logits[:, :-1], temperature=temperature)
        ref_exact = token_kl(ref_logits[:, :-1], logits[:, :-1], temperature=temperature)
        rows.append((log_prob - ref_log_prob, exact, ref_exact))
    log_ratio, exact, ref_exact = (torch.cat(values) for values in zip(*rows, strict=True))
    return check_kl_value(logged, log_ratio=log_ratio, exact=exact, ref_exact=ref_exact, mask=batch.mask)


def check_kl_value(
    logged: Tensor | float, *, log_ratio: Tensor, exact: Tensor, ref_exact: Tensor, mask: Tensor
) -> list[Finding]:
    """Check that a logged KL is KL(policy || reference) or one of its estimators k1, k2 and k3.

    Criterion: the known quantity nearest to the logged mean, or to the logged values by mean absolute deviation, is
    the exact KL or an estimator of it, within 1%. Another known quantity within 1% is named in the finding.

    Args:
        logged: The logged KL: the mean over tokens, or one value for each token, shape (batch, time); nats per token.
        log_ratio: log policy - log reference at the sampled tokens, shape (batch, time).
        exact: KL(policy || reference) at each position, shape (batch, time), in nats.
        ref_exact: KL(reference || policy) at each position, shape (batch, time), in nats.
        mask: True for the tokens that count, shape (batch, time).

    Returns:
        `kl-sign` (error) for minus an estimate, `kl-direction` (error) for KL(reference || policy) or k3 of the
        inverted ratio, `padding-counted` (error) for a mean that includes padding, `logged-kl-unknown` (warning)
        for another value; or nothing.

    Raises:
        ShapeError: `logged` has neither one value nor one for each token.

    Example:
        >>> ratio, mask = torch.tensor([[0.5, -0.1, 0.3]]), torch.ones(1, 3, dtype=torch.bool)
        >>> values = dict(log_ratio=ratio, exact=ratio**2, ref_exact=ratio**2 * 1.3, mask=mask)
        >>> check_kl_value(float(-ratio.mean()), **values)[0].name, check_kl_value(float(ratio.mean()), **values)
        ('kl-sign', [])
    """
    require_shape_of_kl(logged, mask)
    log_ratio, mask = log_ratio.double(), mask.bool()
    k3 = phi(-log_ratio)
    estimators = {"exact": exact, "k1": log_ratio, "k2": log_ratio**2 / 2, "k3": k3}
    negated = {"-k1": -log_ratio, "-exact": -exact, "-k3": -k3}
    reversed_kl = {"KL(reference || policy)": ref_exact, "k3 of the inverted ratio": phi(log_ratio)}
    candidates = {**estimators, **negated, **reversed_kl}
    deviations = {name: _relative_deviation(logged, values, mask) for name, values in candidates.items()}
    best = min(deviations, key=lambda name: deviations[name])
    evidence = {
        "KL(policy || reference), nats per token": float(exact[mask].double().mean()),
        "logged value": _masked_mean(logged, mask),
        "it equals": best,
    }
    remedy = "log the exact KL(policy || reference), or k3 = phi(log ref/policy) on samples of the policy"
    if deviations[best] < _TOLERANCE:
        if best in negated:
            cause = f"the logged KL has the wrong sign: it is {best}, as in log ref/policy instead of log policy/ref"
            return [Finding("kl-sign", "error", cause, remedy, evidence)]
        if best in reversed_kl:
            cause = f"the logged KL has the wrong direction: it is {best}"
            return [Finding("kl-direction", "error", cause, remedy, evidence)]
        return []
    if diluted := _mean_over_padding(logged, estimators, mask):
        cause = "the logged KL is a mean that includes padding"
        remedy = "divide by the number of tokens that count"
        evidence["it equals"] = f"{diluted}, averaged over padding too"
        return [Finding("padding-counted", "error", cause, remedy, evidence)]
    cause = "the logged KL is not a known estimate of KL(policy || reference) on this batch"
    remedy = "check the temperature, the mask and the policy that the logged KL was computed with"
    evidence["it equals"] = "unknown"
    return [Finding("logged-kl-unknown", "warning", cause, remedy, evidence)]


def require_shape_of_kl(logged: Tensor | float, mask: Tensor) -> None:
    """Raises ShapeError unless a logged KL has one value, or one for each entry of the mask of the completions."""
    if isinstance(logged, Tensor) and logged.ndim and logged.shape != mask.shape:
        raise ShapeError(f"expected one logged KL, or one of shape {tuple(mask.shape)}, got {tuple(logged.shape)}")


def _mean_over_padding(logged: Tensor | float, estimators: dict[str, Tensor], mask: Tensor) -> str | None:
    """The estimator whose sum over the tokens that count, divided by the number of all positions, was logged."""
    if isinstance(logged, Tensor) or mask.all():
        return None
    for name, values in estimators.items():
        mean = float(torch.where(mask, values.double(), 0.0).mean())
        if abs(logged - mean) < _TOLERANCE * abs(mean):
            return name
    return None


def _relative_deviation(logged: Tensor | float, values: Tensor, mask: Tensor) -> float:
    values = values.double()[mask]
    if isinstance(logged, Tensor) and logged.ndim:
        return float((logged.double()[mask] - values).abs().mean() / values.abs().mean().clamp(min=1e-300))
    mean = float(values.mean())
    return abs(float(logged) - mean) / max(abs(mean), 1e-300)


def _masked_mean(logged: Tensor | float, mask: Tensor) -> float:
    return float(logged.double()[mask].mean()) if isinstance(logged, Tensor) and logged.ndim else float(logged)
