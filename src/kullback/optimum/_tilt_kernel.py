"""Tilted policies ref e^(reward/beta) / Z, computed by row, and the beta whose KL equals a budget.

In every array, events lie along the last axis and contexts along the axis before it. `ref` and `weights` sum to 1.
"""

import math
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import array_api_compat

from kullback.numerics.arrays import Array, holds, is_positive, log, untracked, with_gradient
from kullback.numerics.phi import phi

__all__ = ["TiltedRows", "beta_for_budget", "tilt_rows"]


class TiltedRows(NamedTuple):
    """The result of `tilt_rows`.

    Args:
        policy: Probabilities, shape (..., m, n).
        kl: KL(policy || ref) of each row, nats, shape (..., m).
        centre: The reward that was subtracted in each row, shape (..., m, 1).
        centred_reward: reward - centre, shape (..., m, n); 0 where ref is 0.
        log_ratio: log(policy/ref), shape (..., m, n); 0 where ref is 0.
    """

    policy: Array
    kl: Array
    centre: Array
    centred_reward: Array
    log_ratio: Array

    def mean(self, xp: Any) -> Array:
        """The expected reward of each row."""
        return self.centre[..., 0] + xp.sum(self.policy * self.centred_reward, axis=-1)

    def variance(self, xp: Any) -> tuple[Array, Array]:
        """The deviations of the reward from its mean, and the variance of each row."""
        deviation = self.centred_reward - xp.sum(self.policy * self.centred_reward, axis=-1, keepdims=True)
        return deviation, xp.sum(self.policy * deviation * deviation, axis=-1)


def tilt_rows(xp: Any, ref: Array, reward: Array, beta: Array) -> TiltedRows:
    """The tilted policy of each row and its KL(policy || ref); beta has one entry per row and may be 0 or inf.

    Naive equation: policy = ref e^(reward/beta) / sum(ref e^(reward/beta)), KL = sum policy log(policy/ref).

    KL(policy || ref) = sum policy phi(-d), where phi(x) = e^x - 1 - x and d = log(policy/ref)
    d = (reward - c)/beta - log sum ref e^((reward - c)/beta) for any c.

    Where the policy is near ref, c is the mean reward of the policy, so that the two terms of d do not cancel.
    Elsewhere, c is the largest reward, so that no exponential overflows. An error in log Z is common to all d and
    changes the KL only to second order.
    """
    possible = is_positive(xp, ref)
    beta = beta[..., None]
    # The result does not depend on the centre, so the centre is excluded from differentiation.
    r, b = _stop_gradient(xp, reward), _stop_gradient(xp, beta)
    top = xp.max(xp.where(possible, r, -inf), axis=-1, keepdims=True)
    below_top = xp.where(possible, r - top, 0.0)
    weight = _stop_gradient(xp, ref) * xp.exp(_divide(xp, below_top, b))
    mass = xp.sum(weight, axis=-1, keepdims=True)
    mean_below_top = xp.sum(weight * below_top, axis=-1, keepdims=True) / mass
    approximate_kl = _divide(xp, mean_below_top, b) - xp.log(mass)
    near = (approximate_kl < 0.5) & (-_divide(xp, mean_below_top, b) < math.log(xp.finfo(ref.dtype).max) - 2)
    centre = xp.where(near, top + mean_below_top, top)

    centred_reward = xp.where(possible, reward - centre, 0.0)
    a = _divide(xp, centred_reward, beta)
    total_minus_one = xp.sum(ref * xp.expm1(xp.where(near, a, 0.0)), axis=-1, keepdims=True)
    total = xp.sum(ref * xp.exp(xp.where(near, 0.0, a)), axis=-1, keepdims=True)
    log_total = xp.where(near, xp.log1p(total_minus_one), xp.log(total))
    is_rounded = ~near & (total < xp.finfo(ref.dtype).smallest_normal / xp.finfo(ref.dtype).eps)
    if holds(xp.any(is_rounded)):  # the terms are subnormal, with few digits
        logs = xp.where(possible, log(xp, xp.where(possible, ref, 1.0)) + a, -inf)
        highest = xp.max(logs, axis=-1, keepdims=True)
        shifted = xp.sum(xp.exp(logs - highest), axis=-1, keepdims=True)
        log_total = xp.where(is_rounded, highest + xp.log(shifted), log_total)
    d = xp.where(possible, a - log_total, 0.0)
    # At a subnormal probability of the reference, policy/ref may overflow although the policy does not.
    overflows = d > math.log(xp.finfo(ref.dtype).max) - 1
    half = xp.exp(xp.where(overflows, d / 2, 0.0))
    policy = xp.where(overflows, ref * half * half, ref * xp.exp(xp.where(overflows, 0.0, d)))
    policy = xp.where(possible, policy, 0.0)
    close = d > -1
    # For d <= -1, phi(-d) may overflow although policy phi(-d) does not.
    far = ref - policy + policy * xp.where(close | (policy == 0), 0.0, d)
    kl = xp.sum(xp.where(close, policy * phi(-xp.where(close, d, 0.0)), far), axis=-1)
    return TiltedRows(policy, kl, centre, centred_reward, d)


def _divide(xp: Any, centred_reward: Array, beta: Array) -> Array:
    """centred_reward / beta, and its limit at beta = 0."""
    positive = beta > 0
    limit = xp.where(centred_reward < 0, -inf, xp.zeros_like(centred_reward))
    return xp.where(positive, centred_reward / xp.where(positive, beta, 1.0), limit)


def _stop_gradient(xp: Any, array: Array) -> Array:
    if array_api_compat.is_jax_namespace(xp):
        import jax

        return jax.lax.stop_gradient(array)
    return untracked(array)


def _beta_value(xp: Any, ref: Array, reward: Array, weights: Array, budget: Array) -> Array:
    """The value of `beta_for_budget`.

    The KL increases with t = 1/beta: d KL / dt = t Var(reward). Newton's method on log KL as a function of log t,
    safeguarded by bounds on t, converges in a few steps.
    """
    limit = tilt_rows(xp, ref, reward, xp.zeros_like(weights))
    largest = xp.sum(weights * limit.kl, axis=-1)
    is_binding = (budget > 0) & (budget < largest)

    # Lower bound on t: KL <= t^2 range^2 / 8 (Hoeffding's lemma). Upper bound: the t at which the probability of every
    # reward below the largest is lost in rounding.
    possible = is_positive(xp, ref)
    top = limit.centre
    smallest = xp.min(xp.where(possible, reward, inf), axis=-1, keepdims=True)
    second = xp.max(xp.where(possible & (reward < top), reward, -inf), axis=-1, keepdims=True)
    low = xp.sqrt(8 * budget) / xp.max((top - smallest)[..., 0], axis=-1)
    # In a context whose rewards are all equal, `second` is -inf and the quotient is 0.
    high = xp.max((limit.kl + 50) / (top - second)[..., 0], axis=-1)
    low = xp.where(is_binding, low, 1.0)
    high = xp.where(is_binding, xp.minimum(high, xp.finfo(ref.dtype).max), 1.0)
    target = xp.where(is_binding, budget, 1.0)
    tolerance = 4 * xp.finfo(ref.dtype).eps

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        t, low, high, _, count = state
        rows = tilt_rows(xp, ref, reward, (1 / t)[..., None] + xp.zeros_like(weights))
        kl = xp.sum(weights * rows.kl, axis=-1)
        log_error = xp.log(kl / target)
        low, high = xp.where(log_error < 0, t, low), xp.where(log_error < 0, high, t)
        slope = t * t * xp.sum(weights * rows.variance(xp)[1], axis=-1) / kl
        newton = t * xp.exp(-log_error / slope)
        middle = xp.sqrt(low) * xp.sqrt(high)
        done = ~is_binding | (abs(log_error) <= tolerance) | (high - low <= tolerance * high)
        inside = (newton > low) & (newton < high)
        return xp.where(done, t, xp.where(inside, newton, middle)), low, high, done, count + 1

    # Start where the second-order KL of a small tilt, t^2 Var(reward under ref) / 2, equals the budget.
    at_ref = tilt_rows(xp, ref, reward, xp.zeros_like(weights) + inf)
    variance = xp.sum(weights * at_ref.variance(xp)[1], axis=-1)
    start = xp.where(is_binding, xp.sqrt(2 * budget / xp.where(variance > 0, variance, 1.0)), 1.0)
    start = xp.where((start >= low) & (start <= high), start, xp.sqrt(low) * xp.sqrt(high))
    state = (start, low, high, ~is_binding, xp.asarray(0))
    t = _while_loop(xp, step, lambda state: ~xp.all(state[3]) & (state[4] < 200), state)[0]
    return xp.where(is_binding, 1 / t, xp.where(budget < largest, inf, xp.zeros_like(t)))


def _while_loop(xp: Any, step: Callable[..., Any], is_unfinished: Callable[..., Any], state: Any) -> Any:
    if array_api_compat.is_jax_namespace(xp):
        import jax

        return jax.lax.while_loop(is_unfinished, step, state)
    while bool(is_unfinished(state)):
        state = step(state)
    return state


# The gradient of beta, by the implicit function theorem: d beta = (d KL at fixed beta - d budget) beta^3 / Var(reward).
# Where beta is 0 its gradient is 0. At budget 0 the derivative is infinite, and 0 is returned.


def _implicit_factor(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> tuple[Array, Array, TiltedRows]:
    """gradient beta^3 / Var(reward), with beta and the tilted rows; 0 where beta is 0 or inf."""
    ref, reward, weights, _ = arrays
    is_interior = (beta > 0) & (beta < inf)
    beta = xp.where(is_interior, beta, 1.0)
    rows = tilt_rows(xp, ref, reward, beta[..., None] + xp.zeros_like(weights))
    variance = xp.sum(weights * rows.variance(xp)[1], axis=-1)
    factor = xp.where(is_interior, beta**3 / xp.where(is_interior, variance, 1.0), 0.0)
    return gradient * factor, beta, rows


def _ref_gradient(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> Array:
    factor, _, rows = _implicit_factor(xp, gradient, beta, *arrays)
    close = rows.log_ratio > -1
    ratio = xp.exp(rows.log_ratio)
    far = 1 + ratio * (xp.where(close | (ratio == 0), 0.0, rows.log_ratio) - 1)
    kl_gradient = xp.where(close, ratio * phi(-xp.where(close, rows.log_ratio, 0.0)), far) - ratio * rows.kl[..., None]
    return xp.where(is_positive(xp, arrays[0]), (factor[..., None] * arrays[2])[..., None] * kl_gradient, 0.0)


def _reward_gradient(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> Array:
    factor, beta, rows = _implicit_factor(xp, gradient, beta, *arrays)
    return ((factor / beta**2)[..., None] * arrays[2])[..., None] * rows.policy * rows.variance(xp)[0]


def _weights_gradient(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> Array:
    factor, _, rows = _implicit_factor(xp, gradient, beta, *arrays)
    return factor[..., None] * rows.kl


def _budget_gradient(xp: Any, gradient: Array, beta: Array, *arrays: Array) -> Array:
    return -_implicit_factor(xp, gradient, beta, *arrays)[0]


_beta = with_gradient(_beta_value, _ref_gradient, _reward_gradient, _weights_gradient, _budget_gradient)


def beta_for_budget(xp: Any, ref: Array, reward: Array, weights: Array, budget: Array) -> Array:
    """The beta at which the mean of KL(policy || ref) over contexts equals `budget`.

    It is 0 where the budget is at least the KL of the limit beta = 0, and `inf` at budget 0.
    """
    return _beta(xp, ref, reward, weights, budget)
