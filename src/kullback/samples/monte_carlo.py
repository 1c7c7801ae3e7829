"""Monte Carlo estimate of KL(p || q) from samples of p, with a confidence interval and diagnostics."""

from collections.abc import Callable
from math import inf, nan
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from kullback.errors import ShapeError, SupportError
from kullback.numerics.arrays import Array
from kullback.numerics.phi import phi
from kullback.result import Estimate

__all__ = ["Sampler", "kl_monte_carlo"]


class Sampler(NamedTuple):
    """A distribution as its sampler and log-density.

    Args:
        sample: Called as `sample(count, rng)`; returns `count` independent draws along the first axis.
        log_density: Called with such draws; returns their log-densities, shape (count,).
    """

    sample: Callable[[int, Any], Array]
    log_density: Callable[[Array], Array]


def kl_monte_carlo(p: Sampler, q: Sampler, *, draws: int = 65_536, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """KL(p || q) estimated from samples of p with a control variate.

    With r = q(x)/p(x) and x drawn from p, the estimate is the mean of c (r - 1) - log r. It is unbiased for every
    constant c, since E_p[r] = 1. For c = 1 the terms are phi(log r), which is non-negative and of second order where p
    and q are close. The c with the smallest variance is estimated by regression. c = 0 is used if the tail of r is too
    heavy for the regression, and if q has mass outside the support of p, so that E_p[r] < 1; draws of q detect this.

    Args:
        p: The sampler and log-density of p.
        q: The sampler and log-density of q.
        draws: The number of draws of p, and of draws of q that check the supports.
        seed: The seed of the random generator.
        confidence: The coverage probability of the interval.

    Returns:
        An `Estimate` in nats with its standard error and confidence interval; `inf` if the density of q is 0 at a
        draw. The status is "unreliable" if the variance of the terms appears to be infinite: the Hill estimate of the
        tail index from the 3 sqrt(draws) largest terms is above 1/2.

    Raises:
        ShapeError: A log-density does not return an array of shape (draws,).
        SupportError: A log-density is nan, or the log-density of p is -inf at a draw of p.

    References:
        Schulman (2020), Approximating KL divergence, for phi(log r).
        Hill (1975), for the tail index.

    Example:
        >>> from kullback.densities.resolve import resolve
        >>> from kullback.families import Normal
        >>> p, q = resolve(Normal(loc=0.0, scale=1.0)), resolve(Normal(loc=1.0, scale=1.0))
        >>> estimate = kl_monte_carlo(p.sampler, q.sampler)
        >>> abs(estimate.value - 0.5) < 4 * estimate.std_error
        True
    """
    x = p.sample(draws, np.random.default_rng(seed))
    try:
        with np.errstate(all="ignore"):
            log_p, log_q = (np.asarray(sampler.log_density(x), dtype=np.float64) for sampler in (p, q))
    except ValueError as error:
        raise ShapeError(
            f"expected log-densities that accept draws of p of shape {np.shape(x)}, got the error: {error}"
        ) from error
    if not log_p.shape == log_q.shape == (draws,):
        raise ShapeError(
            f"expected a log-density for each of {draws} draws, got shapes {log_p.shape} of p and {log_q.shape} of q: "
            "p and q must be distributions on the same space"
        )
    for name, logs in (("p", log_p), ("q", log_q)):
        bad = np.isnan(logs) | ((logs == -inf) if name == "p" else False)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise SupportError(
                f"expected finite log-densities at draws of p, but the log-density of {name} is {logs[first]} at "
                f"{x[first]!r}"
            )
    d = log_q - log_p
    outside = np.flatnonzero(d == -inf)
    if outside.size:
        warning = f"q is 0 where p is not: {outside.size} of {draws} draws, the first {x[outside[0]]!r}"
        return Estimate(inf, 0.0, draws, method="Monte Carlo", interval=(inf, inf), warnings=(warning,))
    with np.errstate(over="ignore"):
        excess = np.expm1(d)
    c = 0.0
    if hill_index(excess + 1) < 0.5 and excess.var() > 0 and not _has_mass_outside(p, q, excess, draws, seed):
        c = float(np.clip(np.cov(excess, d)[0, 1] / excess.var(), 0.0, 1.0))
    terms = phi(d) - (1 - c) * excess if c > 0 else -d
    value, std_error = float(terms.mean()), float(terms.std(ddof=1) / np.sqrt(draws))
    warnings = []
    index = hill_index(np.abs(terms - np.median(terms)))
    if index > 0.5:
        warnings.append(f"the terms have a heavy tail with tail index {index:.2g}: rare draws determine the mean")
    half = float(special.ndtri((1 + confidence) / 2)) * std_error
    return Estimate(
        max(value, 0.0),
        std_error,
        draws,
        method="Monte Carlo",
        error=nan,
        interval=(max(value - half, 0.0), max(value + half, 0.0)),
        status="unreliable" if warnings else "estimated",
        warnings=tuple(warnings),
    )


def _has_mass_outside(p: Sampler, q: Sampler, excess: Array, draws: int, seed: int) -> bool:
    """Whether q has mass outside the support of p: by the mean of q/p, which is then below 1, or by draws of q."""
    if excess.mean() < -5 * excess.std() / np.sqrt(draws):
        return True
    with np.errstate(all="ignore"):
        return not np.isfinite(p.log_density(q.sample(draws, np.random.default_rng(seed + 1)))).all()


def hill_index(values: Array) -> float:
    """The Hill estimate of the tail index of values: moments of order 1/index and above are infinite."""
    count = min(int(3 * np.sqrt(values.size)), values.size // 5)
    top = np.sort(values)[-count - 1 :]
    if not top[0] > 0 or not np.isfinite(top[-1]):
        return inf if top[-1] == inf else 0.0
    return float(np.log(top[1:] / top[0]).mean())
