"""Entropy and cross-entropy of distributions as an estimate: exact, within an error bound, or from samples."""

from contextlib import suppress
from dataclasses import replace
from math import inf, isfinite
from typing import Any

import numpy as np

from kullback.densities.entropy import entropy_of
from kullback.densities.point_masses import kl_of_point_masses
from kullback.densities.resolve import ResolvedDistribution
from kullback.distributions import entropy
from kullback.errors import NoClosedFormError, ShapeError
from kullback.families import Independent
from kullback.measure import (
    components_of,
    measure,
    require_distribution,
    require_error,
    resolve_all,
    sum_of_estimates,
)
from kullback.numerics.arrays import as_numpy
from kullback.result import Estimate
from kullback.samples.monte_carlo import cross_entropy_monte_carlo, require_options

__all__ = ["measure_cross_entropy", "measure_entropy"]


def measure_entropy(
    p: Any, *, error: float = 1e-10, draws: int = 65_536, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """The entropy H(p) of a distribution, with a bound or an estimate of its error.

    H(p) = -E_p[log p(x)]: the entropy of a discrete distribution, or the differential entropy of a continuous
    distribution, which may be negative. The closed form is used if there is one. Otherwise the entropy of a univariate
    distribution, or of a product of univariate distributions, is computed by adaptive quadrature or summation, and the
    entropy of another distribution is estimated from samples.

    Args:
        p: A distribution, or probabilities of shape (n,), as in `kullback.measure`. A log-density without a closed form
            must be normalized; quadrature checks this, and samples cannot.
        error: The largest acceptable error bound of quadrature and summation: in nats where |H(p)| is below 1, relative
            to |H(p)| above 1.
        draws: The number of samples of a Monte Carlo estimate.
        seed: The seed of the random generator of a Monte Carlo estimate.
        confidence: The coverage probability of the interval of a Monte Carlo estimate.

    Returns:
        An `Estimate` in nats. Its status is "exact" for a closed form, "bounded" if `error` bounds the error of the
        value, "estimated" if the value is from samples, with `std_error`, and "unreliable" if `warnings` states why
        the value may be wrong, such as tails for which the entropy may be infinite.

    Raises:
        NoClosedFormError: p has no closed form, no univariate density and no sampler.
        ParameterError: A parameter is outside its domain.
        DistributionTypeError: p is not a distribution.
        ShapeError: p is a batch of distributions.
        NotNormalizedError: Probabilities do not sum to 1.
        SupportError: A log-density is nan, or `error`, `draws`, `seed` or `confidence` is outside its domain.

    Example:
        >>> from kullback.families import Poisson, StudentT
        >>> measure_entropy(StudentT(df=5.0, loc=0.0, scale=1.0)).status
        'exact'
        >>> estimate = measure_entropy(Poisson(rate=7.5))
        >>> round(estimate.value, 9), estimate.status, estimate.method
        (2.41433598, 'bounded', 'summation')
    """
    require_error(error)
    require_options(draws, seed, confidence)
    [p] = resolve_all(p)
    found = _without_draws(p, error)
    return _from_draws(p, p, draws, seed, confidence) if found is None else found


def measure_cross_entropy(
    p: Any, q: Any, *, error: float = 1e-10, draws: int = 65_536, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """The cross-entropy H(p, q) = H(p) + KL(p || q) of two distributions, with a bound or an estimate of its error.

    H(p, q) = -E_p[log q(x)]. It is the sum of `kullback.measure_entropy` and `kullback.measure`. If the entropy of p
    can only be estimated from samples, it is the mean of -log q at samples of p.

    Args:
        p: A distribution, or probabilities of shape (n,), as in `kullback.measure`.
        q: A distribution or probabilities, as `p`.
        error: The largest acceptable error bound of H(p) and of KL(p || q) by quadrature and summation: in nats below
            1, relative above 1.
        draws: The number of samples of a Monte Carlo estimate.
        seed: The seed of the random generator of a Monte Carlo estimate.
        confidence: The coverage probability of the interval of a Monte Carlo estimate.

    Returns:
        An `Estimate` in nats with the status of the less accurate of the two parts; `inf` where KL(p || q) is. The
        cross-entropy of continuous distributions may be negative.

    Raises:
        NoClosedFormError: A part has no closed form, no univariate densities and no sampler.
        ParameterError: A parameter is outside its domain.
        DistributionTypeError: p or q is not a distribution.
        ShapeError: p or q is a batch, or p and q are distributions on different spaces.
        NotNormalizedError: Probabilities do not sum to 1.
        SupportError: A log-density is nan, or `error`, `draws`, `seed` or `confidence` is outside its domain.

    Example:
        >>> from kullback.families import Logistic, Normal
        >>> p, q = Normal(loc=0.0, scale=1.0), Logistic(loc=0.0, scale=1.0)
        >>> estimate = measure_cross_entropy(p, q)
        >>> round(estimate.value, 9), estimate.status
        (1.612118367, 'bounded')
    """
    require_error(error)
    p, q = resolve_all(p, q)
    divergence = measure(p, q, error=error, draws=draws, seed=seed, confidence=confidence)
    own = _without_draws(p, error)
    if divergence.value == inf:
        return divergence
    if own is None:
        return _from_draws(p, q, draws, seed, confidence)
    total = sum_of_estimates([own, divergence])
    low, high = divergence.interval or (0.0, inf)
    return replace(
        total,
        std_error=divergence.std_error,
        count=divergence.count,
        method=own.method if divergence.method == "closed form" else divergence.method,
        interval=(own.value - own.error + low, own.value + own.error + high),
    )


def _without_draws(p: ResolvedDistribution, error: float) -> Estimate | None:
    """The entropy by a closed form, quadrature or summation; None where only samples can estimate it."""
    value = None
    if p.family is not None:
        with suppress(NoClosedFormError):
            value = as_numpy(entropy(p.family_in_float64))
    if value is not None:
        if value.size != 1:
            raise ShapeError(
                f"expected one distribution at a time, got a batch of shape {value.shape}; call kullback.entropy for a "
                "batch, or measure each distribution separately"
            )
        if isfinite(float(value.reshape(()))):
            return _exact(float(value.reshape(())), float(np.finfo(value.dtype).eps))
    require_distribution(p)
    if (point := kl_of_point_masses(p, p)) is not None:  # the entropy of a point mass is 0, as the KL to itself is
        return point
    if p.density is not None:
        return entropy_of(p.density, error=error)
    if isinstance(p.family, Independent):
        parts = [_without_draws(component, error) for component in components_of(p.family)]
        known = [part for part in parts if part is not None]
        return sum_of_estimates(known) if len(known) == len(parts) else None
    return None


def _exact(value: float, epsilon: float) -> Estimate:
    rounding = 0.0 if epsilon == np.finfo(np.float64).eps else 8 * epsilon * max(1.0, abs(value))
    interval = (value - rounding, value + rounding)
    return Estimate(value, error=rounding, interval=interval, method="closed form", status="exact")


def _from_draws(p: ResolvedDistribution, q: ResolvedDistribution, draws: int, seed: int, confidence: float) -> Estimate:
    if p.sampler is None or p.sampler.sample is None or q.sampler is None:
        raise NoClosedFormError(
            f"expected a method to compute the entropy of {type(p.given).__name__}, but it has no closed form, no "
            "univariate density and no sampler; pass an object with log_prob(x) and sample(count)"
        )
    return cross_entropy_monte_carlo(p.sampler, q.sampler, draws=draws, seed=seed, confidence=confidence)
