"""Monte Carlo estimate of KL(p || q) from samples of p, with a confidence interval and diagnostics."""

from collections.abc import Callable
from math import inf, nan
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from kullback.errors import ArrayTypeError, KullbackError, ShapeError, SupportError
from kullback.numerics.arguments import shown
from kullback.numerics.arrays import Array, as_numpy
from kullback.numerics.phi import phi
from kullback.result import Estimate

__all__ = ["Sampler", "cross_entropy_monte_carlo", "kl_monte_carlo", "require_options"]


_FEWEST_DRAWS = 2000  # of an interval whose status is "estimated"
_MAX_DRAWS = 10**9  # which take several gigabytes for each dimension


class Sampler(NamedTuple):
    """A distribution as its sampler and log-density.

    Args:
        sample: Called as `sample(count, rng)`; returns `count` independent draws along the first axis. None for a
            log-density without a sampler.
        log_density: Called with such draws; returns their log-densities, shape (count,).
    """

    sample: Callable[[int, Any], Array] | None
    log_density: Callable[[Array], Array]


def kl_monte_carlo(p: Sampler, q: Sampler, *, draws: int = 65_536, seed: int = 0, confidence: float = 0.95) -> Estimate:
    """KL(p || q) estimated from samples of p and of q.

    With r = q(x)/p(x), KL(p || q) = E_m[2 phi(log r) / (1 + r)], where m = (p + q)/2 and phi(d) = e^d - 1 - d: the
    estimate is the mean over the draws of p and of q, one of each for a term. The terms are non-negative, of second
    order where p and q are close, at most 2 where q is larger, and grow as log(p/q) where p is larger. If q has mass
    outside the support of p, the terms are -log r at draws of p where these have the smaller variance.

    Without a sampler of q, the estimate is the mean of c (r - 1) - log r over draws of p, which is unbiased for every
    constant c, since E_p[r] = 1. The c with the smallest variance is estimated by regression. c = 0 is used if the tail
    of r is too heavy for the regression, and if the terms of the regression have a heavy tail and -log r has none. If
    the mean is negative, it is replaced by E_p[phi(log r)].

    Normalized densities whose draws follow them have E_p[r] <= 1 and one overlap,
    E_p[min(1, q/p)] = E_q[min(1, p/q)]. If the draws contradict this by more than five standard errors, the estimate
    is E_p[phi(log r)], its status is "unreliable" and its interval is (0, inf).

    Args:
        p: The sampler and log-density of p.
        q: The sampler and log-density of q. Without a sampler, E_p[r] is the only check of its normalization.
        draws: The number of draws of p, and of q; at least 2.
        seed: The seed of the random generator.
        confidence: The coverage probability of the interval.

    Returns:
        An `Estimate` in nats with its standard error and confidence interval; `inf` if the density of q is 0 at a
        draw. The status is "unreliable" if the draws contradict the log-densities, if there are fewer than 2000 draws
        or than 25 times the squared skewness of the terms, and if the variance of the terms appears to be infinite: the
        Hill estimate of the tail index from the 3 sqrt(draws) largest terms is above 1/2, and the estimate from the
        draws^0.4 largest is above 1/2 or one term contributes a fifth of the variance.

    Raises:
        ShapeError: A sampler does not return `draws` draws, or a log-density does not return an array of shape
            (draws,).
        SupportError: A log-density is nan or inf, the log-density of p is -inf at a draw of p, p has no sampler, or
            `draws`, `seed` or `confidence` is outside its domain.

    References:
        Schulman (2020), Approximating KL divergence, for phi(log r).
        Veach and Guibas (1995), Optimally combining sampling techniques, for samples of both distributions.
        Hill (1975), for the tail index.
        Cochran (1977), Sampling Techniques, section 2.15, for the number of draws.

    Example:
        >>> from kullback.densities.resolve import resolve
        >>> from kullback.families import Normal
        >>> p, q = resolve(Normal(loc=0.0, scale=1.0)), resolve(Normal(loc=1.0, scale=1.0))
        >>> estimate = kl_monte_carlo(p.sampler, q.sampler)
        >>> abs(estimate.value - 0.5) < 4 * estimate.std_error
        True
    """
    require_options(draws, seed, confidence)
    _require_samplers(p, q)
    x = _draw("p", p, draws, seed)
    log_p, log_q, precision = _log_densities("p", x, p, q, draws)
    d = log_q - log_p
    outside = np.flatnonzero(d == -inf)
    if outside.size:
        warning = f"q is 0 where p is not: {outside.size} of {draws} draws, the first {_point(x, int(outside[0]))}"
        return Estimate(inf, 0.0, draws, method="Monte Carlo", interval=(inf, inf), warnings=(warning,))
    with np.errstate(over="ignore"):
        excess = np.expm1(d)
    reverse = None  # log p - log q at draws of q
    if q.sample is not None:
        y = _draw("q", q, draws, seed + 1)
        reverse_p, reverse_q, reverse_precision = _log_densities("q", y, p, q, draws)
        reverse, precision = reverse_p - reverse_q, max(precision, reverse_precision)
    mass_outside = 0.0 if reverse is None else float((reverse == -inf).mean())
    if reverse is None:
        terms, index = _control_variate_terms(d, excess)
    else:
        terms = (_balanced_terms(d) + _balanced_terms(-reverse)) / 2
        if mass_outside and d.std() < terms.std():  # such as for two uniform distributions
            terms = -d
        index = heavy_tail_index(terms)
    value, std_error = float(terms.mean()), float(terms.std(ddof=1) / np.sqrt(draws))
    warnings = _contradictions(d, excess, reverse, precision)
    if warnings or value < 0:
        terms = np.asarray(phi(d))
        with np.errstate(invalid="ignore"):  # phi(d) is inf where e^d overflows
            value, index = float(terms.mean()) + mass_outside, heavy_tail_index(terms)
            std_error = float(np.hypot(terms.std(ddof=1), np.sqrt(mass_outside * (1 - mass_outside))) / np.sqrt(draws))
    interval = (0.0, inf)
    if not warnings:
        half = float(special.stdtrit(max(draws - 2, 1), (1 + confidence) / 2)) * std_error
        interval = (max(value - half, 0.0), value + half)
        if index:
            warnings.append(f"the terms have a heavy tail with tail index {index:.2g}: rare draws determine the mean")
        else:
            warnings += _few_draws(terms, x)
    return Estimate(
        value,
        std_error,
        draws,
        method="Monte Carlo",
        error=nan,
        interval=interval,
        status="unreliable" if warnings else "estimated",
        warnings=tuple(warnings),
    )


def cross_entropy_monte_carlo(
    p: Sampler, q: Sampler, *, draws: int = 65_536, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """H(p, q) estimated from samples of p; for q = p, the entropy of p.

    H(p, q) = -E_p[log q(x)]: the estimate is the mean of -log q at the draws.

    Args:
        p: The sampler and log-density of p.
        q: The log-density of q, which must be normalized: draws of p do not show whether it is.
        draws: The number of draws of p; at least 2.
        seed: The seed of the random generator.
        confidence: The coverage probability of the interval.

    Returns:
        An `Estimate` in nats with its standard error and confidence interval; `inf` if the density of q is 0 at a draw.
        The status is "unreliable" if there are fewer than 2000 draws or than 25 times the squared skewness of -log q,
        and if its variance appears to be infinite, by the Hill estimate of the tail index.

    Raises:
        ShapeError: The sampler does not return `draws` draws, or a log-density does not return an array of shape
            (draws,).
        SupportError: A log-density is nan or inf, the log-density of p is -inf at a draw of p, p has no sampler, or
            `draws`, `seed` or `confidence` is outside its domain.

    Example:
        >>> from kullback.densities.resolve import resolve
        >>> from kullback.families import Dirichlet
        >>> p = resolve(Dirichlet(concentration=[1.0, 1.0, 1.0])).sampler
        >>> round(cross_entropy_monte_carlo(p, p).value, 9)  # the density is 2 everywhere
        -0.693147181
    """
    require_options(draws, seed, confidence)
    _require_samplers(p, q)
    x = _draw("p", p, draws, seed)
    _, log_q, precision = _log_densities("p", x, p, q, draws)
    outside = np.flatnonzero(log_q == -inf)
    if outside.size:
        warning = f"q is 0 where p is not: {outside.size} of {draws} draws, the first {_point(x, int(outside[0]))}"
        return Estimate(inf, 0.0, draws, method="Monte Carlo", interval=(inf, inf), warnings=(warning,))
    value, std_error = float(-log_q.mean()), float(log_q.std(ddof=1) / np.sqrt(draws))
    half = float(special.stdtrit(draws - 1, (1 + confidence) / 2)) * std_error + precision
    index, warnings = hill_index(np.abs(log_q - np.median(log_q))), _few_draws(-log_q, x)
    # Few distinct values may have a large index. With an infinite variance, single draws dominate the sum of squares.
    if index > 0.5 and float(((log_q + value) ** 2).max()) > 0.01 * draws * float(log_q.var()):
        warnings = [f"log q has a heavy tail with tail index {index:.2g}: rare draws determine the mean"]
    return Estimate(
        value,
        std_error,
        draws,
        method="Monte Carlo",
        interval=(value - half, value + half),
        status="unreliable" if warnings else "estimated",
        warnings=tuple(warnings),
    )


def _balanced_terms(d: Array) -> Array:
    """2 phi(d) / (1 + e^d): p phi(log q/p) relative to the density (p + q)/2, at draws with d = log q - log p.

    For d > 0, where phi(d) grows as e^d, the terms are at most 2.
    """
    with np.errstate(over="ignore"):
        low, high = np.where(d > 0, 0.0, d), np.where(d > 0, np.minimum(d, 500.0), 0.0)
        decay = np.exp(-high)
        return np.where(d > 0, 2 * decay * phi(high) / (1 + decay), 2 * phi(low) / (1 + np.exp(low)))


def _control_variate_terms(d: Array, excess: Array) -> tuple[Array, float]:
    """The terms -log r - c (1 - r) at draws of p, with the regression coefficient c, and their tail index."""
    c, below_one = 0.0, excess.mean() < -5 * excess.std() / np.sqrt(d.size)
    if hill_index(excess + 1) < 0.5 and excess.var() > 0 and not below_one:
        c = float(np.clip(np.cov(excess, d)[0, 1] / excess.var(), 0.0, 1.0))
    terms = np.asarray(phi(d) - (1 - c) * excess if c > 0 else -d)
    index = heavy_tail_index(terms)
    if index and c > 0 and not heavy_tail_index(-d):  # few values of r determine the variance of the control variate
        return -d, 0.0
    return terms, index


def _few_draws(terms: Array, x: Array) -> list[str]:
    """A warning if the draws are too few for an interval of the mean from its standard error.

    Cochran's rule requires 25 draws times the squared skewness. Fewer than two thousand draws often have none of the
    rare terms that determine the skewness. Draws of one point show that other outcomes are rare.
    """
    deviations = terms - terms.mean()
    spread = float(np.sqrt((deviations * deviations).mean()))
    if spread <= 1e-12 * float(np.abs(terms).max()):
        return [f"all {terms.size} draws are equal: other outcomes are rare"] if bool((x == x[:1]).all()) else []
    skewness = float(((deviations / spread) ** 3).mean())
    if terms.size < max(25 * skewness * skewness, _FEWEST_DRAWS):
        return [
            f"{terms.size} draws are few for terms with a skewness of {skewness:.2g}: the interval can be too narrow"
        ]
    return []


def require_options(draws: int, seed: int, confidence: float) -> None:
    """Check the options of a Monte Carlo estimate, also where a closed form does not use them.

    Args:
        draws: The number of samples.
        seed: The seed of the random generator.
        confidence: The coverage probability of the interval.

    Raises:
        SupportError: `draws` is below 2 or too large, `seed` is negative, or `confidence` is not between 0 and 1.

    Example:
        >>> require_options(100, 0, 0.95)
    """
    if not (isinstance(draws, int | np.integer) and draws >= 2):
        raise SupportError(f"expected draws to be a whole number >= 2, got {draws!r}")
    if draws > _MAX_DRAWS:
        raise SupportError(f"expected at most {_MAX_DRAWS:.0e} draws, whose arrays fit into memory, got {draws!r}")
    if not (isinstance(seed, int | np.integer) and seed >= 0):
        raise SupportError(f"expected seed to be a whole number >= 0, got {seed!r}")
    if not (isinstance(confidence, Real) and 0 < confidence < 1):
        raise SupportError(f"expected 0 < confidence < 1, got {confidence!r}")


def _require_samplers(p: Sampler, q: Sampler) -> None:
    for name, sampler in (("p", p), ("q", q)):
        is_sampler = isinstance(sampler, Sampler) and callable(sampler.log_density)
        if not is_sampler or not (sampler.sample is None or callable(sampler.sample)):
            raise ArrayTypeError(
                f"expected {name} to be a Sampler of two functions, got {shown(sampler)}; construct "
                "Sampler(sample, log_density), or call kullback.measure with method='Monte Carlo' for distributions"
            )


def _draw(name: str, sampler: Sampler, draws: int, seed: int) -> Array:
    """The draws of the distribution with this name."""
    if sampler.sample is None:
        raise SupportError(f"expected a sampler of {name}, got a log-density alone: pass an object with sample(count)")
    try:
        x = sampler.sample(draws, np.random.default_rng(seed))
    except KullbackError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ShapeError(
            f"expected a sampler of {name} that returns {draws} draws, got the error {type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    if np.shape(x)[:1] != (draws,):
        raise ShapeError(f"expected {draws} draws of {name} along the first axis, got an array of shape {np.shape(x)}")
    return x


def _log_densities(name: str, x: Array, p: Sampler, q: Sampler, draws: int) -> tuple[Array, Array, float]:
    """Both log-densities at draws of the distribution with this name, and the rounding error of their difference."""
    logs, epsilons = [], []
    for which, sampler in (("p", p), ("q", q)):
        try:
            with np.errstate(all="ignore"):
                found = as_numpy(sampler.log_density(x))
                log = np.asarray(found, dtype=np.float64)
        except KullbackError:
            raise
        except (
            ArithmeticError,
            AssertionError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise ShapeError(
                f"expected a log-density of {which} that accepts draws of {name} of shape {np.shape(x)}, got the error "
                f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error
        epsilons.append(np.finfo(found.dtype if found.dtype.kind == "f" else np.float64).eps)
        logs.append(log)
    log_p, log_q = logs
    if not log_p.shape == log_q.shape == (draws,):
        raise ShapeError(
            f"expected a log-density for each of {draws} draws, got shapes {log_p.shape} of p and {log_q.shape} of q: "
            "p and q must be distributions on the same space"
        )
    if name == "q":  # outside the support of p a log-density may be nan, as the log of a negative number is
        log_p = np.where(np.isnan(log_p), -inf, log_p)
    for which, values in (("p", log_p), ("q", log_q)):
        bad = np.isnan(values) | (values == inf) | ((values == -inf) if which == name else False)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise SupportError(
                f"expected finite log-densities at draws of {name}, but the log-density of {which} is {values[first]} "
                f"at {_point(x, first)}"
            )
    sizes = np.abs(np.concatenate(logs))
    return log_p, log_q, 4 * float(max(epsilons)) * (1 + float(sizes[sizes < inf].max(initial=0.0)))


def _point(x: Array, index: int) -> str:
    """One draw as text on one line."""
    return " ".join(str(x[index].tolist()).split())


def _contradictions(d: Array, excess: Array, reverse: Array | None, precision: float) -> list[str]:
    """The reasons why the draws and the log-densities cannot belong to two normalized distributions."""
    noise = 5 * float(excess.std()) / np.sqrt(d.size) + precision
    above, below = float(excess.mean()) > noise, float(excess.mean()) < -noise
    cause = "a density is not normalized, or the draws do not follow it"
    if above:
        return [f"the mean of q/p at draws of p is {1 + excess.mean():.6g}, but it is at most 1: {cause}"]
    if reverse is None:
        tail = hill_index(excess + 1)
        if below and tail < 0.5:
            return [
                f"the mean of q/p at draws of p is {1 + excess.mean():.6g}: q is not normalized, or it has mass "
                "outside the support of p; without draws of q it is not known which"
            ]
        return []
    forward, backward = np.exp(np.minimum(d, 0.0)), np.exp(np.minimum(reverse, 0.0))
    means = float(forward.mean()), float(backward.mean())
    if min(_effective_count(forward), _effective_count(backward)) >= 50:
        variance = float(forward.var()) / d.size + float(backward.var()) / reverse.size
        noise = 5 * np.sqrt(variance) + precision
    else:  # the variance of a variable in [0, 1] with mean m is at most m (1 - m)
        variance = max(means) * (1 - max(means)) * (1 / d.size + 1 / reverse.size)
        noise = 5 * np.sqrt(variance) + 25 / min(d.size, reverse.size) + precision
    if abs(means[0] - means[1]) > noise:
        return [
            f"E_p[min(1, q/p)] is {means[0]:.6g} at draws of p, but the equal E_q[min(1, p/q)] is {means[1]:.6g} at "
            f"draws of q: {cause}"
        ]
    return []


def _effective_count(values: Array) -> float:
    """(sum of the values)^2 / sum of their squares: the number of equal values with the same relative variance."""
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / squares if squares > 0 else 0.0


def heavy_tail_index(terms: Array) -> float:
    """The Hill estimate of the tail index of the terms if their variance appears to be infinite, and 0 otherwise.

    The estimate is above 1/2 also for terms whose tail is exponential or log-normal but whose smaller values are nearly
    equal. Farther in such a tail it is smaller, and no single term contributes much of the variance.
    """
    deviations = np.abs(terms - np.median(terms))
    index = hill_index(deviations)
    if not 0.5 < index < inf:
        return index if index == inf else 0.0
    squares = (deviations / deviations.max()) ** 2
    farther = hill_index(deviations, max(int(terms.size**0.4), 10))
    return index if farther > 0.5 or squares.sum() < 5 else 0.0


def hill_index(values: Array, count: int | None = None) -> float:
    """The Hill estimate of the tail index of values: moments of order 1/index and above are infinite.

    `count` is the number of the largest values that are used, 3 sqrt(n) if it is None, and at most a fifth of them.
    """
    count = min(int(3 * np.sqrt(values.size)) if count is None else count, values.size // 5)
    if count == 0:
        return 0.0
    top = np.sort(values)[-count - 1 :]
    if not top[0] > 0 or not np.isfinite(top[-1]):
        return inf if top[-1] == inf else 0.0
    return float(np.log(top[1:] / top[0]).mean())
