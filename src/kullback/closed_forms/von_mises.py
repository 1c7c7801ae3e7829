"""Directions: von Mises and von Mises-Fisher variables.

Their normalisers are Bessel functions, of which neither PyTorch nor JAX has those that are needed, and whose logs
cancel. So the integrals that define them are summed instead, with t = tanh(s), s = s0 + a sinh(u): in u the trapezoidal
rule is right to the last digit, for any concentration and dimension.
"""

from typing import Any

import numpy as np
from array_api_compat import device

from kullback import families as f
from kullback.closed_forms.registry import closed_form
from kullback.errors import ShapeError
from kullback.numerics.arrays import Array
from kullback.numerics.phi import phi

__all__: list[str] = []

_NODES = np.linspace(-5, 5, 201)


@closed_form((f.VonMises, f.VonMises))
def von_mises(xp: Any, p: Any, q: Any) -> Array:
    """The residual of the log-normaliser at its tangent, and k2 A(k1) (1 - cos(m1 - m2)), A(k1) = E_p cos(x - m1)."""
    residual, resultant = _residual(xp, p.concentration, q.concentration, 2)
    return residual + 2 * q.concentration * resultant * xp.sin((p.loc - q.loc) / 2) ** 2


@closed_form((f.VonMisesFisher, f.VonMisesFisher))
def von_mises_fisher(xp: Any, p: Any, q: Any) -> Array:
    """The same in any dimension, with |m1 - m2|^2/2 for 1 - cos."""
    sizes = [d.mean_direction.shape[-1] if d.mean_direction.ndim else 0 for d in (p, q)]
    if sizes[0] != sizes[1] or sizes[0] < 2:
        raise ShapeError(
            "expected mean_direction of as many dimensions, two or more, got shapes "
            f"{tuple(p.mean_direction.shape)} and {tuple(q.mean_direction.shape)}"
        )
    residual, resultant = _residual(xp, p.concentration, q.concentration, sizes[0])
    distance = xp.sum((p.mean_direction - q.mean_direction) ** 2, axis=-1)
    return residual + q.concentration * resultant * distance / 2


def _residual(xp: Any, k1: Array, k2: Array, dimension: int) -> tuple[Array, Array]:
    """log Z(k2) - log Z(k1) - (k2 - k1) A(k1) and A(k1), Z(k) integrating exp(k t) (1 - t^2)^((n - 3)/2)."""
    k1, k2 = xp.broadcast_arrays(k1, k2)
    h = k2 - k1
    y, logs = _nodes(xp, k1, dimension)
    weights = xp.exp(logs - xp.max(logs, axis=-1, keepdims=True))
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    mean = xp.sum(weights * y, axis=-1)
    resultant = k1 / (dimension - 1) * xp.sum(weights * (y * (2 - y)), axis=-1)
    # Within one standard deviation, the residual as log E_p exp(d).
    shift = mean[..., None] - y
    near = (h * h * xp.sum(weights * shift * shift, axis=-1) < 1) & ((abs(h) < k1 / 2) | (abs(h) < 40))
    # Where exp(-k1 y) underflows so does the little that d makes of it, and phi(d) alone may overflow.
    d = xp.where(near[..., None] & (weights > 0), h[..., None] * shift, 0.0)
    close = xp.log1p(xp.sum(weights * phi(d), axis=-1))
    # exp(k t) is taken as exp(-k (1 - t)), which changes no residual.
    apart = _log_sum(xp, _nodes(xp, k2, dimension)[1]) - _log_sum(xp, logs) + h * mean
    return xp.where(near, close, apart), resultant


def _nodes(xp: Any, k: Array, dimension: int) -> tuple[Array, Array]:
    """y = 1 - t at the nodes, and the logs of exp(-k y) with all weights, about the mode s0."""
    power, k = dimension - 1, k[..., None]
    u = xp.asarray(_NODES, dtype=k.dtype, device=device(k))
    s = xp.asinh(2 * k / power) / 2 + xp.sinh(u) / power**0.5
    y = 2 / (1 + xp.exp(2 * s))
    sech = np.log(2) - abs(s) - xp.log1p(xp.exp(-2 * abs(s)))
    return y, power * sech + xp.log(xp.cosh(u)) - k * y


def _log_sum(xp: Any, logs: Array) -> Array:
    top = xp.max(logs, axis=-1, keepdims=True)
    return xp.log(xp.sum(xp.exp(logs - top), axis=-1)) + top[..., 0]
