"""KL for the Laplace, Cauchy, half-Cauchy, logistic and Gumbel distributions."""

from typing import Any

import numpy as np

from kullback import families as f
from kullback.closed_forms.registry import closed_form, where_equal
from kullback.numerics.arrays import Array, broadcast_arrays, elementwise_with_gradient, holds, sign
from kullback.numerics.log_sinhc import log_sinhc_slope
from kullback.numerics.phi import log_ratio, phi, ratio_residual
from kullback.numerics.special import erf

__all__: list[str] = []


@closed_form((f.Laplace, f.Laplace))
def kl_laplace_laplace(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Laplace(loc1, scale1) and Q = Laplace(loc2, scale2).

    phi(log(scale1/scale2)) + (scale1/scale2) phi(-|loc1 - loc2|/scale1), where phi(d) = e^d - 1 - d.
    """
    spread = _laplace_spread(xp, *broadcast_arrays(xp, p.scale / q.scale, p.loc - q.loc, p.scale, q.scale))
    return ratio_residual(xp, p.scale, q.scale) + spread


# Automatic differentiation with respect to the scale of p would subtract terms of the size of |loc1 - loc2|/scale1.
_laplace_spread = elementwise_with_gradient(
    lambda xp, ratio, distance, scale, q_scale: xp.where(
        abs(distance) / scale < np.inf, ratio * phi(-abs(distance) / scale), abs(distance) / q_scale
    ),
    lambda xp, _gradient, _output, ratio, *_: xp.zeros_like(ratio),
    lambda xp, gradient, _output, _ratio, distance, scale, q_scale: (
        gradient * -xp.expm1(-abs(distance) / scale) * sign(xp, distance) / q_scale
    ),
    lambda xp, gradient, _output, _ratio, distance, scale, q_scale: (
        gradient * _laplace_spread_slope(xp, abs(distance) / scale) / q_scale
    ),
    lambda _xp, gradient, output, _ratio, _distance, _scale, q_scale: -gradient * output / q_scale,
)


def _laplace_spread_slope(xp: Any, z: Array) -> Array:
    """The derivative of s phi(-D/s) with respect to s, at z = D/s: (1 + z) e^-z - 1."""
    near = z < 1
    small = xp.where(near, z, 0.0)
    return xp.where(near, phi(-small) + small * xp.expm1(-small), (1 + z) * xp.exp(-z) - 1)


@closed_form((f.Cauchy, f.Cauchy))
def kl_cauchy_cauchy(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Cauchy(loc1, scale1) and Q = Cauchy(loc2, scale2).

    log(1 + ((scale1 - scale2)^2 + (loc1 - loc2)^2) / (4 scale1 scale2)).

    References:
        Frédéric Chyzak and Frank Nielsen (2019), "A closed-form formula for the Kullback-Leibler divergence between
        Cauchy distributions", theorem 1 [chyzak2019].
    """
    difference, distance = p.scale - q.scale, p.loc - q.loc
    squares = (difference / p.scale * (difference / q.scale) + distance / p.scale * (distance / q.scale)) / 4
    return _log1p_of_squares(xp, squares, p.scale, q.scale, difference, distance)


@closed_form((f.HalfCauchy, f.HalfCauchy))
def kl_half_cauchy_half_cauchy(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = HalfCauchy(scale1) and Q = HalfCauchy(scale2).

    log(1 + (scale1 - scale2)^2 / (4 scale1 scale2)), which equals KL(Cauchy(0, scale1) || Cauchy(0, scale2)).
    """
    difference = p.scale - q.scale
    squares = difference / p.scale * (difference / q.scale) / 4
    return _log1p_of_squares(xp, squares, p.scale, q.scale, difference, xp.zeros_like(difference))


def _log1p_of_squares(xp: Any, squares: Array, scale_p: Array, scale_q: Array, a: Array, b: Array) -> Array:
    """log(1 + squares) for squares = (a^2 + b^2)/(4 scale_p scale_q), also where `squares` overflows."""
    fits = squares < np.inf
    if holds(xp.all(fits)):
        return xp.log1p(squares)
    a, b = abs(a), abs(b)
    large = xp.where(fits, 1.0, xp.maximum(a, b))
    ratio = xp.where(fits, 0.0, xp.minimum(a, b) / large)
    far = 2 * xp.log(large) + xp.log1p(ratio * ratio) - np.log(4) - xp.log(scale_p) - xp.log(scale_q)
    return xp.where(fits, xp.log1p(xp.where(fits, squares, 0.0)), far)


@closed_form((f.Logistic, f.Logistic))
def kl_logistic_logistic(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Logistic(loc1, scale) and Q = Logistic(loc2, scale), with equal scales.

    d (coth(d/2) - 2/d) = d coth(d/2) - 2 with d = (loc1 - loc2)/scale. No closed form is known for unequal scales.
    """
    d = (p.loc - q.loc) / q.scale
    return where_equal(xp, p, q, "scale", d * log_sinhc_slope(xp, d / 2))


@closed_form((f.Normal, f.Laplace))
def kl_normal_laplace(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Normal(loc1, scale1) and Q = Laplace(loc2, scale2).

    (scale1/scale2) m + log(scale2/scale1) + (log(2/pi) - 1)/2, where m = E_P|x - loc2|/scale1
    = sqrt(2/pi) exp(-z^2/2) + z erf(z/sqrt(2)) with z = (loc1 - loc2)/scale1.
    """
    z, ratio = (p.loc - q.loc) / p.scale, p.scale / q.scale
    spread = _normal_spread(xp, *broadcast_arrays(xp, z, ratio, p.loc - q.loc, p.scale, q.scale))
    return spread + log_ratio(xp, q.scale, p.scale) + 0.5 * (np.log(2 / np.pi) - 1)


# Automatic differentiation with respect to the scale of p would subtract terms of the size of z.
_normal_spread = elementwise_with_gradient(
    lambda xp, z, ratio, distance, _scale, q_scale: xp.where(
        abs(z) < np.inf,
        ratio * (np.sqrt(2 / np.pi) * xp.exp(-z * z / 2) + z * erf(xp, z / np.sqrt(2))),
        abs(distance) / q_scale,
    ),
    lambda xp, _gradient, _output, z, *_: xp.zeros_like(z),
    lambda xp, _gradient, _output, z, *_: xp.zeros_like(z),
    lambda xp, gradient, _output, _z, _ratio, distance, scale, q_scale: (
        gradient * erf(xp, distance / scale / np.sqrt(2)) / q_scale
    ),
    lambda xp, gradient, _output, _z, _ratio, distance, scale, q_scale: (
        gradient * np.sqrt(2 / np.pi) * xp.exp(-((distance / scale) ** 2) / 2) / q_scale
    ),
    lambda _xp, gradient, output, _z, _ratio, _distance, _scale, q_scale: -gradient * output / q_scale,
)


@closed_form((f.Uniform, f.Laplace))
def kl_uniform_laplace(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Uniform(low, high) and Q = Laplace(loc, scale).

    (w/scale) m + log(2) - log(w/scale) with w = high - low, where m = E_P|x - loc|/w. With below = (loc - low)/w and
    above = (high - loc)/w, m = (below^2 + above^2)/2 for loc inside the interval, and |below - above|/2 outside.
    """
    width = p.high - p.low
    below, above = (q.loc - p.low) / width, (p.high - q.loc) / width
    inside = (below >= 0) & (above >= 0)
    # The derivative of the last branch with respect to the width is 0; the quotients would cancel to it.
    middle = abs((q.loc - p.low) - (p.high - q.loc)) / (2 * q.scale)
    deviation = xp.where(inside, width / q.scale * ((below * below + above * above) / 2), middle)
    return deviation + np.log(2) - log_ratio(xp, width, q.scale)


@closed_form((f.Laplace, f.Gumbel), infinite=lambda _xp, p, q: p.scale >= q.scale)
def kl_laplace_gumbel(xp: Any, p: Any, q: Any) -> Array:
    """KL(P || Q) for P = Laplace(loc1, scale1) and Q = Gumbel(loc2, scale2).

    z + exp(-z)/(1 - r^2) - 1 - log(2) - log(r) with z = (loc1 - loc2)/scale2 and r = scale1/scale2. The result is `inf`
    for scale1 >= scale2, where E_P exp(-x/scale2) is infinite.
    """
    ratio, z = p.scale / q.scale, (p.loc - q.loc) / q.scale
    finite, small = p.scale < q.scale, p.scale < q.scale / 2
    # The derivative of 1 - r^2 does not cancel for small r, and its value as a product does not for r near 1.
    near = xp.where(finite, (q.scale - p.scale) / q.scale * (1 + ratio), 1.0)
    tail = xp.where(small, 1 - ratio * ratio, near)
    return xp.where(finite, z + xp.exp(-z) / tail - 1 - np.log(2) - log_ratio(xp, p.scale, q.scale), np.inf)
