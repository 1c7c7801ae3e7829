"""KL divergence of any two distributions as an estimate: by a formula, within a bound, or from draws."""

from dataclasses import fields, replace
from math import inf
from typing import Any, Literal

import numpy as np

from kullback._arrays import untracked
from kullback.densities.mixtures import mixture_bounds
from kullback.densities.monte_carlo import kl_monte_carlo
from kullback.densities.of_objects import as_components, as_density, as_sampler
from kullback.densities.quadrature import kl_quadrature
from kullback.densities.summation import kl_summation
from kullback.densities.sums import infinite, support_gap
from kullback.distributions import as_record, kl
from kullback.errors import NoClosedFormError, ShapeError, SupportError
from kullback.families import Independent, Record
from kullback.result import Estimate, Status

__all__ = ["measure"]

_TRUST: list[Status] = ["exact", "bounded", "estimated", "unreliable"]


def measure(
    p: Any,
    q: Any,
    *,
    error: float = 1e-10,
    method: Literal["closed form", "quadrature", "Monte Carlo"] | None = None,
    draws: int = 65_536,
    seed: int = 0,
    confidence: float = 0.95,
) -> Estimate:
    """KL(p || q) of two distributions, in nats, with what is known of its error.

    KL(p || q) = E_p[log p(x) - log q(x)], by the pair's closed form; else by adaptive quadrature or summation of
    p phi(log q/p), whose `error` bounds what is missing; else, for vectors, from draws of p.

    Args:
        p: One distribution: a record of `kullback.families`, an object of `torch.distributions`, a distribution of
            `scipy.stats`, a mixture of normals as `kullback.densities.mixtures.components` makes it, or any object
            with `log_prob(x)` and `sample(count)`.
        q: Another.
        error: How large a bound is good enough, in nats where KL is below 1, relative to KL above.
        method: The one way to take, where it is not to be chosen; summation counts as quadrature.
        draws: How many draws, where it comes to that.
        seed: Of the draws.
        confidence: With which the interval of draws is to hold the truth.

    Returns:
        An `Estimate`: status "exact" by a closed form, and where KL is known to be `inf` (`warnings` say where q is
        0, or which tail of p is too heavy); "bounded" within `error`; "estimated" from draws, with `std_error`; or
        "unreliable", where `warnings` say what is amiss.

    Raises:
        NoClosedFormError: Neither a closed form, nor a density on the line, nor draws can be had.
        ParameterError: A parameter lies outside its set.
        TypeError: p or q is no distribution.
        ShapeError: p or q is a batch, or they are no distributions on one space.
        SupportError: A log-density is nan, or `error` is not above 0.

    Example:
        >>> from kullback.families import Cauchy, Normal, StudentT
        >>> measure(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=2.0)).status
        'exact'
        >>> estimate = measure(StudentT(df=5.0, loc=0.0, scale=1.0), Normal(loc=0.0, scale=1.0))
        >>> round(estimate.value, 12), estimate.status, estimate.method, estimate.error < 1e-10
        (0.124769194124, 'bounded', 'quadrature', True)
        >>> measure(Cauchy(loc=0.0, scale=1.0), Normal(loc=0.0, scale=1.0)).value
        inf
    """
    if not error > 0:
        raise SupportError(f"expected error > 0, got {error!r}; quadrature can bound it by 1e-10 or so")
    if method in (None, "closed form"):
        exact = _closed_form(p, q)
        if exact is not None:
            return exact
        if method is not None:
            raise NoClosedFormError(f"KL({_name(p)} || {_name(q)}) has no closed form here; leave method out")
    p, q = _known(p), _known(q)
    for distribution in (p, q):
        _require_distribution(distribution)
    if method != "Monte Carlo":
        if isinstance(p, Independent) and isinstance(q, Independent):
            return _of_independent(p, q, error=error, method=method)
        left, right = as_density(p), as_density(q)
        if left is not None and right is not None:
            if left.discrete != right.discrete:
                kinds = ["of counts" if density.discrete else "of a continuum" for density in (left, right)]
                return infinite(f"p is a distribution {kinds[0]}, q one {kinds[1]}: q is 0 where p is not", "supports")
            return (kl_summation if left.discrete else kl_quadrature)(left, right, error=error)
        if method is not None:
            raise NoClosedFormError(f"expected two densities on the line, got {_name(p)} and {_name(q)}")
    return _from_draws(p, q, draws, seed, confidence)


def _closed_form(p: Any, q: Any) -> Estimate | None:
    try:
        value = np.asarray(untracked(kl(_known(p), _known(q))))
    except (NoClosedFormError, TypeError):
        return None
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith("kullback.integrations"):
            raise
        return None
    if value.size != 1:
        raise ShapeError(
            f"expected one distribution at a time, got a batch of shape {value.shape}; kl takes batches, measure one "
            "after another"
        )
    value = float(value.reshape(()))
    if value == inf:
        left, right = as_density(_known(p)), as_density(_known(q))
        gap = support_gap(left, right) if left is not None and right is not None else ""
        return infinite(gap or "by the closed form", "closed form")
    return Estimate(value, error=0.0, interval=(value, value), method="closed form", status="exact")


def _from_draws(p: Any, q: Any, draws: int, seed: int, confidence: float) -> Estimate:
    left, right = as_sampler(p), as_sampler(q)
    if left is None or right is None:
        missing = _name(p if left is None else q)
        raise NoClosedFormError(
            f"KL({_name(p)} || {_name(q)}) has no closed form here, and {missing} no density that is known; pass "
            "objects with log_prob(x) and sample(count) to estimate it from draws"
        )
    estimate = kl_monte_carlo(left, right, draws=draws, seed=seed, confidence=confidence)
    parts_p, parts_q = as_components(p), as_components(q)
    if parts_p is None or parts_q is None or estimate.interval is None:
        return estimate
    bounds, (low, high) = mixture_bounds(parts_p, parts_q), estimate.interval
    said = f"the variational value {bounds.variational:.6g} and the upper bound {bounds.upper:.6g}"
    if low > bounds.upper:
        warning = f"{said} are below what the draws give: too few draws decide it"
        return replace(estimate, status="unreliable", warnings=(*estimate.warnings, warning))
    if not low <= bounds.variational <= high:
        estimate = replace(estimate, warnings=(*estimate.warnings, f"{said} do not meet: the value is from draws"))
    return replace(estimate, interval=(low, min(high, bounds.upper)))


def _of_independent(p: Independent, q: Independent, **options: Any) -> Estimate:
    """The sum over the parts."""
    pairs = list(zip(_parts(p), _parts(q), strict=True))
    estimates = [measure(*pair, **options) for pair in pairs]
    worst = max(estimates, key=lambda estimate: _TRUST.index(estimate.status))
    value, error = sum(estimate.value for estimate in estimates), sum(estimate.error for estimate in estimates)
    return Estimate(
        value,
        error=error,
        interval=(max(0.0, value - error), value + error) if value < inf else (inf, inf),
        method=worst.method,
        status=worst.status,
        warnings=tuple(dict.fromkeys(warning for estimate in estimates for warning in estimate.warnings)),
    )


def _parts(independent: Independent) -> list[Record]:
    base = independent.base
    values = {field.name: getattr(base, field.name) for field in fields(base)}
    given = {name: np.asarray(untracked(value)) for name, value in values.items() if value is not None}
    shape = np.broadcast_shapes(*(value.shape for value in given.values()))
    if len(shape) != independent.event_dims:
        raise ShapeError(f"expected one distribution at a time, got a batch of shape {shape}; measure each of them")
    given = {name: np.broadcast_to(value, shape) for name, value in given.items()}
    return [type(base)(**{name: value[index] for name, value in given.items()}) for index in np.ndindex(shape)]


def _known(distribution: Any) -> Any:
    """Its record if it has one, or else itself."""
    try:
        return as_record(distribution)
    except (NoClosedFormError, TypeError):
        return distribution
    except ModuleNotFoundError as missing:  # no adapter
        if not (missing.name or "").startswith("kullback.integrations"):
            raise
        return distribution


def _require_distribution(given: Any) -> None:
    known = any(hasattr(given, name) for name in ("log_prob", "logpdf", "logpmf")) or as_components(given) is not None
    if not known and not isinstance(given, Record):
        raise TypeError(
            f"expected a distribution, got {_name(given)}: a record of kullback.families, a distribution of PyTorch or "
            "SciPy, or an object with log_prob(x) and sample(count)"
        )


def _name(distribution: Any) -> str:
    return type(distribution).__name__
