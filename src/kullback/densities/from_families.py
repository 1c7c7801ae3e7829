"""The density of each record on the line: SciPy's, or our own where SciPy has none, underflows, or loses an end."""

from collections.abc import Callable
from dataclasses import fields, replace
from math import exp, inf, log, pi, remainder
from typing import Any

import numpy as np
from scipy import special, stats

from kullback import families
from kullback.densities import count_pmfs as of_counts
from kullback.densities.density import Density
from kullback.densities.from_scipy import of_continuous
from kullback.errors import ParameterError, ShapeError
from kullback.numerics.arrays import Array, untracked

__all__ = ["in_float64", "known_on_the_line", "of_record"]


def of_record(record: families.Distribution) -> Density | None:
    """The density of a record, or None if it is not one on the line.

    Raises:
        ShapeError: The parameters are a batch.
    """
    kind = type(record)
    if kind not in _MADE_OF:
        return None
    numbers = [_number(record, field.name) for field in fields(record)]  # pyright: ignore[reportArgumentType]
    with np.errstate(all="ignore"):
        return _MADE_OF[kind](*numbers)


def known_on_the_line(kind: type[families.Distribution]) -> bool:
    """Whether the records of a class have a density on the line here."""
    return kind in _MADE_OF


def in_float64(record: families.Distribution) -> families.Distribution:
    """The same with its parameters in float64, if it is of numbers on the line."""
    if type(record) not in _MADE_OF or isinstance(record, families.NormalMixture):
        return record
    values = {field.name: getattr(record, field.name) for field in fields(record)}  # pyright: ignore[reportArgumentType]
    given = {name: np.asarray(untracked(value), np.float64) for name, value in values.items() if value is not None}
    return type(record)(**given)


def _number(record: families.Distribution, name: str) -> Any:
    value = getattr(record, name)
    if value is None:
        return None
    array = np.asarray(untracked(value), dtype=np.float64)
    if isinstance(record, families.NormalMixture):
        return array
    if array.size != 1:
        raise ShapeError(
            f"expected numbers, one distribution at a time, but {type(record).__name__}'s {name} has shape "
            f"{array.shape}; measure each of them"
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


def _laplace(loc: float, scale: float) -> Density:
    # SciPy takes the log of a density that underflows.
    return Density(
        lambda origin, offset: -np.abs((origin - loc) + offset) / scale - log(2 * scale),
        (-inf, inf),
        ((loc, scale),),
        sample=lambda count, rng: rng.laplace(loc, scale, count),
    )


def _pareto(scale: float, alpha: float) -> Density:
    def log_density(origin: Array, offset: Array) -> Array:
        # As log1p near the end, where x - scale is what has digits.
        distance = ((origin - scale) + offset) / scale
        value = log(alpha / scale) - (alpha + 1) * np.log1p(np.maximum(distance, 0.0))
        return np.where(distance >= 0, value, -inf)

    middle = scale * 2 ** min(1 / alpha, 300.0)
    return Density(
        log_density,
        (scale, inf),
        ((middle, middle - scale),),
        (scale,),
        sample=lambda count, rng: scale * (1 + rng.pareto(alpha, count)),
    )


def _unit(log_density: Callable[[Array, Array], Array], frozen: Any, sample: Any) -> Density:
    """A density on (0, 1) from its logarithm by x and 1 - x."""

    def from_ends(origin: Array, offset: Array) -> Array:
        x, rest = origin + offset, (1 - origin) - offset
        inside = (x >= 0) & (rest >= 0)
        return np.where(inside, log_density(np.where(inside, x, 0.5), np.where(inside, rest, 0.5)), -inf)

    lower, middle, upper = frozen([0.25, 0.5, 0.75])
    width = max(float(upper - lower) / 2, 1e-290)
    return Density(from_ends, (0.0, 1.0), ((float(middle), width),), (0.0, 1.0), sample=sample)


def _power(a: float, x: Array, rest: Array) -> Array:
    """a log x, from the smaller of x and 1 - x."""
    return np.where(x < 0.5, special.xlogy(a, x), special.xlog1py(a, -rest))


def _beta(concentration1: float, concentration0: float) -> Density:
    a, b = concentration1, concentration0
    return _unit(
        lambda x, rest: _power(a - 1, x, rest) + _power(b - 1, rest, x) - special.betaln(a, b),
        lambda levels: special.betaincinv(a, b, levels),
        lambda count, rng: rng.beta(a, b, count),
    )


def _kumaraswamy(concentration1: float, concentration0: float) -> Density:
    a, b = concentration1, concentration0

    def log_density(x: Array, rest: Array) -> Array:
        # log(1 - x^a), with x^a = e^power
        power = _power(a, x, rest)
        log_rest = np.where(power > -0.7, np.log(-np.expm1(power)), np.log1p(-np.exp(power)))
        return log(a) + log(b) + _power(a - 1, x, rest) + np.where(log_rest == 0, 0.0, (b - 1) * log_rest)

    def quantile(level: Array) -> Array:
        return np.exp(np.log(-np.expm1(np.log1p(-np.asarray(level)) / b)) / a)

    return _unit(log_density, quantile, lambda count, rng: quantile(rng.random(count)))


def _continuous_bernoulli(probs: float | None, logits: float | None) -> Density:
    slope = float(special.logit(probs)) if logits is None else float(logits)
    if abs(slope) == inf:
        raise ParameterError(f"expected ContinuousBernoulli's probs to be in (0, 1), got {probs}: it has no density")
    size = abs(slope)
    # log of the integral of e^(-size t), 0 < t < 1; and t is measured from the end where the density is largest.
    mass = log(-np.expm1(-size) / size) if size > 0 else 0.0

    def quantile(level: Array) -> Array:
        t = -np.log1p(np.asarray(level) * np.expm1(-size)) / size if size > 0 else np.asarray(level)
        return 1 - t[::-1] if slope > 0 else t

    return _unit(
        lambda x, rest: -size * (rest if slope > 0 else x) - mass,
        quantile,
        lambda count, rng: quantile(np.sort(rng.random(count))),
    )


def _f(df1: float, df2: float) -> Density:
    ratio = df1 / df2
    constant = log(ratio) - float(special.betaln(df1 / 2, df2 / 2))

    def log_density(origin: Array, offset: Array) -> Array:
        # In parts that are small where p is not: what is rounded of them is what nearly equal ones differ by.
        z = ratio * (origin + offset)
        near, far = np.where(z < 1, np.maximum(z, 0.0), 0.5), np.where(z < 1, 1.0, z)
        small = special.xlogy(df1 / 2 - 1, near) - (df1 + df2) / 2 * np.log1p(near)
        large = -np.log(far) - df1 / 2 * np.log1p(1 / far) - df2 / 2 * np.log1p(far)
        return np.where(z >= 0, constant + np.where(z < 1, small, large), -inf)

    return replace(of_continuous(stats.f, df1, df2), log_density=log_density)


_SHORT_OF_2_PI = 2.4492935982947064e-16


def _von_mises(loc: float, concentration: float) -> Density:
    # Exactly, but for what 2 pi as a float is short of 2 pi.
    centre = remainder(loc, 2 * pi)
    rest = round((loc - centre) / (2 * pi)) * _SHORT_OF_2_PI
    width = min(1.0, concentration**-0.5 if concentration > 0 else 1.0)
    constant = log(2 * pi * float(special.i0e(concentration)))

    def log_density(origin: Array, offset: Array) -> Array:
        inside = np.abs(origin + offset) <= pi
        return np.where(
            inside, -2 * concentration * np.sin(((origin - centre) + offset + rest) / 2) ** 2 - constant, -inf
        )

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
            "measure each of them"
        )
    kept = weights > 0
    weights, locs, scales = weights[kept], locs[kept], scales[kept]
    logs = np.log(weights / weights.sum()) - np.log(scales) - 0.5 * log(2 * pi)

    def log_density(origin: Array, offset: Array) -> Array:
        z = ((origin[..., None] - locs) + offset[..., None]) / scales
        parts = logs - z * z / 2
        top = parts.max(axis=-1)
        total = top + np.log(np.exp(parts - np.where(top > -inf, top, 0.0)[..., None]).sum(axis=-1))
        return np.where(top > -inf, total, -inf)

    def sample(count: int, rng: Any) -> Array:
        which = rng.choice(weights.size, count, p=weights / weights.sum())
        return rng.normal(locs[which], scales[which])

    return Density(
        log_density,
        (-inf, inf),
        tuple(zip(locs.tolist(), scales.tolist(), strict=True)),
        sample=sample,
    )


def _log_odds(probs: float | None, logits: float | None) -> float:
    return float(special.logit(probs)) if logits is None else logits


_MADE_OF: dict[type, Callable[..., Density]] = {
    families.Beta: _beta,
    families.ContinuousBernoulli: _continuous_bernoulli,
    families.Kumaraswamy: _kumaraswamy,
    families.Laplace: _laplace,
    families.NormalMixture: _normal_mixture,
    families.Pareto: _pareto,
    families.TanhNormal: _tanh_normal,
    families.Uniform: _uniform,
    families.VonMises: _von_mises,
    families.Zipf: of_counts.zipf,
    families.Normal: _normal,
    families.Cauchy: lambda loc, scale: of_continuous(stats.cauchy, loc=loc, scale=scale),
    families.Logistic: lambda loc, scale: of_continuous(stats.logistic, loc=loc, scale=scale),
    families.Gumbel: lambda loc, scale: of_continuous(stats.gumbel_r, loc=loc, scale=scale),
    families.StudentT: lambda df, loc, scale: of_continuous(stats.t, df, loc=loc, scale=scale),
    families.Exponential: lambda rate: of_continuous(stats.expon, scale=1 / rate),
    families.Gamma: lambda concentration, rate: of_continuous(stats.gamma, concentration, scale=1 / rate),
    families.ChiSquared: lambda df: of_continuous(stats.chi2, df),
    families.InverseGamma: lambda concentration, rate: of_continuous(stats.invgamma, concentration, scale=rate),
    families.Weibull: lambda scale, concentration: of_continuous(stats.weibull_min, concentration, scale=scale),
    families.Rayleigh: lambda scale: of_continuous(stats.rayleigh, scale=scale),
    families.Maxwell: lambda scale: of_continuous(stats.maxwell, scale=scale),
    families.HalfNormal: lambda scale: of_continuous(stats.halfnorm, scale=scale),
    families.HalfCauchy: lambda scale: of_continuous(stats.halfcauchy, scale=scale),
    families.LogNormal: lambda loc, scale: of_continuous(stats.lognorm, scale, scale=exp(loc)),
    families.InverseGaussian: lambda mean, shape: of_continuous(stats.invgauss, mean / shape, scale=shape),
    families.F: _f,
    families.Bernoulli: lambda *p: of_counts.binomial(1.0, _log_odds(*p)),
    families.Binomial: lambda count, *p: of_counts.binomial(count, _log_odds(*p)),
    families.Geometric: lambda *p: of_counts.negative_binomial(1.0, -_log_odds(*p)),
    families.NegativeBinomial: lambda count, *p: of_counts.negative_binomial(count, _log_odds(*p)),
    families.Poisson: of_counts.poisson,
    families.Zipfian: of_counts.zipfian,
    families.Hypergeometric: of_counts.hypergeometric,
}
