"""Reference implementations of phi and discrete KL in extended precision."""

from collections.abc import Iterable
from decimal import Decimal

import mpmath
import numpy as np

DIGITS = 40
KL_DIGITS = 250  # enough for a KL of 1e-200, which is a difference of numbers near 1


def phi(d: float) -> mpmath.mpf:
    """e^d - 1 - d."""
    with mpmath.workdps(DIGITS):
        d = mpmath.mpf(d)
        if abs(d) < 1e-3:
            return d * d * mpmath.polyval([1 / mpmath.factorial(k + 2) for k in range(14, -1, -1)], d)
        return mpmath.exp(d) - 1 - d


def log1p_residual(x: float) -> mpmath.mpf:
    """x - log(1 + x)."""
    with mpmath.workdps(DIGITS):
        x = mpmath.mpf(x)
        if abs(x) < 1e-3:
            return x * x * mpmath.polyval([mpmath.mpf((-1) ** k) / (k + 2) for k in range(16, -1, -1)], x)
        return x - mpmath.log1p(x)


def log_gamma_residual(a: float, h: float) -> mpmath.mpf:
    """lgamma(a + h) - lgamma(a) - h digamma(a)."""
    with mpmath.workdps(DIGITS * 2):
        a, h = mpmath.mpf(a), mpmath.mpf(h)
        return mpmath.loggamma(a + h) - mpmath.loggamma(a) - h * mpmath.digamma(a)


def kl(p: Iterable[float], q: Iterable[float]) -> mpmath.mpf:
    """KL(p/P || q/Q) of these floats, where P and Q are their exact sums."""
    with mpmath.workdps(KL_DIGITS):
        p, q = [mpmath.mpf(float(v)) for v in p], [mpmath.mpf(float(v)) for v in q]
        return _kl(p, q)


def kl_logits(p_logits: Iterable[float], q_logits: Iterable[float]) -> mpmath.mpf:
    """KL(softmax(p_logits) || softmax(q_logits)) of these floats."""
    with mpmath.workdps(KL_DIGITS):
        p, q = ([mpmath.exp(mpmath.mpf(float(v))) for v in logits] for logits in (p_logits, q_logits))
        return _kl(p, q)


def _kl(p: list[mpmath.mpf], q: list[mpmath.mpf]) -> mpmath.mpf:
    mass_p, mass_q = mpmath.fsum(p), mpmath.fsum(q)
    p, q = [v / mass_p for v in p], [v / mass_q for v in q]
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return mpmath.inf
    return mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def ulps(got: np.ndarray, truth: list[mpmath.mpf]) -> np.ndarray:
    """The error of each value in units in the last place of its dtype."""
    errors = []
    for value, exact in zip(got, truth, strict=True):
        nearest = value.dtype.type(Decimal(mpmath.nstr(exact, 30))) if abs(exact) < np.finfo(got.dtype).max else np.inf
        if np.isinf(value) or np.isinf(nearest):
            errors.append(0.0 if value == nearest else np.inf)
        else:
            errors.append(float(abs(mpmath.mpf(float(value)) - exact) / mpmath.mpf(float(np.spacing(abs(nearest))))))
    return np.asarray(errors)
