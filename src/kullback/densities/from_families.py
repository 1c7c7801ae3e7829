"""The univariate density of each family: from its `scipy_form`, or from a function here that keeps more accuracy.

SciPy evaluates a density at x; near a finite end of the support the distance to that end is then rounded. The densities
below evaluate at origin + offset, and use the offset where the origin is that end.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from math import ceil, floor, inf, isfinite, log, log2, pi, remainder
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import special, stats

from kullback import families
from kullback.densities import count_pmfs
from kullback.densities.density import Density
from kullback.densities.from_scipy import density_of_form
from kullback.densities.positive_densities import (
    chi_squared,
    dirichlet_log_density,
    f,
    gamma,
    inverse_gamma,
    log_beta,
    weibull,
)
from kullback.errors import ParameterError, ShapeError, SupportError
from kullback.numerics.arrays import Array, as_numpy
from kullback.numerics.normal_interval import normal_interval

__all__ = [
    "absolute_value",
    "as_density",
    "has_density",
    "in_float64",
    "is_absolute_value",
    "scipy_vector",
    "vector_log_density",
]

_BLOCK = 2**16  # values of component densities that are computed at once, which fit into the cache
_MANY = 64  # components from which equal neighbours share the points around which panels are refined


def as_density(record: families.Distribution) -> Density | None:
    """The density or probability mass function of a distribution; None if its values are vectors.

    Raises:
        ShapeError: The parameters are a batch.
        SupportError: The values exceed float64.
    """
    kind = type(record)
    if not has_density(kind) and kind is not families.Categorical:
        return None
    parameters = {field.name: _scalar(record, field.name) for field in fields(record)}  # pyright: ignore[reportArgumentType]
    with np.errstate(all="ignore"):
        if kind is families.Categorical:
            return _categorical(*parameters.values())
        if kind in _DENSITIES:
            return _DENSITIES[kind](*parameters.values())
        assert kind.scipy_form is not None
        try:
            return density_of_form(kind.scipy_form, SimpleNamespace(**parameters))
        except OverflowError as error:
            raise SupportError(
                f"expected values of {kind.__name__} inside the range of float64, but with the parameters {parameters} "
                "they exceed 1.8e308; measure the distribution of log x or of x / constant"
            ) from error


def has_density(kind: type[families.Distribution]) -> bool:
    """Whether a family has a univariate density or probability mass function."""
    return kind in _DENSITIES or getattr(kind, "scipy_form", None) is not None


def in_float64(record: families.Distribution) -> families.Distribution:
    """The distribution with float64 NumPy arrays as parameters if it consists of univariate ones, or is in 16 bits."""
    if isinstance(record, families.Transformed | families.Independent):
        return replace(record, base=in_float64(record.base))
    values = {field.name: getattr(record, field.name) for field in fields(record)}  # pyright: ignore[reportArgumentType]
    has_half = any("float16" in str(getattr(value, "dtype", "")) for value in values.values())
    if not has_half and (not has_density(type(record)) or isinstance(record, families.NormalMixture)):
        return record
    given = {name: as_numpy(value, np.float64) for name, value in values.items() if value is not None}
    return type(record)(**given)


def scipy_vector(record: families.Distribution) -> Any:
    """The frozen distribution of SciPy that equals a multivariate distribution; None if SciPy has none, or for a batch.

    An estimate from samples uses its log-density and its draws.
    """
    if type(record) not in _SCIPY_VECTORS:
        return None
    values = {field.name: getattr(record, field.name) for field in fields(record)}  # pyright: ignore[reportArgumentType]
    given = {name: as_numpy(value, np.float64) for name, value in values.items() if value is not None}
    try:
        return _SCIPY_VECTORS[type(record)](**given)
    except ValueError as invalid:
        raise ParameterError(
            f"expected parameters of one {type(record).__name__} that scipy.stats accepts: {invalid}"
        ) from invalid


def vector_log_density(record: families.Distribution) -> Callable[[Array], Array] | None:
    """The log-density of a distribution of vectors that has more digits than SciPy's; None if there is none."""
    if not isinstance(record, families.Dirichlet):
        return None
    return dirichlet_log_density(as_numpy(record.concentration, np.float64))


def is_absolute_value(record: families.Distribution) -> bool:
    """Whether this is the distribution of |x|, with the transform given as "abs" or as PyTorch's AbsTransform."""
    if not isinstance(record, families.Transformed):
        return False
    parts = record.transform if isinstance(record.transform, tuple) else (record.transform,)
    return len(parts) == 1 and (parts[0] == "abs" or type(parts[0]).__name__ == "AbsTransform")


def absolute_value(base: Density) -> Density:
    """The density of |x|, which at x >= 0 is the sum of the base density at x and at -x."""
    low, high = base.support

    def log_density(origin: Array, offset: Array) -> Array:
        logs = np.logaddexp(base.log_density(origin, offset), base.log_density(-origin, -offset))
        return np.where(origin + offset >= 0, logs, -inf)

    ends = ((end, (high - low) / 4) for end in base.support if isfinite(high - low))
    anchors = tuple((abs(location), width) for location, width in (*base.anchors, *ends))
    sample = base.sample and (lambda count, rng: abs(base.sample(count, rng)))  # pyright: ignore[reportOptionalCall]
    return Density(log_density, (max(low, -high, 0.0), max(high, -low)), anchors, sample=sample)


def _scalar(record: families.Distribution, name: str) -> Any:
    value = getattr(record, name)
    if value is None:
        return None
    array = as_numpy(value, np.float64)
    if isinstance(record, families.NormalMixture | families.Categorical):
        return array
    if array.size != 1:
        raise ShapeError(
            f"expected scalar parameters, one distribution at a time, but {type(record).__name__}'s {name} has shape "
            f"{array.shape}; measure each distribution separately"
        )
    return float(array.reshape(()))


def _uniform(low: float, high: float) -> Density:
    def log_density(origin: Array, offset: Array) -> Array:
        x = origin + offset
        return np.where((x >= low) & (x <= high), -log(high - low), -inf)

    return Density(
        log_density,
        (low, high),
        (((low + high) / 2, (high - low) / 4),),
        (low, high),
        sample=lambda count, rng: rng.uniform(low, high, count),
    )


def _normal(loc: float, scale: float) -> Density:
    constant = -log(scale) - 0.5 * log(2 * pi)

    def log_density(origin: Array, offset: Array) -> Array:
        z = ((origin - loc) + offset) / scale
        return constant - z * z / 2

    return Density(
        log_density,
        (-inf, inf),
        ((loc, 0.6744897501960817 * scale),),
        sample=lambda count, rng: rng.normal(loc, scale, count),
    )


def _truncated_normal(loc: float, scale: float, low: float, high: float) -> Density:
    nodes = normal_interval(np, *(np.asarray(value, np.float64) for value in (loc, scale, low, high)))
    mode, slope = float(nodes.mode), float(nodes.slope)
    constant = -float(np.log(nodes.weight.sum()))

    def log_density(origin: Array, offset: Array) -> Array:
        z = ((origin - mode) + offset) / scale
        inside = ((origin - low) + offset >= 0) & ((origin - high) + offset <= 0)
        return np.where(inside, constant - z * (slope + z / 2), -inf)

    width = min(0.67 * scale / (1 + abs(slope)), (high - low) / 4)
    return Density(
        log_density,
        (low, high),
        ((mode, width),),
        tuple(end for end in (low, high) if isfinite(end)),
        sample=lambda count, rng: stats.truncnorm.rvs(
            (low - loc) / scale, (high - loc) / scale, loc, scale, count, random_state=rng
        ),
    )


def _laplace(loc: float, scale: float) -> Density:
    # SciPy computes the logarithm of a density that underflows.
    return Density(
        lambda origin, offset: -np.abs((origin - loc) + offset) / scale - log(2 * scale),
        (-inf, inf),
        ((loc, scale),),
        sample=lambda count, rng: rng.laplace(loc, scale, count),
    )


def _pareto(scale: float, alpha: float) -> Density:
    def log_density(origin: Array, offset: Array) -> Array:
        # log1p of the distance to the end, which is accurate where x / scale is rounded.
        distance = ((origin - scale) + offset) / scale
        value = log(alpha) - log(scale) - (alpha + 1) * np.log1p(np.maximum(distance, 0.0))
        return np.where(distance >= 0, value, -inf)

    middle = scale * 2 ** min(1 / alpha, 300.0)
    return Density(
        log_density,
        (scale, inf),
        ((middle, middle - scale),),
        (scale,),
        sample=lambda count, rng: scale * (1 + rng.pareto(alpha, count)),
    )


def _unit(log_density: Callable[[Array, Array], Array], quantile: Any, sample: Any) -> Density:
    """A density on (0, 1) from its logarithm as a function of x and 1 - x, and its quantile function."""

    def from_ends(origin: Array, offset: Array) -> Array:
        x, complement = origin + offset, (1 - origin) - offset
        inside = (x >= 0) & (complement >= 0)
        return np.where(inside, log_density(np.where(inside, x, 0.5), np.where(inside, complement, 0.5)), -inf)

    lower, middle, upper = quantile([0.25, 0.5, 0.75])
    width = max(float(upper - lower) / 2, 1e-290)
    return Density(from_ends, (0.0, 1.0), ((float(middle), width),), (0.0, 1.0), sample=sample)


def _log_power(a: float, x: Array, complement: Array) -> Array:
    """a log x, computed from the smaller of x and complement = 1 - x."""
    return np.where(x < 0.5, special.xlogy(a, x), special.xlog1py(a, -complement))


def _beta(concentration1: float, concentration0: float) -> Density:
    a, b = concentration1, concentration0
    narrow, log_normaliser = dirichlet_log_density(np.asarray([a, b])), log_beta(a, b)

    def log_density(x: Array, y: Array) -> Array:
        if narrow is not None:
            return narrow(np.stack([x, y], axis=-1))
        return _log_power(a - 1, x, y) + _log_power(b - 1, y, x) - log_normaliser

    def quantile(levels: Array) -> Array:
        values = special.betaincinv(a, b, levels)
        if np.isfinite(values).all():
            return values
        # SciPy has no quantiles of very narrow distributions, which are nearly normal.
        mean, count = a / (a + b), a + b
        return mean + (mean * (1 - mean) / (count + 1)) ** 0.5 * special.ndtri(levels)

    return _unit(
        log_density,
        quantile,
        lambda count, rng: rng.beta(a, b, count),
    )


def _kumaraswamy(concentration1: float, concentration0: float) -> Density:
    a, b = concentration1, concentration0

    def log_density(x: Array, complement: Array) -> Array:
        power = _log_power(a, x, complement)
        log1m_power = np.where(power > -0.7, np.log(-np.expm1(power)), np.log1p(-np.exp(power)))  # log(1 - x^a)
        tail = np.where(log1m_power == 0, 0.0, (b - 1) * log1m_power)
        return log(a) + log(b) + _log_power(a - 1, x, complement) + tail

    def quantile(level: Array) -> Array:
        return np.exp(np.log(-np.expm1(np.log1p(-np.asarray(level)) / b)) / a)

    return _unit(log_density, quantile, lambda count, rng: quantile(rng.random(count)))


def _continuous_bernoulli(probs: float | None, logits: float | None) -> Density:
    slope = float(special.logit(probs)) if logits is None else float(logits)
    if abs(slope) == inf:
        raise ParameterError(f"expected ContinuousBernoulli's probs in (0, 1), where it has a density, got {probs}")
    size = abs(slope)
    # log of the integral of e^(-size t) over 0 < t < 1, where t is the distance to the end with the largest density
    mass = log(-np.expm1(-size) / size) if size > 0 else 0.0

    def quantile(level: Array) -> Array:
        t = -np.log1p(np.asarray(level) * np.expm1(-size)) / size if size > 0 else np.asarray(level)
        return 1 - t[::-1] if slope > 0 else t

    return _unit(
        lambda x, complement: -size * (complement if slope > 0 else x) - mass,
        quantile,
        lambda count, rng: quantile(np.sort(rng.random(count))),
    )


_TWO_PI_ERROR = 2.4492935982947064e-16  # 2 pi minus its float64 approximation


def _von_mises(loc: float, concentration: float) -> Density:
    # loc is reduced modulo 2 pi; `correction` is the error of the reduction with 2 pi rounded to float64.
    centre = remainder(loc, 2 * pi)
    correction = round((loc - centre) / (2 * pi)) * _TWO_PI_ERROR
    width = min(1.0, concentration**-0.5 if concentration > 0 else 1.0)
    constant = log(2 * pi * float(special.i0e(concentration)))

    def log_density(origin: Array, offset: Array) -> Array:
        inside = np.abs(origin + offset) <= pi
        half_angle = ((origin - centre) + offset + correction) / 2
        return np.where(inside, -2 * concentration * np.sin(half_angle) ** 2 - constant, -inf)

    opposite = centre - pi if centre > 0 else centre + pi
    return Density(
        log_density,
        (-pi, pi),
        ((centre, width), (opposite, width)),
        (-pi, pi),
        sample=lambda count, rng: rng.vonmises(centre, concentration, count),
    )


def _tanh_normal(loc: float, scale: float) -> Density:
    def log_density(origin: Array, offset: Array) -> Array:
        above, below = (1 + origin) + offset, (1 - origin) - offset
        inside = (above > 0) & (below > 0)
        above, below = np.where(inside, above, 1.0), np.where(inside, below, 1.0)
        z = (0.5 * (np.log(above) - np.log(below)) - loc) / scale
        value = -z * z / 2 - log(scale) - 0.5 * log(2 * pi) - np.log(above) - np.log(below)
        return np.where(inside, value, -inf)

    lower, middle, upper = np.tanh(loc + scale * special.ndtri([0.25, 0.5, 0.75]))
    return Density(
        log_density,
        (-1.0, 1.0),
        ((float(middle), max(float(upper - lower) / 2, 1e-16)),),
        (-1.0, 1.0),
        sample=lambda count, rng: np.tanh(rng.normal(loc, scale, count)),
    )


def _normal_mixture(weights: Array, locs: Array, scales: Array) -> Density:
    weights, locs, scales = np.broadcast_arrays(weights, locs, scales)
    if locs.ndim != 1:
        raise ShapeError(
            f"expected one distribution at a time, but NormalMixture's parameters have shape {locs.shape}; "
            "measure each distribution separately"
        )
    positive = weights > 0
    weights, locs, scales = weights[positive], locs[positive], scales[positive]
    logs = np.log(weights / weights.sum()) - np.log(scales) - 0.5 * log(2 * pi)

    def log_density(origin: Array, offset: Array) -> Array:
        size = np.size(origin) * locs.size
        if size <= _BLOCK:
            return block(origin, offset)
        origin, offset = np.broadcast_arrays(origin, offset)
        parts = ceil(size / _BLOCK)
        pieces = zip(np.array_split(origin.ravel(), parts), np.array_split(offset.ravel(), parts), strict=True)
        return np.concatenate([block(*piece) for piece in pieces]).reshape(origin.shape)

    def block(origin: Array, offset: Array) -> Array:
        # In place, because allocating arrays of this size takes longer than the arithmetic.
        # The components are along the first axis, because sums over a short last axis take longer.
        loc, scale, log_factor = (part.reshape(-1, *[1] * np.ndim(origin)) for part in (locs, scales, logs))
        terms = np.asarray(origin) - loc
        terms += offset
        terms /= scale
        terms *= terms
        terms /= -2
        terms += log_factor
        largest = terms.max(axis=0)
        terms -= np.where(largest > -inf, largest, 0.0)
        total = largest + np.log(np.exp(terms, out=terms).sum(axis=0))
        return np.where(largest > -inf, total, -inf)

    def sample(count: int, rng: Any) -> Array:
        component = rng.choice(weights.size, count, p=weights / weights.sum())
        return rng.normal(locs[component], scales[component])

    return Density(log_density, (-inf, inf), _separate(locs, scales), sample=sample)


def _separate(locs: Array, scales: Array) -> tuple[tuple[float, float], ...]:
    """The locations and scales of normals; of many normals, without those that are close to another of equal scale."""
    pairs = list(zip(locs.tolist(), scales.tolist(), strict=True))
    if len(pairs) <= _MANY:
        return tuple(pairs)
    kept: dict[tuple[int, float], tuple[float, float]] = {}
    for loc, scale in pairs:
        width = 2.0 ** floor(log2(scale))
        kept.setdefault((floor(loc / width), width), (loc, scale))
    return tuple(kept.values())


def _categorical(probs: Array | None, logits: Array | None) -> Density:
    given = probs if probs is not None else logits
    assert given is not None
    if given.ndim != 1:
        raise ShapeError(
            f"expected one distribution at a time, but Categorical's parameter has shape {given.shape}; measure each "
            "distribution separately"
        )
    with np.errstate(divide="ignore"):
        logs = special.log_softmax(given) if probs is None else np.log(given / given.sum())
    positive = np.flatnonzero(logs > -inf)
    low, high = float(positive[0]), float(positive[-1])

    def log_density(origin: Array, offset: Array) -> Array:
        k = origin + offset
        inside = (k >= low) & (k <= high)
        return np.where(inside, logs[np.where(inside, k, low).astype(np.int64)], -inf)

    return Density(
        log_density,
        (low, high),
        ((low, 1.0), (high, 1.0)),
        discrete=True,
        sample=lambda count, rng: rng.choice(logs.size, count, p=np.exp(logs)),
    )


def _log_odds(probs: float | None, logits: float | None) -> float:
    return float(special.logit(probs)) if logits is None else logits


# The densities that SciPy lacks, or computes less accurately. Every other density is computed by `scipy_form`.
_DENSITIES: dict[type, Callable[..., Density]] = {
    families.Beta: _beta,
    families.ChiSquared: chi_squared,
    families.ContinuousBernoulli: _continuous_bernoulli,
    families.Gamma: gamma,
    families.InverseGamma: inverse_gamma,
    families.Kumaraswamy: _kumaraswamy,
    families.Laplace: _laplace,
    families.NormalMixture: _normal_mixture,
    families.Pareto: _pareto,
    families.TanhNormal: _tanh_normal,
    families.TruncatedNormal: _truncated_normal,
    families.Uniform: _uniform,
    families.Weibull: weibull,
    families.VonMises: _von_mises,
    families.Zipf: count_pmfs.zipf,
    families.Normal: _normal,
    families.F: f,
    families.Bernoulli: lambda *p: count_pmfs.binomial(1.0, _log_odds(*p)),
    families.Binomial: lambda count, *p: count_pmfs.binomial(count, _log_odds(*p)),
    families.Geometric: lambda *p: count_pmfs.negative_binomial(1.0, -_log_odds(*p)),
    families.NegativeBinomial: lambda count, *p: count_pmfs.negative_binomial(count, _log_odds(*p)),
    families.Poisson: count_pmfs.poisson,
    families.Zipfian: count_pmfs.zipfian,
    families.Hypergeometric: count_pmfs.hypergeometric,
}


def _scipy_multinomial(total_count: Any = 1.0, *, probs: Array | None = None, logits: Array | None = None) -> Any:
    p = np.asarray(special.softmax(logits, axis=-1) if probs is None else probs)
    return stats.multinomial(int(total_count), p / p.sum(axis=-1, keepdims=True))


def _scipy_wishart(df: Array, *, covariance_matrix: Array | None = None, scale_tril: Array | None = None) -> Any:
    return stats.wishart(float(df), covariance_matrix if scale_tril is None else scale_tril @ scale_tril.T)


# Families whose values are vectors or matrices, with the frozen distribution of SciPy.
_SCIPY_VECTORS: dict[type, Callable[..., Any]] = {
    families.Dirichlet: lambda concentration: stats.dirichlet(concentration),
    families.InverseWishart: lambda df, scale_matrix: stats.invwishart(float(df), scale_matrix),
    families.Multinomial: _scipy_multinomial,
    families.OneHotCategorical: _scipy_multinomial,
    families.VonMisesFisher: lambda mean_direction, concentration: stats.vonmises_fisher(
        mean_direction,
        float(concentration),  # pyright: ignore[reportArgumentType]
    ),
    families.Wishart: _scipy_wishart,
}
