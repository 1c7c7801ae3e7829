"""KL(p || q) of two relaxed categorical (Concrete, Gumbel-softmax) distributions of one temperature."""

from math import inf

import numpy as np

from kullback.errors import ShapeError, SupportError
from kullback.numerics.arrays import Array
from kullback.numerics.phi import phi
from kullback.result import Estimate

__all__ = ["kl_relaxed_categorical"]

_STEPS = (1 / 16, 1 / 32)  # steps of the trapezoidal rule, whose difference bounds the error


def kl_relaxed_categorical(logits_p: Array, logits_q: Array, *, error: float = 1e-10) -> Estimate:
    """KL(p || q) of two relaxed categorical distributions, which is the same at every temperature that they share.

    A draw is softmax((logits + Gumbel noise) / temperature). With a = logits_q - logits_p minus its mean,

        KL = n integral over s of (1 + e^s)^-n (1 - e^-D(s)) ds
        D(s) = sum_i log(1 + e^(s + a_i)) - n log(1 + e^s)
             = sum_i KL(Bernoulli(logit s) || Bernoulli(logit s + a_i)) >= 0

    The derivation writes KL = n E[log(sum_i e^a_i E_i / sum_i E_i)] for independent standard exponential E_i, and
    log u as the integral of (e^-t - e^-tu) / t. The integrand is non-negative and decays exponentially on both sides,
    so that the trapezoidal rule converges exponentially.

    Args:
        logits_p: The logits of p, shape (n,), n at least 2; finite.
        logits_q: The logits of q, shape (n,); finite.
        error: The acceptable error bound: in nats where KL is below 1, relative above 1.

    Returns:
        An `Estimate` in nats with status "bounded".

    Raises:
        ShapeError: The logits differ in shape, or are not vectors.
        SupportError: A logit is not finite.

    References:
        Maddison, Mnih and Teh (2017), eq. 10, for the density.

    Example:
        >>> estimate = kl_relaxed_categorical([1.0, 0.0], [0.0, 0.0])
        >>> round(estimate.value, 9), estimate.status  # coth(1/2) - 2
        (0.163953414, 'bounded')
    """
    logits = [np.asarray(side, np.float64) for side in (logits_p, logits_q)]
    if logits[0].shape != logits[1].shape or logits[0].ndim != 1:
        raise ShapeError(
            f"expected logits of p and q of one shape (n,), got shapes {logits[0].shape} and {logits[1].shape}"
        )
    for name, side in zip("pq", logits, strict=True):
        if not np.isfinite(side).all():
            first = int(np.flatnonzero(~np.isfinite(side))[0])
            raise SupportError(f"expected finite logits of {name}, got {side[first]} at index {first}")
    a = logits[1] - logits[0]
    a -= a.mean()
    coarse, fine = (_trapezoid(a, step) for step in _STEPS)
    bound = abs(fine - coarse) + 64 * a.size * float(np.finfo(np.float64).eps) * fine
    warnings = (
        () if bound <= error * max(1.0, fine) else (f"the error bound {bound:.2g} is above the acceptable error",)
    )
    return Estimate(
        fine,
        error=bound,
        interval=(max(0.0, fine - bound), fine + bound),
        method="quadrature",
        status="unreliable" if warnings else "bounded",
        warnings=warnings,
    )


def _trapezoid(a: Array, step: float) -> float:
    """The integral by the trapezoidal rule, between the points beyond which the integrand is negligible."""
    n, spread = a.size, float(np.abs(a).max(initial=0.0))
    s = np.arange(-45.0 - np.log(n) - spread, 45.0 + spread, step)
    total = 0.0
    for block in np.array_split(s, max(1, s.size * n // 2**20)):
        decay = -n * np.logaddexp(0.0, block)
        excess = _bernoulli_kl(block[:, None], a).sum(axis=1)
        total += float((np.exp(decay) * -np.expm1(-excess)).sum())
    return n * step * total


def _bernoulli_kl(s: Array, a: Array) -> Array:
    """KL(Bernoulli(logit s) || Bernoulli(logit s + a)) as P phi(log Q/P) over both outcomes."""
    log_one, log_zero = -np.logaddexp(0.0, -s), -np.logaddexp(0.0, s)
    # log(Q/P) of the outcome 1 is a - log(1 + P (e^a - 1)), without cancellation for small a.
    with np.errstate(over="ignore"):
        small = np.abs(a) < 1
        change = np.where(
            small,
            np.log1p(np.exp(log_one) * np.expm1(np.where(small, a, 0.0))),
            np.logaddexp(0.0, s + a) - np.logaddexp(0.0, s),
        )
        terms = _mass_phi(log_one, a - change), _mass_phi(log_zero, -change)
    return terms[0] + terms[1]


def _mass_phi(log_p: Array, d: Array) -> Array:
    """p phi(d) = q - p - p d, where p or e^d may leave the range of float64."""
    p = np.exp(log_p)
    far = np.exp(log_p + d) - p - p * d
    return np.where(d < 1, p * phi(np.minimum(d, 1.0)), np.where(np.isfinite(far), far, inf))
