"""The exact optimum of control near a reference policy: the soft Bellman equation of a known process."""

from dataclasses import dataclass

import numpy as np

from kullback.errors import SupportError
from kullback.numerics.arrays import ArrayLike
from kullback.optimum._tilt_kernel import tilted
from kullback.optimum.mdp import MDP
from kullback.optimum.trajectory_kl import as_policy, bellman_operator, solve

__all__ = ["SoftOptimum", "soft_value_iteration"]

_ROWS = 2**14  # states at a time: what their tilts make on the way stays in a processor's cache


@dataclass(frozen=True, eq=False)
class SoftOptimum:
    """The best policy near a reference, and what each state is worth under it.

    Args:
        policy: Probabilities of actions, shape (S, A), or (horizon, S, A).
        log_policy: Their logarithms, nats, which are finite where the probability is too small for a float.
        value: The largest objective from each state, shape (S,), or (horizon + 1, S) at each step and after the last.
        objective: Its mean over the process's first states.
        beta: The price of a nat in reward.
        error: A bound on the error of `value` anywhere, with rounding. Above the tolerance that was asked for only
            where rounding or `max_iterations` came first.
        iterations: How often the values of all states were renewed.
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
    """The policy that maximises E[sum of discount^t (reward - beta KL(policy || ref))] from every state.

    V(s) = beta log sum_a ref(a|s) e^(Q(s,a)/beta) with Q(s,a) = reward(s,a) + discount E[V(next state)], and the policy
    is ref e^(Q/beta) tilted in each state. Without `ref` the objective is E[sum of discount^t (reward + beta entropy)].
    Backward from the horizon; without one, by Newton's method on the values (soft policy iteration), which
    converges from anywhere: a step of it goes at least as far as one of value iteration.

    Args:
        mdp: The process.
        beta: Reward for a nat, finite and >= 0: at 0 the best policy, `ref` on its ties.
        ref: Probabilities of actions, shape (S, A), (A,), or (horizon, S, A); None for the entropy.
        tolerance: The error in value to stop at, in reward, without a horizon.
        max_iterations: How often to renew the values at most, without a horizon.

    Returns:
        `SoftOptimum`, in float64.

    Raises:
        SupportError: beta is negative, infinite or nan.
        ShapeError, NotNormalizedError: What a policy must be.

    Source: [todorov2009]; [levine2018], section 2; the bounds of MacQueen on the values are in [puterman1994], 6.6.

    Example:
        >>> mdp = MDP([[[1.0], [1.0]]], [[0.0, 1.0]], discount=0.5)
        >>> best = soft_value_iteration(mdp, 1.0)
        >>> best.policy.round(4), float(best.value[0].round(4)), best.error < 1e-9
        (array([[0.2689, 0.7311]]), 2.6265, True)
    """
    if not 0 <= beta < np.inf:
        raise SupportError(f"expected a finite beta >= 0, got {beta!r}")
    probs = np.full_like(mdp.rewards, 1 / mdp.rewards.shape[1]) if ref is None else as_policy(mdp, "ref", ref)
    probs = probs / probs.sum(-1, keepdims=True)
    # The entropy is log A less the KL to the uniform policy.
    bonus = beta * np.log(mdp.rewards.shape[1]) if ref is None else 0.0
    with np.errstate(all="ignore"):
        if mdp.horizon is not None:
            return _backward(mdp, beta, probs, bonus, mdp.horizon)
        return _newton(mdp, beta, probs, bonus, tolerance, max_iterations)


def _renewed(mdp: MDP, beta: float, ref: np.ndarray, bonus: float, value: np.ndarray) -> tuple[np.ndarray, ...]:
    """The best policy of one step before `value`, its logarithm, and its values."""
    q = mdp.rewards + mdp.discount * (mdp.transitions @ value).reshape(mdp.rewards.shape)
    policy, logs, new = np.empty_like(q), np.empty_like(q), np.empty_like(value)
    for start in range(0, len(value), _ROWS):
        rows = slice(start, start + _ROWS)
        best = tilted(np, ref[rows], q[rows], np.full(len(q[rows]), beta))
        policy[rows], logs[rows] = best.policy, np.log(ref[rows]) + best.d
        new[rows] = best.mean(np) - beta * best.kl + bonus
    return policy, logs, new


def _backward(mdp: MDP, beta: float, ref: np.ndarray, bonus: float, horizon: int) -> SoftOptimum:
    states, actions = mdp.rewards.shape
    policy, value = np.empty((horizon, states, actions)), np.zeros((horizon + 1, states))
    logs = np.empty_like(policy)
    error = 0.0
    for step in reversed(range(horizon)):
        at = ref if ref.ndim == 2 else ref[step]
        policy[step], logs[step], value[step] = _renewed(mdp, beta, at, bonus, value[step + 1])
        error = mdp.discount * error + _rounding(mdp, value[step], value[step + 1])
    return SoftOptimum(policy, logs, value, float(mdp.initial @ value[0]), beta, error, horizon)


def _newton(mdp: MDP, beta: float, ref: np.ndarray, bonus: float, tolerance: float, max_iterations: int) -> SoftOptimum:
    value = np.zeros(len(mdp.rewards))
    after = mdp.discount / (1 - mdp.discount)
    lasting = not mdp.ends.any()
    iteration, spread = 0, np.inf
    while True:
        iteration += 1
        policy, logs, new = _renewed(mdp, beta, ref, bonus, value)
        change = new - value
        # MacQueen: the optimum lies between new + after * (least, most), and where episodes end 0 is among them.
        least, most = (change.min(), change.max()) if lasting else (min(change.min(), 0.0), max(change.max(), 0.0))
        rounding = _rounding(mdp, new, value)
        error = after * (most - least) / 2 + rounding / (1 - mdp.discount)
        stalled = most - least <= 2 * rounding and most - least >= 0.5 * spread
        if error <= tolerance or stalled or iteration >= max_iterations:
            break
        spread = most - least
        value = value + solve(bellman_operator(mdp, policy), change)
    best = new + after * (least + most) / 2
    return SoftOptimum(policy, logs, best, float(mdp.initial @ best), beta, float(error), iteration)


def _rounding(mdp: MDP, *values: np.ndarray) -> float:
    """What rounding can do to one renewal: an ulp for each number that is added."""
    size = max(float(abs(value).max()) for value in values) + float(abs(mdp.rewards).max())
    terms = float(np.diff(mdp.transitions.indptr).max()) + 2 * mdp.rewards.shape[1] + 8
    return np.finfo(np.float64).eps * terms * size
