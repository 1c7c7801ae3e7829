"""Tilted policies ref e^(reward/beta) / Z, computed by row, and the beta whose KL equals a budget.

In every array, events lie along the last axis and contexts along the axis before it. `ref` and `weights` sum to 1.
"""

import math
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from kullback.numerics.arrays import Array, holds, is_positive, log, untracked, with_gradient
from kullback.numerics.phi import phi

__all__ = ["TiltedRows", "beta_for_budget", "tilt_rows"]

_BLOCK = 2**13  # events of a row that are processed at once


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
    possible, beta = is_positive(xp, ref), beta[..., None]
    centre, log_total = _normaliser(xp, ref, reward, possible, beta)

    def rows(ref: Array, reward: Array, possible: Array) -> tuple[Array, ...]:
        centred_reward, policy, d, kl = _tilted(xp, ref, reward, possible, beta, centre, log_total)
        return centred_reward, policy, d, xp.sum(kl, axis=-1)

    centred_reward, policy, d, kl = _in_blocks(rows, 3, ref, reward, possible)
    return TiltedRows(policy, kl, centre, centred_reward, d)


def _tilted(
    xp: Any, ref: Array, reward: Array, possible: Array, beta: Array, centre: Array, log_total: Array
) -> tuple[Array, ...]:
    """reward - centre, the policy, log(policy/ref), and the terms of KL(policy || ref), from the normaliser."""
    centred_reward = _select(xp, possible, reward - centre, 0.0)
    d = _select(xp, possible, _divide(xp, centred_reward, beta) - log_total, 0.0)
    # At a subnormal probability of the reference, policy/ref may overflow although the policy does not.
    overflows = d > math.log(xp.finfo(ref.dtype).max) - 1
    if holds(~xp.any(overflows)):
        policy = ref * xp.exp(d)
    else:
        half = xp.exp(xp.where(overflows, d / 2, 0.0))
        policy = xp.where(overflows, ref * half * half, ref * xp.exp(xp.where(overflows, 0.0, d)))
    policy = _select(xp, possible, policy, 0.0)
    close = d > -1
    kl = policy * phi(-xp.clip(d, -1.0, None))
    if not holds(xp.all(close)):
        # For d <= -1, phi(-d) may overflow although policy phi(-d) does not; where d < -1e4, the policy is 0.
        kl = xp.where(close, kl, ref - policy + policy * xp.clip(d, -1e4, -1.0))
    return centred_reward, policy, d, kl


def _normaliser(xp: Any, ref: Array, reward: Array, possible: Array, beta: Array) -> tuple[Array, Array]:
    """The centre c of each row and log sum ref e^((reward - c)/beta), each of shape (..., m, 1)."""
    # The result does not depend on the centre, so the centre is excluded from differentiation.
    b = _stop_gradient(xp, beta)
    top, below_top = _below_top(xp, possible, _stop_gradient(xp, reward))

    def sums(ref: Array, below_top: Array) -> tuple[Array, ...]:
        weight = ref * xp.exp(_divide(xp, below_top, b))
        return xp.sum(weight, axis=-1, keepdims=True), xp.sum(weight * below_top, axis=-1, keepdims=True)

    mass, mean_below_top = _in_blocks(sums, 0, _stop_gradient(xp, ref), below_top)
    mean_below_top = mean_below_top / mass
    approximate_kl = _divide(xp, mean_below_top, b) - xp.log(mass)
    near = (approximate_kl < 0.5) & (-_divide(xp, mean_below_top, b) < math.log(xp.finfo(ref.dtype).max) - 2)
    all_near, none_near = holds(xp.all(near)), holds(~xp.any(near))
    centre = xp.where(near, top + mean_below_top, top)

    def totals(ref: Array, reward: Array, possible: Array) -> tuple[Array, ...]:
        """The sum of ref e^a in each row, minus 1 where the policy is near ref."""
        a = _divide(xp, _select(xp, possible, reward - centre, 0.0), beta)
        if all_near or none_near:
            terms = xp.expm1(a) if all_near else xp.exp(a)
        else:
            terms = xp.where(near, xp.expm1(xp.where(near, a, 0.0)), xp.exp(xp.where(near, 0.0, a)))
        return (xp.sum(ref * terms, axis=-1, keepdims=True),)

    (total,) = _in_blocks(totals, 0, ref, reward, possible)
    log_total = xp.where(near, xp.log1p(xp.where(near, total, 0.0)), xp.log(xp.where(near, 1.0, total)))
    is_rounded = ~near & (total < xp.finfo(ref.dtype).smallest_normal / xp.finfo(ref.dtype).eps)
    if holds(xp.any(is_rounded)):  # the terms are subnormal, with few digits
        a = _divide(xp, xp.where(possible, reward - centre, 0.0), beta)
        logs = xp.where(possible, log(xp, xp.where(possible, ref, 1.0)) + a, -inf)
        highest = xp.max(logs, axis=-1, keepdims=True)
        shifted = xp.sum(xp.exp(logs - highest), axis=-1, keepdims=True)
        log_total = xp.where(is_rounded, highest + xp.log(shifted), log_total)
    return centre, log_total


def _in_blocks(function: Callable[..., tuple[Array, ...]], elementwise: int, *arrays: Array) -> tuple[Array, ...]:
    """The results of a function of rows, in blocks of long NumPy rows whose intermediate arrays fit into the cache.

    The first results, `elementwise` in number, have the shape of the arrays; the others are sums over each row.
    """
    width = arrays[0].shape[-1]
    if not isinstance(arrays[0], np.ndarray) or width < 2 * _BLOCK:
        return function(*arrays)
    outputs = [np.empty(arrays[0].shape, arrays[0].dtype) for _ in range(elementwise)]
    sums: list[Any] = []
    for start in range(0, width, _BLOCK):
        block = slice(start, start + _BLOCK)
        results = function(*(array[..., block] for array in arrays))
        for output, result in zip(outputs, results, strict=False):
            output[..., block] = result
        sums.append(results[elementwise:])
    return *outputs, *(sum(parts) for parts in zip(*sums, strict=True))


def _below_top(xp: Any, possible: Array, reward: Array) -> tuple[Array, Array]:
    """The largest possible reward of each row, and reward - top; 0 for impossible events."""
    top = xp.max(_select(xp, possible, reward, -inf), axis=-1, keepdims=True)
    return top, _select(xp, possible, reward - top, 0.0)


def _select(xp: Any, mask: Array, chosen: Array, otherwise: float) -> Array:
    """xp.where(mask, chosen, otherwise), without the copy where the mask is true everywhere."""
    return chosen if holds(xp.all(mask)) else xp.where(mask, chosen, otherwise)


def _divide(xp: Any, centred_reward: Array, beta: Array) -> Array:
    """centred_reward / beta, and its limit at beta = 0."""
    positive = beta > 0
    if holds(xp.all(positive)):
        return centred_reward / beta
    limit = xp.where(centred_reward < 0, -inf, xp.zeros_like(centred_reward))
    if holds(~xp.any(positive)):
        return limit
    return xp.where(positive, centred_reward / xp.where(positive, beta, 1.0), limit)


def _stop_gradient(xp: Any, array: Array) -> Array:
    if array_api_compat.is_jax_namespace(xp):
        import jax

        return jax.lax.stop_gradient(array)
    return untracked(array)


def _beta_value(xp: Any, ref: Array, reward: Array, weights: Array, budget: Array) -> Array:
    """The value of `beta_for_budget`.

    The KL increases with t = 1/beta: d KL / dt = t Var(reward). Newton's method on log KL as a function of log t,
    safeguarded by bounds on t, converges in a few steps. Its first steps compute KL as t E[reward] - log Z, from three
    sums that cancel for small t, and its last steps by `tilt_rows`.
    """
    possible = is_positive(xp, ref)

    def moments(weight: Array, x: Array) -> tuple[Array, ...]:
        first = weight * x
        return xp.sum(weight, axis=-1), xp.sum(first, axis=-1), xp.sum(first * x, axis=-1)

    def kl_and_variance(beta: Array) -> tuple[Array, Array]:
        """KL and Var(reward) of each row."""
        beta = (beta[..., None] + xp.zeros_like(weights))[..., None]
        centre, log_total = _normaliser(xp, ref, reward, possible, beta)

        def sums(ref: Array, reward: Array, possible: Array) -> tuple[Array, ...]:
            centred_reward, policy, _, kl = _tilted(xp, ref, reward, possible, beta, centre, log_total)
            return *moments(policy, centred_reward), xp.sum(kl, axis=-1)

        _, mean, square, kl = _in_blocks(sums, 0, ref, reward, possible)
        return kl, square - mean * mean

    limit, _ = kl_and_variance(xp.zeros_like(budget))
    largest = xp.sum(weights * limit, axis=-1)
    is_binding = (budget > 0) & (budget < largest)

    # Lower bound on t: KL <= t^2 range^2 / 8 (Hoeffding's lemma). Upper bound: the t at which the probability of every
    # reward below the largest is lost in rounding.
    _, below_top = _below_top(xp, possible, reward)
    second = xp.max(xp.where(below_top < 0, below_top, -inf), axis=-1)
    low = xp.sqrt(8 * budget) / xp.max(-xp.min(below_top, axis=-1), axis=-1)
    # In a context whose rewards are all equal, `second` is -inf and the quotient is 0.
    high = xp.max((limit + 50) / -second, axis=-1)
    low = xp.where(is_binding, low, 1.0)
    high = xp.where(is_binding, xp.minimum(high, xp.finfo(ref.dtype).max), 1.0)
    target = xp.where(is_binding, budget, 1.0)
    epsilon = xp.finfo(ref.dtype).eps
    tolerance = 4 * epsilon
    # Where log KL and log t are within this distance of the solution, one step of Newton's method is exact to rounding.
    close = 0.1 * tolerance**0.5

    def approximate(t: Array) -> tuple[Array, Array, Array]:
        """KL, its derivative with respect to log t, and its relative rounding error."""
        mass, mean, square = _in_blocks(
            lambda ref, x: moments(ref * xp.exp(t[..., None, None] * x), x), 0, ref, below_top
        )
        mean = mean / mass
        scaled, log_mass = t[..., None] * mean, xp.log(mass)
        kl = xp.sum(weights * (scaled - log_mass), axis=-1)
        rounding = epsilon * xp.sum(weights * (abs(scaled) + abs(log_mass)), axis=-1) / kl
        return kl, t * t * xp.sum(weights * (square / mass - mean * mean), axis=-1), rounding

    def exact(t: Array) -> tuple[Array, Array, Array]:
        kl, variance = kl_and_variance(1 / t)
        return xp.sum(weights * kl, axis=-1), t * t * xp.sum(weights * variance, axis=-1), xp.zeros_like(t)

    def newton(
        statistics: Callable[[Array], tuple[Array, Array, Array]], state: tuple[Array, ...]
    ) -> tuple[Array, ...]:
        t, low, high, _, count = state
        kl, slope, rounding = statistics(t)
        log_error = xp.log(kl / target)
        low, high = xp.where(log_error < 0, t, low), xp.where(log_error < 0, high, t)
        log_step = -log_error * kl / slope
        candidate = t * xp.exp(log_step)
        inside = (candidate > low) & (candidate < high)
        middle = xp.sqrt(low) * xp.sqrt(high)
        done = ~is_binding | (abs(log_error) <= tolerance) | (high - low <= tolerance * high)
        # Close to the largest KL, a small error of log KL is a large error of log t.
        is_close = (abs(log_error) <= close) & (abs(log_step) <= close)
        is_last = (inside & is_close) | ~(abs(log_error) > rounding)
        return xp.where(done, t, xp.where(inside, candidate, middle)), low, high, done | is_last, count + 1

    def solve(statistics: Callable[[Array], tuple[Array, ...]], start: Array) -> Array:
        state = (start, low, high, ~is_binding, xp.asarray(0))
        unfinished = lambda state: ~xp.all(state[3]) & (state[4] < 200)  # noqa: E731
        return _while_loop(xp, lambda state: newton(statistics, state), unfinished, state)[0]

    # Start where the second-order KL of a small tilt, t^2 Var(reward under ref) / 2, equals the budget.
    deviation = below_top - xp.sum(ref * below_top, axis=-1, keepdims=True)
    variance = xp.sum(weights * xp.sum(ref * deviation * deviation, axis=-1), axis=-1)
    start = xp.where(is_binding, xp.sqrt(2 * budget / xp.where(variance > 0, variance, 1.0)), 1.0)
    start = xp.where((start >= low) & (start <= high), start, xp.sqrt(low) * xp.sqrt(high))
    t = solve(exact, solve(approximate, start))
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
