"""The exact optimum of one KL-regularised choice: what a policy near its reference can earn, and at which beta."""

from dataclasses import dataclass, field
from math import inf
from typing import Any

import array_api_compat
import numpy as np

from kullback.discrete.validation import require_probs
from kullback.errors import BudgetError, KullbackError, ShapeError, SupportError
from kullback.numerics.arrays import Array, ArrayLike, as_floats, cast, holds, is_positive, untracked
from kullback.optimum._tilt_kernel import beta_at, tilted

__all__ = ["Frontier", "Optimum", "frontier", "tilt", "tilt_to_budget"]


@dataclass(frozen=True)
class Optimum:
    """The policy that maximises `objective`, and what it costs and earns.

    Args:
        policy: Probabilities, shape (..., n).
        kl: KL(policy || ref), nats, shape (...).
        expected_reward: The policy's mean reward, shape (...).
        objective: expected_reward - beta kl, shape (...).
        beta: The price of a nat in reward, shape (...): 0 where a larger budget buys nothing more, `inf` at budget 0.
    """

    policy: Array
    kl: Array
    expected_reward: Array
    objective: Array
    beta: Array

    @property
    def saturated(self) -> Array:
        """True where beta is 0: the policy is `ref` on its best rewards, and no budget is left to bind."""
        return self.beta == 0


def tilt(ref: ArrayLike, reward: ArrayLike, beta: ArrayLike, *, contexts: ArrayLike | None = None) -> Optimum:
    """The policy that maximises E[reward] - beta KL(policy || ref): ref e^(reward/beta) / Z.

    KL(policy || ref) = sum_i policy_i phi(-d_i), where phi(d) = e^d - 1 - d and d = reward/beta - log Z. Its digits
    stay from beta = 1e-8 to 1e8, however small the KL. Gradients are finite, and by ref they are those of ref divided
    by its sum, where what has ref_i = 0 stays impossible.

    Args:
        ref: Probabilities, shape (..., n): each >= 0, with sum 1 to rounding, which is taken out.
        reward: Rewards, broadcast against `ref`; finite where ref > 0, of no account where ref is 0.
        beta: Reward for a nat, >= 0, broadcast against shape (...). At 0 the policy is its limit, `ref` on the largest
            rewards; at `inf` it is `ref`.
        contexts: The probabilities of the contexts (prompts, states) that lie along the last axis but one, shape
            (..., m): `kl`, `expected_reward` and `objective` are means over them, of shape (...) like `beta`.

    Returns:
        `Optimum`: arrays of the inputs' kind and dtype. Nothing is infinite.

    Raises:
        NotNormalizedError: An entry of `ref` or `contexts` is negative or nan, or a sum is not 1.
        SupportError: A reward that counts is not finite, or a beta is negative or nan.
        ShapeError: The shapes do not broadcast, or there is nothing to choose from.

    Source: [ziegler2019], section 2; [todorov2009].

    Example:
        >>> best = tilt([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], 1.0)
        >>> best.policy.round(4), float(best.kl.round(4)), float(best.expected_reward.round(4))
        (array([0.1652, 0.2245, 0.6103]), 0.3376, 1.4451)
    """
    xp, dtype, ref, reward, weights, beta = _prepare(ref, reward, beta, contexts, "beta", SupportError)
    with np.errstate(all="ignore"):
        return _optimum(xp, dtype, ref, reward, weights, beta, contexts is None)


def tilt_to_budget(
    ref: ArrayLike, reward: ArrayLike, budget: ArrayLike, *, contexts: ArrayLike | None = None
) -> Optimum:
    """The policy of largest E[reward] among those with KL(policy || ref) <= budget.

    It is the tilt whose KL is the budget, to rounding. Where the budget is at least -log ref(largest rewards), nothing
    more can be bought: beta is 0, `saturated` is true, and `kl` is what that policy needs. Differentiable by way of the
    implicit function; at budget 0, where the slope is infinite, the gradient by way of beta is given as 0.

    Args:
        ref: Probabilities, as in `tilt`.
        reward: Rewards, as in `tilt`.
        budget: Nats, >= 0 and perhaps `inf`, broadcast against shape (...).
        contexts: The probabilities of contexts, as in `tilt`: the budget is then on the mean KL over them, spent where
            it earns most, at one beta for all.

    Returns:
        `Optimum`, whose `beta` is the Lagrange multiplier: the reward that the next nat buys.

    Raises:
        BudgetError: A budget is negative or nan.
        NotNormalizedError, SupportError, ShapeError: As in `tilt`.

    Source: [ziegler2019], section 2; [todorov2009].

    Example:
        >>> best = tilt_to_budget([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], 0.1)
        >>> best.policy.round(4), float(best.kl.round(12)), float(best.beta.round(4))
        (array([0.3062, 0.2582, 0.4355]), 0.1, 1.9132)
        >>> float(tilt_to_budget([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], 5.0).kl)
        1.3862943611198906
    """
    xp, dtype, ref, reward, weights, budget = _prepare(ref, reward, budget, contexts, "budget", BudgetError)
    with np.errstate(all="ignore"):
        beta = beta_at(xp, ref, reward, weights, budget)
        return _optimum(xp, dtype, ref, reward, weights, beta, contexts is None)


@dataclass(frozen=True)
class Frontier:
    """The most reward for each KL: `kl` rises from 0 to its largest along the last axis, `beta` falls from inf to 0.

    Args:
        beta: The price of a nat, shape (..., points).
        kl: KL(policy || ref), nats, shape (..., points).
        expected_reward: The most that any policy of that KL can earn, shape (..., points).
    """

    beta: Array
    kl: Array
    expected_reward: Array
    _task: tuple[ArrayLike, ArrayLike, ArrayLike | None] = field(repr=False)

    def reward_at(self, kl: ArrayLike) -> Array:
        """The most that a policy within `kl` nats of `ref` can earn, exactly: not interpolated."""
        ref, reward, contexts = self._task
        return tilt_to_budget(ref, reward, kl, contexts=contexts).expected_reward


def frontier(ref: ArrayLike, reward: ArrayLike, *, contexts: ArrayLike | None = None, points: int = 65) -> Frontier:
    """The reward-KL frontier: the largest E[reward] at each KL(policy || ref), which no policy can pass.

    The KLs are the largest one, -log ref(largest rewards), times squares of evenly spaced numbers: reward begins as the
    square root of KL.

    Args:
        ref: Probabilities, as in `tilt`.
        reward: Rewards, as in `tilt`.
        contexts: The probabilities of contexts, as in `tilt`: the frontier is of mean reward against mean KL.
        points: How many, at least 2.

    Returns:
        `Frontier`: arrays of shape (..., points), and `reward_at(kl)` for any other KL.

    Raises:
        NotNormalizedError, SupportError, ShapeError: As in `tilt`.

    Source: [ziegler2019], figure 3, has this curve for one task.

    Example:
        >>> curve = frontier([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], points=3)
        >>> curve.kl.round(4), curve.expected_reward.round(4), float(curve.reward_at(0.1).round(4))
        (array([0.    , 0.3466, 1.3863]), array([0.75 , 1.454, 2.   ]), 1.1293)
    """
    if points < 2:
        raise ShapeError(f"expected 2 points or more, from no KL to the largest, got {points}")
    largest = tilt(ref, reward, 0.0, contexts=contexts).kl
    events = 1 if contexts is None else 2
    xp, [ref_, reward_], _ = as_floats(ref, reward)
    ref_, reward_ = xp.broadcast_arrays(ref_, reward_)
    ref_, reward_ = xp.expand_dims(ref_, axis=-1 - events), xp.expand_dims(reward_, axis=-1 - events)
    device = array_api_compat.device(largest)
    share = xp.linspace(0.0, 1.0, points, dtype=largest.dtype, device=device) ** 2
    weights = None if contexts is None else xp.expand_dims(as_floats(ref_, contexts)[1][1], axis=-2)
    best = tilt_to_budget(ref_, reward_, largest[..., None] * share, contexts=weights)
    return Frontier(best.beta, best.kl, best.expected_reward, (ref, reward, contexts))


def _optimum(xp: Any, dtype: Any, ref: Array, reward: Array, weights: Array, beta: Array, alone: bool) -> Optimum:
    row = tilted(xp, ref, reward, beta[..., None] + xp.zeros_like(weights))
    kl = xp.sum(weights * row.kl, axis=-1)
    mean = xp.sum(weights * row.mean(xp), axis=-1)
    cost = xp.where(beta < inf, beta, 0.0) * kl  # at beta = inf the KL is 0
    policy = row.policy[..., 0, :] if alone else row.policy
    policy, kl, mean, objective, beta = (cast(xp, part, dtype) for part in (policy, kl, mean, mean - cost, beta))
    return Optimum(policy, kl, mean, objective, beta)


def _prepare(ref: Any, reward: Any, price: Any, contexts: Any, name: str, refusal: type[Exception]) -> Any:
    """The namespace, the dtype to return, and ref, reward (..., m, n), weights (..., m) and price (...) that fit."""
    given = [ref, reward, price] if contexts is None else [ref, reward, price, contexts]
    xp, (ref_, reward_, price_, *rest), dtype = as_floats(*given)
    shapes = ", ".join(str(tuple(array.shape)) for array in (ref_, reward_, price_, *rest))
    try:
        ref_, reward_ = xp.broadcast_arrays(ref_, reward_)
        if ref_.ndim < 1 + len(rest) or 0 in ref_.shape[-1 - len(rest) :]:
            raise ShapeError(f"expected something to choose from along the last axis, got shapes {shapes}")
        _check(xp, ref, ref_, reward_, price_, dtype, name, refusal)
        if contexts is None:
            ref_, reward_, weights = ref_[..., None, :], reward_[..., None, :], xp.ones_like(ref_[..., :1])
        else:
            weights = rest[0] + xp.zeros_like(ref_[..., 0])
            require_probs(xp, "contexts", contexts, weights, dtype, -1)
        price_ = price_ + xp.zeros_like(weights[..., 0])
        weights = weights + xp.zeros_like(price_[..., None])
        ref_, reward_ = (array + xp.zeros_like(weights[..., None]) for array in (ref_, reward_))
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, KullbackError):
            raise
        raise ShapeError(f"expected shapes that broadcast, got {shapes}") from error
    mass, whole = xp.sum(ref_, axis=-1, keepdims=True), xp.sum(weights, axis=-1, keepdims=True)
    return xp, dtype, ref_ / mass, reward_, weights / whole, price_


def _check(
    xp: Any, given: Any, ref: Array, reward: Array, price: Array, dtype: Any, name: str, refusal: type[Exception]
) -> None:
    require_probs(xp, "ref", given, ref, dtype, -1)
    ref, reward, price = untracked(ref), untracked(reward), untracked(price)
    refuse = [
        (is_positive(xp, ref) & ~(abs(reward) < inf), reward, "reward", "a finite number", SupportError),
        (~(price >= 0), price, name, f"a {name} >= 0", refusal),
    ]
    for bad, values, what, expected, error in refuse:
        if holds(xp.any(bad)):
            index = tuple(int(axis[0]) for axis in xp.nonzero(bad)) if bad.ndim else ()
            remedy = "where a choice is forbidden, give ref 0" if what == "reward" else f"look for what made the {what}"
            position = f"[{', '.join(map(str, index))}]" if index else ""
            raise error(f"expected {expected}, but {what}{position} is {float(values[index])!r}; {remedy}")
