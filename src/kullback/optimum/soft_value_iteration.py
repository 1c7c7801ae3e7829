"""The exact optimum of KL- or entropy-regularised control of a known Markov decision process."""

from dataclasses import dataclass

import numpy as np

from kullback.errors import SupportError
from kullback.numerics.arguments import is_index, is_number, shown
from kullback.numerics.arrays import ArrayLike
from kullback.numerics.records import EqualByValue
from kullback.optimum._tilt_kernel import tilt_rows
from kullback.optimum.mdp import MDP
from kullback.optimum.trajectory_kl import (
    as_beta,
    as_policy,
    require_mdp,
    require_representable_values,
    solve_linear,
    state_transitions,
)

__all__ = ["SoftOptimum", "soft_value_iteration"]

_ROWS = 2**14  # states per block, so that the intermediate arrays of a block fit a processor's cache


@dataclass(frozen=True, eq=False)
class SoftOptimum(EqualByValue):
    """The optimal policy and values of KL-regularised control.

    Args:
        policy: Probabilities of actions, shape (S, A), or (horizon, S, A).
        log_policy: Log-probabilities of actions, nats, of the shape of `policy`; finite where a probability underflows.
        value: The optimal objective from each state, in units of reward, shape (S,), or (horizon + 1, S) for each step
            and after the last step.
        objective: The mean of `value` over the initial states, in units of reward.
        beta: The coefficient of the KL, in units of reward per nat.
        error: A bound on the absolute error of every entry of `value`, rounding included. It is larger than the
            tolerance only if rounding errors or `max_iterations` stopped the iteration.
        iterations: The number of Bellman updates.
    """

    policy: np.ndarray
    log_policy: np.ndarray
    value: np.ndarray
    objective: float
    beta: float
    error: float
    iterations: int


def soft_value_iteration(
    mdp: MDP, beta: float, ref: ArrayLike | None = None, *, tolerance: float = 1e-9, max_iterations: int = 10_000
) -> SoftOptimum:
    """The policy that maximises E[sum_t discount^t (reward - beta KL(policy || ref))] from every state.

        V(s) = beta log sum_a ref(a|s) e^(Q(s,a)/beta),   Q(s,a) = reward(s,a) + discount E[V(next state)]

    The optimal policy in each state is ref e^(Q/beta) / Z. Without `ref` the objective is the entropy-regularised
    E[sum_t discount^t (reward + beta entropy)]. With a horizon, the values are computed by backward induction. Without
    a horizon, they are computed by Newton's method (soft policy iteration), which converges from every starting point.

    Args:
        mdp: The Markov decision process.
        beta: Coefficient of the KL in units of reward per nat, finite and >= 0. At 0 the policy is optimal for the
            reward alone and equals `ref` restricted to the best actions.
        ref: Probabilities of actions, shape (S, A), (A,) or (horizon, S, A). None selects the entropy.
        tolerance: The absolute error of the values at which the iteration stops, in units of reward; used only without
            a horizon.
        max_iterations: The largest number of Bellman updates; used only without a horizon.

    Returns:
        A `SoftOptimum` with float64 arrays. Values and objective are finite, in units of reward.

    Raises:
        SupportError: beta is negative, infinite or nan.
        ShapeError: `ref` does not have one of the shapes above.
        NotNormalizedError: A probability of `ref` is negative or nan, or a row does not sum to 1.

    References:
        Todorov (2009), "Efficient computation of optimal actions" [todorov2009].
        Levine (2018), "Reinforcement Learning and Control as Probabilistic Inference", section 2 [levine2018].
        Puterman (1994), "Markov Decision Processes", section 6.6, for MacQueen's bounds on the values [puterman1994].

    Example:
        >>> mdp = MDP([[[1.0], [1.0]]], [[0.0, 1.0]], discount=0.5)
        >>> best = soft_value_iteration(mdp, 1.0)
        >>> best.policy.round(4), float(best.value[0].round(4)), best.error < 1e-9
        (array([[0.2689, 0.7311]]), 2.6265, True)
    """
    require_mdp(mdp)
    require_representable_values(mdp)
    beta = as_beta(beta)
    if not (is_number(tolerance) and tolerance >= 0):
        raise SupportError(f"expected tolerance to be a number >= 0, got {shown(tolerance)}")
    if not (is_index(max_iterations) and max_iterations >= 1):
        raise SupportError(f"expected max_iterations to be a whole number >= 1, got {shown(max_iterations)}")
    probs = np.full_like(mdp.rewards, 1 / mdp.rewards.shape[1]) if ref is None else as_policy(mdp, "ref", ref)
    probs = probs / probs.sum(-1, keepdims=True)
    # The entropy is log A minus the KL to the uniform policy.
    entropy_bonus = beta * np.log(mdp.rewards.shape[1]) if ref is None else 0.0
    with np.errstate(all="ignore"):
        if mdp.horizon is not None:
            return _backward_induction(mdp, beta, probs, entropy_bonus, mdp.horizon)
        return _policy_iteration(mdp, beta, probs, entropy_bonus, tolerance, max_iterations)


def _bellman_update(
    mdp: MDP, beta: float, ref: np.ndarray, entropy_bonus: float, value: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The optimal policy of one step followed by `value`, its logarithm, and the updated values."""
    q = mdp.rewards + mdp.discount * (mdp.transitions @ value).reshape(mdp.rewards.shape)
    policy, log_policy, new = np.empty_like(q), np.empty_like(q), np.empty_like(value)
    for start in range(0, len(value), _ROWS):
        rows = slice(start, start + _ROWS)
        best = tilt_rows(np, ref[rows], q[rows], np.full(len(q[rows]), beta))
        policy[rows], log_policy[rows] = best.policy, np.log(ref[rows]) + best.log_ratio
        new[rows] = best.mean(np) - beta * best.kl + entropy_bonus
    return policy, log_policy, new


def _improved_policy(
    mdp: MDP, beta: float, ref: np.ndarray, entropy_bonus: float, value: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The optimal policy of one step followed by `value`, and the updated values, without logarithms of probabilities.

    The value is c + beta log sum_a ref e^((Q - c)/beta), where c is the mean of Q under ref if all exponents are below
    1, and the largest Q otherwise.
    """
    if beta == 0:
        policy, _, new = _bellman_update(mdp, beta, ref, entropy_bonus, value)
        return policy, new
    q = mdp.rewards + mdp.discount * (mdp.transitions @ value).reshape(mdp.rewards.shape)
    policy, new = np.empty_like(q), np.empty_like(value)
    for start in range(0, len(value), _ROWS):
        rows = slice(start, start + _ROWS)
        of_ref, of_q = ref[rows], q[rows]
        centre = np.einsum("sa,sa->s", of_ref, of_q)[:, None]
        exponent = (of_q - centre) / beta
        far = (abs(exponent) > 1).any(-1, keepdims=True)
        if far.any():
            possible = of_ref > 0
            centre = np.where(far, np.where(possible, of_q, -np.inf).max(-1, keepdims=True), centre)
            exponent = np.where(possible, (of_q - centre) / beta, 0.0)
        weight = of_ref * np.exp(exponent)
        total = weight.sum(-1, keepdims=True)
        log_total = np.log1p(np.einsum("sa,sa->s", of_ref, np.expm1(np.where(far, 0.0, exponent))))[:, None]
        log_total = np.where(far, np.log(total), log_total)
        policy[rows] = weight / total
        new[rows] = (centre + beta * log_total)[:, 0] + entropy_bonus
    return policy, new


def _backward_induction(mdp: MDP, beta: float, ref: np.ndarray, entropy_bonus: float, horizon: int) -> SoftOptimum:
    states, actions = mdp.rewards.shape
    policy, value = np.empty((horizon, states, actions)), np.zeros((horizon + 1, states))
    log_policy = np.empty_like(policy)
    error = 0.0
    for step in reversed(range(horizon)):
        step_ref = ref if ref.ndim == 2 else ref[step]
        policy[step], log_policy[step], value[step] = _bellman_update(
            mdp, beta, step_ref, entropy_bonus, value[step + 1]
        )
        error = mdp.discount * error + _rounding_error(mdp, value[step], value[step + 1])
    return SoftOptimum(policy, log_policy, value, float(mdp.initial @ value[0]), beta, error, horizon)


def _policy_iteration(
    mdp: MDP, beta: float, ref: np.ndarray, entropy_bonus: float, tolerance: float, max_iterations: int
) -> SoftOptimum:
    """Newton's method on the soft Bellman equation, stopped by MacQueen's bounds."""
    value = np.zeros(len(mdp.rewards))
    bound_factor = mdp.discount / (1 - mdp.discount)
    never_ends = not mdp.ends.any()
    iteration, previous_spread = 0, np.inf
    while True:
        iteration += 1
        policy, new = _improved_policy(mdp, beta, ref, entropy_bonus, value)
        change = new - value
        # MacQueen's bounds: the optimum is between new + factor * low and new + factor * high, the extreme changes.
        # Where episodes can end, the end has value 0 and change 0.
        low, high = (change.min(), change.max()) if never_ends else (min(change.min(), 0.0), max(change.max(), 0.0))
        rounding = _rounding_error(mdp, new, value)
        error = bound_factor * (high - low) / 2 + rounding / (1 - mdp.discount)
        stalled = high - low <= 2 * rounding and high - low >= 0.5 * previous_spread
        if error <= tolerance or stalled or iteration >= max_iterations:
            break
        previous_spread = high - low
        value = value + solve_linear(state_transitions(mdp, mdp.discount * policy), change)
    policy, log_policy, new = _bellman_update(mdp, beta, ref, entropy_bonus, value)
    best = new + bound_factor * (low + high) / 2
    return SoftOptimum(policy, log_policy, best, float(mdp.initial @ best), beta, float(error), iteration)


def _rounding_error(mdp: MDP, *values: np.ndarray) -> float:
    """A bound on the rounding error of one Bellman update: one unit in the last place for each added term."""
    size = max(float(abs(value).max()) for value in values) + float(abs(mdp.rewards).max())
    terms = float(np.diff(mdp.transitions.indptr).max()) + 2 * mdp.rewards.shape[1] + 8
    return np.finfo(np.float64).eps * terms * size
