"""KL divergence of any two distributions as an estimate: by a formula, within a bound, or from draws."""

from collections.abc import Callable
from dataclasses import fields, replace
from math import inf
from typing import Any, Literal, TypeVar

import numpy as np
from array_api_compat import is_array_api_obj

from kullback.densities.convert import as_components, as_density, as_sampler
from kullback.densities.from_families import in_float64
from kullback.densities.gaussian_mixtures import mixture_bounds
from kullback.densities.quadrature import kl_quadrature
from kullback.densities.summation import kl_summation
from kullback.densities.verdict import infinite
from kullback.distributions import as_record, kl, shared_bases
from kullback.errors import NoClosedFormError, ShapeError, SupportError
from kullback.families import Categorical, Distribution, Independent
from kullback.numerics.arrays import untracked
from kullback.result import Estimate, Status
from kullback.samples.monte_carlo import kl_monte_carlo

__all__ = ["measure", "seen_as"]

_View = TypeVar("_View")

_METHODS = ("closed form", "quadrature", "Monte Carlo")
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
            `scipy.stats`, a Gaussian mixture made by `kullback.densities.gaussian_mixtures.components`, or any
            object with `log_prob(x)` and `sample(count)`.
        q: Another. Where p and q are both arrays or lists, they are probabilities, shape (n,).
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
        NotNormalizedError: Probabilities do not sum to 1.
        SupportError: A log-density is nan, `error` is not above 0, or `method` is none of the three.

    Example:
        >>> from kullback.families import Cauchy, Logistic, Normal, StudentT
        >>> measure(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=2.0)).status
        'exact'
        >>> estimate = measure(StudentT(df=5.0, loc=0.0, scale=1.0), Logistic(loc=0.0, scale=1.0))
        >>> round(estimate.value, 12), estimate.status, estimate.method, estimate.error < 1e-10
        (0.091582858462, 'bounded', 'quadrature', True)
        >>> measure(Cauchy(loc=0.0, scale=1.0), Normal(loc=0.0, scale=1.0)).value
        inf
    """
    if not error > 0:
        raise SupportError(f"expected error > 0, got {error!r}; quadrature can bound it by 1e-10 or so")
    if method not in (None, *_METHODS):
        raise SupportError(f"expected method to be one of {', '.join(map(repr, _METHODS))} or None, got {method!r}")
    if _are_numbers(p) and _are_numbers(q):
        p, q = Categorical(probs=p), Categorical(probs=q)
    if method in (None, "closed form"):
        exact = _closed_form(p, q, error)
        if exact is not None:
            return exact
    for given in (p, q):
        _require_distribution(given)
    p, q = _without_shared_map(p, q)
    if method in (None, "quadrature"):
        bounded = _within_bound(p, q, error)
        if bounded is not None:
            return bounded
    if method in (None, "Monte Carlo"):
        estimated = _from_draws(p, q, draws, seed, confidence)
        if estimated is not None:
            return estimated
    by = f"no {method} for it" if method else "no closed form, no densities on the line and no draws"
    raise NoClosedFormError(
        f"expected a way to KL({_name(p)} || {_name(q)}), but there is {by}; pass objects with log_prob(x) and "
        "sample(count) to estimate it from draws"
    )


def _are_numbers(given: Any) -> bool:
    return type(given) in (list, tuple) or is_array_api_obj(given)


def _closed_form(p: Any, q: Any, error: float) -> Estimate | None:
    try:
        result = untracked(kl(_in_float64(p), _in_float64(q)))
    except (NoClosedFormError, TypeError):
        return None
    array = np.asarray(result)
    if array.size != 1:
        raise ShapeError(
            f"expected one distribution at a time, got a batch of shape {array.shape}; kl takes batches, measure one "
            "after another"
        )
    value = float(array.reshape(()))
    if value == inf:
        found = _within_bound(p, q, error)
        where = found.warnings[0] if found is not None and found.value == inf else "by the closed form"
        return infinite(where, "closed form")
    rounding = 0.0 if array.dtype == np.float64 else 8 * float(np.finfo(array.dtype).eps) * value
    interval = (value - rounding, value + rounding)
    return Estimate(value, error=rounding, interval=interval, method="closed form", status="exact")


def _within_bound(p: Any, q: Any, error: float) -> Estimate | None:
    left, right = seen_as(as_density, p), seen_as(as_density, q)
    if left is not None and right is not None:
        if left.discrete != right.discrete:
            kinds = ["of counts" if density.discrete else "of a continuum" for density in (left, right)]
            return infinite(f"p is a distribution {kinds[0]}, q one {kinds[1]}: q is 0 where p is not", "supports")
        return (kl_summation if left.discrete else kl_quadrature)(left, right, error=error)
    p, q = _known(p), _known(q)
    if isinstance(p, Independent) and isinstance(q, Independent):
        return _of_independent(p, q, error)
    return None


def _from_draws(p: Any, q: Any, draws: int, seed: int, confidence: float) -> Estimate | None:
    left, right = seen_as(as_sampler, p), seen_as(as_sampler, q)
    if left is None or right is None:
        return None
    estimate = kl_monte_carlo(left, right, draws=draws, seed=seed, confidence=confidence)
    parts_p, parts_q = seen_as(as_components, p), seen_as(as_components, q)
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


def _of_independent(p: Independent, q: Independent, error: float) -> Estimate | None:
    """The sum over the parts."""
    parts_p, parts_q = _parts(p), _parts(q)
    if len(parts_p) != len(parts_q):
        raise ShapeError(f"expected as many independent parts, got {len(parts_p)} of p and {len(parts_q)} of q")
    estimates = []
    for pair in zip(parts_p, parts_q, strict=True):
        estimate = _closed_form(*pair, error) or _within_bound(*pair, error)
        if estimate is None:
            return None
        estimates.append(estimate)
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


def _parts(independent: Independent) -> list[Distribution]:
    base = independent.base
    values = {field.name: getattr(base, field.name) for field in fields(base)}
    given = {name: np.asarray(untracked(value)) for name, value in values.items() if value is not None}
    shape = np.broadcast_shapes(*(value.shape for value in given.values()))
    if len(shape) != independent.event_dims:
        raise ShapeError(f"expected one distribution at a time, got a batch of shape {shape}; measure each of them")
    given = {name: np.broadcast_to(value, shape) for name, value in given.items()}
    return [type(base)(**{name: value[index] for name, value in given.items()}) for index in np.ndindex(shape)]


def _without_shared_map(p: Any, q: Any) -> tuple[Any, Any]:
    """Their bases, which have densities where floats leave none of the images: near 1, as of tanh."""
    left, right = _known(p), _known(q)
    if isinstance(left, Independent) and isinstance(right, Independent) and left.event_dims == right.event_dims:
        bases = _without_shared_map(left.base, right.base)
        if bases == (left.base, right.base):
            return p, q
        left, right = (Independent(base=base, event_dims=left.event_dims) for base in bases)
        return left, right
    try:
        bases = shared_bases(left, right)
    except NoClosedFormError:
        return p, q
    return _without_shared_map(*bases) if bases else (p, q)


def _known(distribution: Any) -> Any:
    """Its record if it has one, or else itself."""
    try:
        return as_record(distribution)
    except (NoClosedFormError, TypeError):
        return distribution


def _in_float64(distribution: Any) -> Any:
    record = _known(distribution)
    return in_float64(record) if isinstance(record, Distribution) else distribution


def seen_as(view: Callable[[Any], _View | None], distribution: Any) -> _View | None:
    """What can be known of its record; or else of itself."""
    found = view(_known(distribution))
    return view(distribution) if found is None else found


def _require_distribution(given: Any) -> None:
    known = any(hasattr(given, name) for name in ("log_prob", "logpdf", "logpmf")) or as_components(given) is not None
    if not known and not isinstance(given, Distribution):
        raise TypeError(
            f"expected a distribution, got {_name(given)}: a record of kullback.families, a distribution of PyTorch or "
            "SciPy, or an object with log_prob(x) and sample(count)"
        )


def _name(distribution: Any) -> str:
    return type(distribution).__name__
