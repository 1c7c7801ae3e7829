"""The exact optimum of a KL-regularised choice: tilted policies, KL budgets and the reward-KL frontier."""

from dataclasses import dataclass, field
from math import inf
from typing import Any, Generic

import array_api_compat
import numpy as np

from kullback.discrete.validation import require_equal_events, require_probs
from kullback.errors import BudgetError, KullbackError, ShapeError, SupportError
from kullback.numerics.arguments import shown
from kullback.numerics.array_types import ArrayInput, ArrayT
from kullback.numerics.arrays import Array, as_floats, cast, holds, is_positive, require_untransformed, untracked
from kullback.numerics.labels import require_unlabelled
from kullback.numerics.records import EqualByValue
from kullback.optimum._tilt_kernel import beta_for_budget, tilt_rows

__all__ = ["Frontier", "Optimum", "frontier", "tilt", "tilt_to_budget"]

_MAX_POINTS = 10**7  # of a frontier, whose arrays then fit into memory


@dataclass(frozen=True, eq=False)
class Optimum(EqualByValue, Generic[ArrayT]):
    """The policy that maximises E[reward] - beta KL(policy || ref), with its KL, reward and beta.

    Args:
        policy: Probabilities, shape (..., n).
        kl: KL(policy || ref), nats, shape (...).
        expected_reward: The mean reward of the policy, shape (...).
        objective: expected_reward - beta kl, in units of reward, shape (...).
        beta: The coefficient of the KL, in units of reward per nat, shape (...). 0 where a larger budget does not
            increase the reward; `inf` at budget 0.
    """

    policy: ArrayT
    kl: ArrayT
    expected_reward: ArrayT
    objective: ArrayT
    beta: ArrayT

    @property
    def saturated(self) -> ArrayT:
        """True where beta is 0: the policy is `ref` restricted to its best rewards, and the budget is not binding."""
        return self.beta == 0  # pyright: ignore[reportReturnType]


def tilt(
    ref: ArrayInput[ArrayT],
    reward: ArrayInput[ArrayT],
    beta: ArrayInput[ArrayT],
    *,
    contexts: ArrayInput[ArrayT] | None = None,
) -> Optimum[ArrayT]:
    """The policy that maximises E[reward] - beta KL(policy || ref).

        policy = ref e^(reward/beta) / Z

    KL(policy || ref) = sum_i policy_i phi(-d_i), where phi(x) = e^x - 1 - x and d_i = reward_i/beta - log Z. The form
    keeps the relative accuracy of the KL for beta from 1e-8 to 1e8, however small the KL is. All outputs are
    differentiable with finite gradients. The gradient with respect to `ref` is the gradient with respect to `ref`
    divided by its sum; entries with ref_i = 0 have gradient 0.

    Args:
        ref: Probabilities, shape (..., n): each >= 0, with sum 1 up to rounding. The sum is divided out.
        reward: Rewards, broadcast against `ref`; finite where ref > 0, ignored where ref is 0.
        beta: Coefficient of the KL in units of reward per nat, >= 0, broadcast against shape (...). At 0 the policy is
            its limit, `ref` restricted to the largest rewards; at `inf` it is `ref`.
        contexts: Probabilities of the contexts (prompts or states), shape (..., m). If given, the contexts lie along
            the second-last axis of `ref` and `reward`, and `kl`, `expected_reward` and `objective` are means over them,
            of shape (...) like `beta`.

    Returns:
        An `Optimum`: arrays of the inputs' library and dtype; `kl` in nats. The KL is never `inf`.

    Raises:
        NotNormalizedError: An entry of `ref` or `contexts` is negative or nan, or a sum is not 1.
        SupportError: A reward is not finite where ref > 0, or beta is negative or nan.
        ShapeError: The shapes do not broadcast, or the last axis is empty.

    References:
        Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", section 2 [ziegler2019].
        Todorov (2009), "Efficient computation of optimal actions" [todorov2009].

    Example:
        >>> best = tilt([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], 1.0)
        >>> best.policy.round(4), float(best.kl.round(4)), float(best.expected_reward.round(4))
        (array([0.1652, 0.2245, 0.6103]), 0.3376, 1.4451)
    """
    xp, dtype, probs, rewards, weights, betas = _prepare(ref, reward, beta, contexts, "beta", SupportError)
    with np.errstate(all="ignore"):
        return _optimum(xp, dtype, probs, rewards, weights, betas, contexts is None)


def tilt_to_budget(
    ref: ArrayInput[ArrayT],
    reward: ArrayInput[ArrayT],
    budget: ArrayInput[ArrayT],
    *,
    contexts: ArrayInput[ArrayT] | None = None,
) -> Optimum[ArrayT]:
    """The policy with the largest E[reward] among policies with KL(policy || ref) <= budget.

        policy = ref e^(reward/beta) / Z, with beta such that KL(policy || ref) = budget

    The KL equals the budget up to rounding. If the budget is at least -log ref(largest rewards), it is not binding:
    beta is 0, `saturated` is true, and `kl` is at most the budget. Gradients follow from the implicit function
    theorem. At budget 0, where the derivative of beta is infinite, 0 is returned for the gradient through beta.

    Args:
        ref: Probabilities, shape (..., n): each >= 0, with sum 1 up to rounding. The sum is divided out.
        reward: Rewards, broadcast against `ref`; finite where ref > 0, ignored where ref is 0.
        budget: The largest KL in nats, >= 0, may be `inf`; broadcast against shape (...).
        contexts: Probabilities of the contexts (prompts or states), shape (..., m). If given, the contexts lie along
            the second-last axis of `ref` and `reward`, and the budget limits the mean KL over them. The optimum then
            has the same beta in all contexts, and allocates more KL to contexts where it increases the reward more.

    Returns:
        An `Optimum`: arrays of the inputs' library and dtype; `kl` in nats, never `inf`. Its `beta` is the Lagrange
        multiplier of the budget, the derivative of the expected reward with respect to the budget.

    Raises:
        BudgetError: A budget is negative or nan.
        NotNormalizedError: An entry of `ref` or `contexts` is negative or nan, or a sum is not 1.
        SupportError: A reward is not finite where ref > 0, or rewards differ by less than 1000 times the smallest
            normal number of the dtype.
        ShapeError: The shapes do not broadcast, or the last axis is empty.

    References:
        Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", section 2 [ziegler2019].
        Todorov (2009), "Efficient computation of optimal actions" [todorov2009].

    Example:
        >>> best = tilt_to_budget([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], 0.1)
        >>> best.policy.round(4), float(best.kl.round(12)), float(best.beta.round(4))
        (array([0.3062, 0.2582, 0.4355]), 0.1, 1.9132)
        >>> float(tilt_to_budget([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], 5.0).kl)
        1.3862943611198906
    """
    xp, dtype, probs, rewards, weights, budgets = _prepare(ref, reward, budget, contexts, "budget", BudgetError)
    _require_spread(xp, probs, rewards)
    with np.errstate(all="ignore"):
        beta = beta_for_budget(xp, probs, rewards, weights, budgets)
        # The search ends just below the largest number where a larger beta is not represented.
        beta = xp.where(beta < (1 - 1e-5) * float(xp.finfo(beta.dtype).max), beta, inf)
        return _optimum(xp, dtype, probs, rewards, weights, beta, contexts is None)


@dataclass(frozen=True, eq=False)
class Frontier(EqualByValue, Generic[ArrayT]):
    """The largest expected reward for each KL(policy || ref).

    Along the last axis, `kl` increases from 0 to its largest value and `beta` decreases from `inf` to 0.

    Args:
        beta: The coefficient of the KL, in units of reward per nat, shape (..., points).
        kl: KL(policy || ref), nats, shape (..., points).
        expected_reward: The largest expected reward of a policy with this KL, shape (..., points).
        _task: The arguments `ref`, `reward` and `contexts` of `frontier`, from which `reward_at` computes.

    Example:
        >>> curve = frontier([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], points=3)
        >>> curve.kl.round(4), curve.beta.round(4)
        (array([0.    , 0.3466, 1.3863]), array([   inf, 0.9847, 0.    ]))
    """

    beta: ArrayT
    kl: ArrayT
    expected_reward: ArrayT
    _task: tuple[ArrayInput[ArrayT], ArrayInput[ArrayT], ArrayInput[ArrayT] | None] = field(repr=False)

    def reward_at(self, kl: ArrayInput[ArrayT]) -> ArrayT:
        """The largest expected reward of a policy with KL(policy || ref) <= kl, computed exactly.

        Args:
            kl: Nats, >= 0, broadcast against shape (...).

        Returns:
            Shape (...), in units of reward.

        Raises:
            BudgetError: A KL is negative or nan.
            ShapeError: The shapes do not broadcast.

        Example:
            >>> curve = frontier([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], points=3)
            >>> float(curve.reward_at(0.1).round(4))
            1.1293
        """
        ref, reward, contexts = self._task
        return tilt_to_budget(ref, reward, kl, contexts=contexts).expected_reward


def frontier(
    ref: ArrayInput[ArrayT], reward: ArrayInput[ArrayT], *, contexts: ArrayInput[ArrayT] | None = None, points: int = 65
) -> Frontier[ArrayT]:
    """The reward-KL frontier: the largest E[reward] for each KL(policy || ref).

        reward(K) = max E[reward] over policies with KL(policy || ref) <= K

    The KLs are the largest useful KL, -log ref(largest rewards), times the squares of evenly spaced numbers in [0, 1],
    because the reward increases with the square root of a small KL.

    Args:
        ref: Probabilities, shape (..., n): each >= 0, with sum 1 up to rounding. The sum is divided out.
        reward: Rewards, broadcast against `ref`; finite where ref > 0, ignored where ref is 0.
        contexts: Probabilities of the contexts (prompts or states), shape (..., m). If given, the contexts lie along
            the second-last axis of `ref` and `reward`, and the frontier is mean reward against mean KL.
        points: The number of points, at least 2.

    Returns:
        A `Frontier`: arrays of shape (..., points), with `kl` in nats; its method `reward_at` evaluates other KLs.

    Raises:
        NotNormalizedError: An entry of `ref` or `contexts` is negative or nan, or a sum is not 1.
        SupportError: A reward is not finite where ref > 0.
        ShapeError: The shapes do not broadcast, the last axis is empty, or `points` is less than 2.

    References:
        Ziegler et al. (2019), "Fine-Tuning Language Models from Human Preferences", figure 3, shows this curve for one
        task [ziegler2019].

    Example:
        >>> curve = frontier([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], points=3)
        >>> curve.kl.round(4), curve.expected_reward.round(4), float(curve.reward_at(0.1).round(4))
        (array([0.    , 0.3466, 1.3863]), array([0.75 , 1.454, 2.   ]), 1.1293)
    """
    if not (isinstance(points, int | np.integer) and 2 <= points <= _MAX_POINTS):
        raise ShapeError(
            f"expected a whole number of at least 2 points, one for each end of the frontier, and at most "
            f"{_MAX_POINTS}, got {shown(points)}"
        )
    largest: Array = tilt(ref, reward, 0.0, contexts=contexts).kl
    events = 1 if contexts is None else 2
    xp, [ref_, reward_], _ = as_floats(ref, reward)
    ref_, reward_ = xp.broadcast_arrays(ref_, reward_)
    ref_, reward_ = xp.expand_dims(ref_, axis=-1 - events), xp.expand_dims(reward_, axis=-1 - events)
    device = array_api_compat.device(ref_)
    largest = xp.asarray(largest, dtype=ref_.dtype, device=device)  # without axes it is float64 in NumPy
    fraction = xp.linspace(0.0, 1.0, points, dtype=ref_.dtype, device=device) ** 2
    weights = None if contexts is None else xp.expand_dims(as_floats(ref_, contexts)[1][1], axis=-2)
    best = tilt_to_budget(ref_, reward_, largest[..., None] * fraction, contexts=weights)
    return Frontier(best.beta, best.kl, best.expected_reward, (ref, reward, contexts))


def _optimum(xp: Any, dtype: Any, ref: Array, reward: Array, weights: Array, beta: Array, single: bool) -> Optimum[Any]:
    """The `Optimum` at a given beta; `single` removes the axis of the only context."""
    rows = tilt_rows(xp, ref, reward, beta[..., None] + xp.zeros_like(weights))
    kl = xp.sum(weights * rows.kl, axis=-1)
    mean = xp.sum(weights * rows.mean(xp), axis=-1)
    cost = xp.where(beta < inf, beta, 0.0) * kl  # at beta = inf the KL is 0
    policy = rows.policy[..., 0, :] if single else rows.policy
    policy, kl, mean, objective, beta = (cast(xp, part, dtype) for part in (policy, kl, mean, mean - cost, beta))
    return Optimum(policy, kl, mean, objective, beta)


def _prepare(ref: Any, reward: Any, multiplier: Any, contexts: Any, name: str, error_type: type[Exception]) -> Any:
    """Validates and broadcasts the arguments; `multiplier` is beta or the budget.

    Returns the namespace, the dtype of the results, and arrays ref (..., m, n), reward (..., m, n), weights (..., m)
    and multiplier (...).
    """
    require_untransformed(f"the optimum for a given {name}", ref, reward, multiplier, contexts)
    require_unlabelled(name, multiplier)
    require_unlabelled("contexts", contexts)
    given = [ref, reward, multiplier] if contexts is None else [ref, reward, multiplier, contexts]
    xp, (ref_, reward_, multiplier_, *optional), dtype = as_floats(*given)
    shapes = ", ".join(str(tuple(array.shape)) for array in (ref_, reward_, multiplier_, *optional))
    require_equal_events([tuple(ref_.shape), tuple(reward_.shape)], -1)
    try:
        ref_, reward_ = xp.broadcast_arrays(ref_, reward_)
        if ref_.ndim < 1 + len(optional) or 0 in ref_.shape[-1 - len(optional) :]:
            raise ShapeError(f"expected at least one event along the last axis, got shapes {shapes}")
        _require_values(xp, ref, ref_, reward_, multiplier_, dtype, name, error_type)
        if contexts is None:
            ref_, reward_, weights = ref_[..., None, :], reward_[..., None, :], xp.ones_like(ref_[..., :1])
        else:
            weights = optional[0] + xp.zeros_like(ref_[..., 0])
            require_probs(xp, "contexts", contexts, weights, dtype, -1)
        multiplier_ = multiplier_ + xp.zeros_like(weights[..., 0])
        weights = weights + xp.zeros_like(multiplier_[..., None])
        ref_, reward_ = (array + xp.zeros_like(weights[..., None]) for array in (ref_, reward_))
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, KullbackError):
            raise
        raise ShapeError(f"expected shapes that broadcast, got {shapes}") from error
    mass, total_weight = xp.sum(ref_, axis=-1, keepdims=True), xp.sum(weights, axis=-1, keepdims=True)
    return xp, dtype, ref_ / mass, reward_, weights / total_weight, multiplier_


def _require_spread(xp: Any, ref: Array, reward: Array) -> None:
    """Raises if the rewards differ so little that beta, which is a fraction of the difference, is not represented."""
    ref, reward = untracked(ref), untracked(reward)
    possible = is_positive(xp, ref)
    highest, lowest = (xp.where(possible, reward, end) for end in (-inf, inf))
    spread = xp.max(highest, axis=-1) - xp.min(lowest, axis=-1)
    smallest = 1e3 * float(xp.finfo(reward.dtype).smallest_normal)
    if holds(xp.any((spread > 0) & (spread < smallest))):
        raise SupportError(
            f"expected rewards that differ by at least {smallest:.3g}, or are equal, for a budget in {reward.dtype}; "
            "multiply the rewards by a constant"
        )


def _require_values(
    xp: Any,
    given: Any,
    ref: Array,
    reward: Array,
    multiplier: Array,
    dtype: Any,
    name: str,
    error_type: type[Exception],
) -> None:
    """Raises unless `ref` sums to 1, `reward` is finite where ref > 0, and `multiplier` is >= 0."""
    require_probs(xp, "ref", given, ref, dtype, -1)
    ref, reward, multiplier = untracked(ref), untracked(reward), untracked(multiplier)
    possible = is_positive(xp, ref)
    highest, lowest = (xp.where(possible, reward, end) for end in (-inf, inf))
    with np.errstate(invalid="ignore"):  # infinite rewards, which are refused below
        spread = xp.max(highest, axis=-1) / 2 - xp.min(lowest, axis=-1) / 2
    if holds(xp.any(spread > float(xp.finfo(reward.dtype).max) / 2) & xp.all(~possible | (abs(reward) < inf))):
        raise SupportError(
            f"expected rewards whose differences fit {reward.dtype}, got rewards from {float(xp.min(lowest)):.3g} to "
            f"{float(xp.max(highest)):.3g}; divide the rewards by a constant"
        )
    checks = [
        (is_positive(xp, ref) & ~(abs(reward) < inf), reward, "reward", "a finite number", SupportError),
        (~(multiplier >= 0), multiplier, name, f"{name} >= 0", error_type),
    ]
    for invalid, values, what, expected, error in checks:
        if holds(xp.any(invalid)):
            index = tuple(int(axis[0]) for axis in xp.nonzero(invalid)) if invalid.ndim else ()
            remedy = "to exclude an event, set its ref to 0" if what == "reward" else f"pass a {what} of 0 or more"
            position = f"[{', '.join(map(str, index))}]" if index else ""
            raise error(f"expected {expected}, but {what}{position} is {float(values[index])!r}; {remedy}")
