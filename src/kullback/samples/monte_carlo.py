"""KL(p || q) from draws of p, with a confidence interval, and the signs that it cannot be trusted."""

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
    """A distribution to draw from.

    Args:
        sample: Called as `sample(count, rng)`; that many independent draws along the first axis.
        log_density: Of such draws, one number each.
    """

    sample: Callable[[int, Any], Array]
    log_density: Callable[[Array], Array]


def kl_monte_carlo(p: Sampler, q: Sampler, *, draws: int = 65_536, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """KL(p || q) estimated from draws of p, in nats.

    The mean of c (r - 1) - log r over draws x of p, r = q(x)/p(x): r has mean 1, so any c will do. c = 1 makes it
    phi(log r), which is never negative and of second order where p and q are close; the c that varies least is found by
    regression. Where the tail of r is too heavy for that, or its mean is less than 1 since q has mass where p has none
    (which draws of q tell), c = 0.

    Args:
        p: What is drawn from, and its log-density.
        q: The other.
        draws: How many of each.
        seed: Of the random numbers.
        confidence: The probability with which the interval is to hold the truth.

    Returns:
        An `Estimate` with its standard error and interval; "unreliable" where the tail of the terms is too heavy for a
        mean of them to be trusted (Hill's index, of the largest 3 sqrt(draws), above 1/2: their variance is infinite).

    Raises:
        ShapeError: There is not one log-density for each draw.
        SupportError: A log-density is nan, or p gives a draw of its own no density.

    Source: [schulman2020] for phi(log r); [hill1975].
    """
    x = p.sample(draws, np.random.default_rng(seed))
    try:
        with np.errstate(all="ignore"):
            log_p, log_q = (np.asarray(one.log_density(x), dtype=np.float64) for one in (p, q))
    except ValueError as error:
        raise ShapeError(f"expected log-densities of draws of p, an array of shape {np.shape(x)}: {error}") from error
    if not log_p.shape == log_q.shape == (draws,):
        raise ShapeError(
            f"expected a log-density for each of {draws} draws, got shapes {log_p.shape} of p and {log_q.shape} of q: "
            "are they distributions of vectors of one size?"
        )
    for name, logs in (("p", log_p), ("q", log_q)):
        bad = np.isnan(logs) | ((logs == -inf) if name == "p" else False)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise SupportError(f"expected log-densities, but that of {name} is {logs[first]} at its draw {x[first]!r}")
    d = log_q - log_p
    missed = np.flatnonzero(d == -inf)
    if missed.size:
        where = f"q is 0 where p is not: {missed.size} of {draws} draws, the first {x[missed[0]]!r}"
        return Estimate(inf, 0.0, draws, method="Monte Carlo", interval=(inf, inf), warnings=(where,))
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
        warnings.append(f"the terms have a heavy tail, of index {index:.2g}: rare draws decide the mean")
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
    """Whether q has mass where p has none: some of its draws, or a mean of q/p that is less than 1."""
    if excess.mean() < -5 * excess.std() / np.sqrt(draws):
        return True
    with np.errstate(all="ignore"):
        return not np.isfinite(p.log_density(q.sample(draws, np.random.default_rng(seed + 1)))).all()


def hill_index(values: Array) -> float:
    """By how fast the largest of these falls off: moments of order 1/index and above are infinite."""
    count = min(int(3 * np.sqrt(values.size)), values.size // 5)
    top = np.sort(values)[-count - 1 :]
    if not top[0] > 0 or not np.isfinite(top[-1]):
        return inf if top[-1] == inf else 0.0
    return float(np.log(top[1:] / top[0]).mean())
