"""KL between normal distributions, and KL of other families to a normal distribution."""

from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.numerics.arrays import Array, holds
from kullback.numerics.log_gamma import binet, binet_slope
from kullback.numerics.phi import log_ratio, phi, ratio_residual

__all__ = ["kl_to_normal"]

_LOG_2_PI_E = np.log(2 * np.pi) + 1


@closed_form((f.Normal, f.Normal), (f.LogNormal, f.LogNormal), (f.TanhNormal, f.TanhNormal))
def kl_normal_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Normal(loc1, scale1) and Q = Normal(loc2, scale2), or LogNormal, or TanhNormal for both.

    phi(2 log(scale1/scale2))/2 + ((loc1 - loc2)/scale2)^2/2, where phi(d) = e^d - 1 - d. The same formula holds for two
    LogNormal and for two TanhNormal distributions, because an invertible transform does not change KL. The logarithms
    of scales that were given as logarithms are subtracted.
    """
    difference = (p.loc - q.loc) / q.scale
    logs = getattr(p, "log_scale", None), getattr(q, "log_scale", None)
    if all(log is None for log in logs):
        log = log_ratio(xp, p.scale, q.scale)
    else:
        first, second = (xp.log(side.scale) if log is None else log for side, log in zip((p, q), logs, strict=True))
        log = first - second
    return phi(2 * log) / 2 + difference * (difference / 2)


def kl_to_normal(
    xp: Any,
    mean: Array,
    variance: Array,
    negentropy: Array | float,
    q: Any,
    deviation: tuple[Array | float, Array | float],
) -> Array:
    """KL of a distribution with known mean, variance and negentropy to q = Normal(loc, scale).

    negentropy + phi(log(variance/scale^2))/2 + ((mean - loc)/scale)^2/2, where the negentropy is KL to the normal
    distribution with the same mean and variance. The result is `inf` where the variance is infinite. `deviation` is the
    square root of the variance as two factors, which are used where the variance or scale^2 overflows or underflows.
    """
    square = q.scale * q.scale
    least = float(xp.finfo(square.dtype).smallest_normal)
    fits = (variance >= least) & (variance < np.inf) & (square >= least) & (square < np.inf)
    difference = (mean - q.loc) / q.scale
    distance = difference * (difference / 2)  # the square may overflow although its half does not
    if holds(xp.all(fits)):
        return negentropy + (ratio_residual(xp, variance, square) / 2 + distance)
    factors = [xp.where(fits, 1.0, factor * xp.ones_like(square)) for factor in deviation]
    finite = (factors[0] < np.inf) & (factors[1] < np.inf)
    first, second = (xp.where(finite, factor, 1.0) for factor in factors)
    squares = ratio_residual(xp, xp.where(fits, variance, 1.0), xp.where(fits, square, 1.0))
    # The factors are multiplied, unless the product overflows or underflows, because the deviation may equal the scale.
    product, scale = first * second, xp.where(fits, 1.0, q.scale)
    whole = (product >= least) & (product < np.inf)
    log = log_ratio(xp, xp.where(whole, product, first), scale) + xp.where(whole, 0.0, xp.log(second))
    moments = xp.where(fits, squares, phi(2 * log)) / 2 + distance
    # Infinite moments would give inf - inf = nan.
    return xp.where(finite, negentropy + moments, np.inf)


@closed_form((f.Laplace, f.Normal))
def kl_laplace_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Laplace(loc1, scale1) and Q = Normal(loc2, scale2).

    N + phi(log(v/scale2^2))/2 + ((loc1 - loc2)/scale2)^2/2 with the variance v = 2 scale1^2 and the negentropy
    N = (log(2 pi e) - log(2))/2 - 1, where phi(d) = e^d - 1 - d.
    """
    return kl_to_normal(xp, p.loc, 2 * p.scale * p.scale, (_LOG_2_PI_E - np.log(2)) / 2 - 1, q, (p.scale, 2**0.5))


@closed_form((f.Logistic, f.Normal))
def kl_logistic_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Logistic(loc1, scale1) and Q = Normal(loc2, scale2).

    N + phi(log(v/scale2^2))/2 + ((loc1 - loc2)/scale2)^2/2 with the variance v = (pi scale1)^2/3 and the negentropy
    N = (log(2 pi e) + log(pi^2/3))/2 - 2, where phi(d) = e^d - 1 - d.
    """
    negentropy = (_LOG_2_PI_E + np.log(np.pi**2 / 3)) / 2 - 2
    return kl_to_normal(xp, p.loc, (np.pi * p.scale) ** 2 / 3, negentropy, q, (p.scale, np.pi / 3**0.5))


@closed_form((f.Uniform, f.Normal))
def kl_uniform_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Uniform(low, high) and Q = Normal(loc, scale).

    N + phi(log(v/scale^2))/2 + ((m - loc)/scale)^2/2 with the mean m = low + w/2 and the variance v = w^2/12 for
    w = high - low, and the negentropy N = (log(2 pi e) - log(12))/2, where phi(d) = e^d - 1 - d.
    """
    width = p.high - p.low
    negentropy = (_LOG_2_PI_E - np.log(12)) / 2
    return kl_to_normal(xp, p.low + width / 2, width * width / 12, negentropy, q, (width, 12**-0.5))


@closed_form((f.StudentT, f.Normal), infinite=lambda _xp, p, _q: p.df <= 2)
def kl_student_t_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = StudentT(df, loc1, scale1) and Q = Normal(loc2, scale2).

    N + phi(log(v/scale2^2))/2 + ((loc1 - loc2)/scale2)^2/2 with the variance v = scale1^2 a/(a - 1) for a = df/2, where
    phi(d) = e^d - 1 - d. With b = a + 1/2 and J(a) = lgamma(a) - (a - 1/2) log(a) + a - log(2 pi)/2, the negentropy is
    N = -(log(1 - 1/a) + log(1 + 1/(2a)))/2 - 1/(4a) - b (J'(b) - J'(a)) + J(b) - J(a).
    The result is `inf` for df <= 2, where the variance is infinite.
    """
    has_variance = p.df > 2
    a = xp.where(has_variance, p.df, 3.0) / 2
    b = a + 0.5
    negentropy = (
        -(xp.log1p(-1 / a) + xp.log1p(0.5 / a)) / 2
        - 0.25 / a
        - b * (binet_slope(xp, b) - binet_slope(xp, a))
        + (binet(xp, b) - binet(xp, a))
    )
    variance = xp.where(has_variance, p.scale * p.scale * (a / (a - 1)), np.inf)
    deviation = xp.where(has_variance, xp.sqrt(a / (a - 1)), np.inf)
    return kl_to_normal(xp, p.loc, variance, negentropy, q, (p.scale, deviation))


@closed_form((f.Pareto, f.Normal), infinite=lambda _xp, p, _q: p.alpha <= 2)
def kl_pareto_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Pareto(scale1, alpha) and Q = Normal(loc, scale2).

    N + phi(log(v/scale2^2))/2 + ((m - loc)/scale2)^2/2 with the mean m = scale1 alpha/(alpha - 1) and the variance
    v = scale1^2 c for c = alpha/((alpha - 1)^2 (alpha - 2)), and the negentropy
    N = (log(2 pi e) + log(c))/2 - 1 - 1/alpha + log(alpha), where phi(d) = e^d - 1 - d.
    The result is `inf` for alpha <= 2, where the variance is infinite.
    """
    has_variance = p.alpha > 2
    alpha = xp.where(has_variance, p.alpha, 3.0)
    shape = alpha / ((alpha - 1) ** 2 * (alpha - 2))
    variance = xp.where(has_variance, p.scale * p.scale * shape, np.inf)
    # The square of alpha may overflow.
    deviation = xp.sqrt(alpha / (alpha - 2)) / (alpha - 1)
    log_shape = xp.where(shape >= float(xp.finfo(shape.dtype).smallest_normal), xp.log(shape), 2 * xp.log(deviation))
    negentropy = (_LOG_2_PI_E + log_shape) / 2 - 1 - 1 / alpha + xp.log(alpha)
    factors = p.scale, xp.where(has_variance, deviation, np.inf)
    return kl_to_normal(xp, p.scale * (alpha / (alpha - 1)), variance, negentropy, q, factors)


@closed_form((f.Pareto, f.LogNormal))
def kl_pareto_log_normal(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Pareto(scale1, alpha) and Q = LogNormal(loc, scale2).

    N + phi(log(v/scale2^2))/2 + ((m - loc)/scale2)^2/2, where phi(d) = e^d - 1 - d. Under P, log x is log(scale1) plus
    an exponential variable, with the mean m = log(scale1) + 1/alpha, the variance v = 1/alpha^2 and the negentropy
    N = (log(2 pi e) - 2)/2.
    """
    return kl_to_normal(xp, xp.log(p.scale) + 1 / p.alpha, 1 / p.alpha**2, (_LOG_2_PI_E - 2) / 2, q, (1 / p.alpha, 1.0))
