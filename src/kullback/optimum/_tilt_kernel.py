"""Rows of tilted policies, ref e^(reward/beta) / Z, and the beta at which they spend a budget.

Everything here has events along the last axis and contexts along the one before; `ref` and `weights` sum to 1.
"""

import math
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import array_api_compat

from kullback.numerics.arrays import Array, is_positive, untracked, with_gradient
from kullback.numerics.phi import phi

__all__ = ["Tilted", "beta_at", "tilted"]


class Tilted(NamedTuple):
    """What `tilted` makes of rows: `gap` is reward - centre, `d` is log policy/ref; 0 where ref is."""

    policy: Array
    kl: Array
    centre: Array
    gap: Array
    d: Array

    def mean(self, xp: Any) -> Array:
        """The expected reward of each row."""
        return self.centre[..., 0] + xp.sum(self.policy * self.gap, axis=-1)

    def variance(self, xp: Any) -> tuple[Array, Array]:
        """reward - its mean, and its variance in each row."""
        apart = self.gap - xp.sum(self.policy * self.gap, axis=-1, keepdims=True)
        return apart, xp.sum(self.policy * apart * apart, axis=-1)


def tilted(xp: Any, ref: Array, reward: Array, beta: Array) -> Tilted:
    """The policies and their KL(policy || ref) = sum policy phi(-d); beta, one for each row, may be 0 or inf.

    d = (reward - c)/beta - log sum ref e^((reward - c)/beta) for any c. Near ref, c is the policy's mean reward: then
    d is of the size of its parts and keeps its digits. Far from it, c is the largest reward, and nothing overflows.
    An error in log Z, the same in every d, changes the KL only by its square.
    """
    possible = is_positive(xp, ref)
    beta = beta[..., None]
    # Where to centre: numbers that the result does not depend on, and its gradient must not see.
    r, b = _still(xp, reward), _still(xp, beta)
    top = xp.max(xp.where(possible, r, -inf), axis=-1, keepdims=True)
    gap = xp.where(possible, r - top, 0.0)
    weight = _still(xp, ref) * xp.exp(_over(xp, gap, b))
    mass = xp.sum(weight, axis=-1, keepdims=True)
    fall = xp.sum(weight * gap, axis=-1, keepdims=True) / mass
    rough_kl = _over(xp, fall, b) - xp.log(mass)
    near = (rough_kl < 0.5) & (-_over(xp, fall, b) < math.log(xp.finfo(ref.dtype).max) - 2)
    centre = xp.where(near, top + fall, top)

    gap = xp.where(possible, reward - centre, 0.0)
    a = _over(xp, gap, beta)
    rise = xp.sum(ref * xp.expm1(xp.where(near, a, 0.0)), axis=-1, keepdims=True)
    total = xp.sum(ref * xp.exp(xp.where(near, 0.0, a)), axis=-1, keepdims=True)
    d = xp.where(possible, a - xp.where(near, xp.log1p(rise), xp.log(total)), 0.0)
    policy = xp.where(possible, ref * xp.exp(d), 0.0)
    close = d > -1
    # Beyond, phi(-d) may overflow where policy phi(-d) does not.
    far = ref - policy + policy * xp.where(close | (policy == 0), 0.0, d)
    kl = xp.sum(xp.where(close, policy * phi(-xp.where(close, d, 0.0)), far), axis=-1)
    return Tilted(policy, kl, centre, gap, d)


def _over(xp: Any, gap: Array, beta: Array) -> Array:
    """gap / beta, and its limit at beta = 0."""
    positive = beta > 0
    return xp.where(positive, gap / xp.where(positive, beta, 1.0), xp.where(gap < 0, -inf, xp.zeros_like(gap)))


def _still(xp: Any, array: Array) -> Array:
    if array_api_compat.is_jax_namespace(xp):
        import jax

        return jax.lax.stop_gradient(array)
    return untracked(array)


# The beta of a budget. KL grows with t = 1/beta: d KL / dt = t Var(reward), so Newton's method on log KL against log t,
# between bounds that hold always, meets it in a few steps.


def _beta_value(xp: Any, ref: Array, reward: Array, weights: Array, budget: Array) -> Array:
    limit = tilted(xp, ref, reward, xp.zeros_like(weights))
    largest = xp.sum(weights * limit.kl, axis=-1)
    buys = (budget > 0) & (budget < largest)

    # KL <= t^2 range^2 / 8 (Hoeffding); and at `high` what is left of the lesser rewards is lost in rounding.
    possible = is_positive(xp, ref)
    top = limit.centre
    least = xp.min(xp.where(possible, reward, inf), axis=-1, keepdims=True)
    second = xp.max(xp.where(possible & (reward < top), reward, -inf), axis=-1, keepdims=True)
    low = xp.sqrt(8 * budget) / xp.max((top - least)[..., 0], axis=-1)
    # A context whose rewards are all equal has no second: 1 / inf.
    high = xp.max((limit.kl + 50) / (top - second)[..., 0], axis=-1)
    low, high = xp.where(buys, low, 1.0), xp.where(buys, xp.minimum(high, xp.finfo(ref.dtype).max), 1.0)
    wanted = xp.where(buys, budget, 1.0)
    tolerance = 4 * xp.finfo(ref.dtype).eps

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        t, low, high, _, count = state
        row = tilted(xp, ref, reward, (1 / t)[..., None] + xp.zeros_like(weights))
        kl = xp.sum(weights * row.kl, axis=-1)
        off = xp.log(kl / wanted)
        low, high = xp.where(off < 0, t, low), xp.where(off < 0, high, t)
        steepness = t * t * xp.sum(weights * row.variance(xp)[1], axis=-1) / kl
        newton = t * xp.exp(-off / steepness)
        middle = xp.sqrt(low) * xp.sqrt(high)
        done = ~buys | (abs(off) <= tolerance) | (high - low <= tolerance * high)
        inside = (newton > low) & (newton < high)
        return xp.where(done, t, xp.where(inside, newton, middle)), low, high, done, count + 1

    # The KL of a small tilt goes with t^2, and its variance is ref's.
    spread = xp.sum(weights * tilted(xp, ref, reward, xp.zeros_like(weights) + inf).variance(xp)[1], axis=-1)
    start = xp.where(buys, xp.sqrt(2 * budget / xp.where(spread > 0, spread, 1.0)), 1.0)
    start = xp.where((start >= low) & (start <= high), start, xp.sqrt(low) * xp.sqrt(high))
    state = (start, low, high, ~buys, xp.asarray(0))
    t = _repeat(xp, step, lambda state: ~xp.all(state[3]) & (state[4] < 200), state)[0]
    return xp.where(buys, 1 / t, xp.where(budget < largest, inf, xp.zeros_like(t)))


def _repeat(xp: Any, step: Callable[..., Any], unfinished: Callable[..., Any], state: Any) -> Any:
    if array_api_compat.is_jax_namespace(xp):
        import jax

        return jax.lax.while_loop(unfinished, step, state)
    while bool(unfinished(state)):
        state = step(state)
    return state


# d beta = (d KL at fixed beta - d budget) beta^3 / Var. Nothing moves beta where it is 0; at budget 0 its slope has no
# finite value, and is given as 0.


def _rate(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> tuple[Array, Array, Tilted]:
    ref, reward, weights, _ = arrays
    inner = (beta > 0) & (beta < inf)
    beta = xp.where(inner, beta, 1.0)
    row = tilted(xp, ref, reward, beta[..., None] + xp.zeros_like(weights))
    variance = xp.sum(weights * row.variance(xp)[1], axis=-1)
    rate = xp.where(inner, beta**3 / xp.where(inner, variance, 1.0), 0.0)
    return gradient * rate, beta, row


def _ref_gradient(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> Array:
    rate, _, row = _rate(xp, gradient, beta, *arrays)
    close = row.d > -1
    ratio = xp.exp(row.d)
    far = 1 + ratio * (xp.where(close | (ratio == 0), 0.0, row.d) - 1)
    parts = xp.where(close, ratio * phi(-xp.where(close, row.d, 0.0)), far) - ratio * row.kl[..., None]
    return xp.where(is_positive(xp, arrays[0]), (rate[..., None] * arrays[2])[..., None] * parts, 0.0)


def _reward_gradient(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> Array:
    rate, beta, row = _rate(xp, gradient, beta, *arrays)
    return ((rate / beta**2)[..., None] * arrays[2])[..., None] * row.policy * row.variance(xp)[0]


def _weights_gradient(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> Array:
    rate, _, row = _rate(xp, gradient, beta, *arrays)
    return rate[..., None] * row.kl


def _budget_gradient(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> Array:
    return -_rate(xp, gradient, beta, *arrays)[0]


_beta = with_gradient(_beta_value, _ref_gradient, _reward_gradient, _weights_gradient, _budget_gradient)


def beta_at(xp: Any, ref: Array, reward: Array, weights: Array, budget: Array) -> Array:
    """The beta at which the mean over contexts of KL(policy || ref) is `budget`: 0 where it is never so large."""
    return _beta(xp, ref, reward, weights, budget)
