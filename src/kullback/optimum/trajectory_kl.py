"""What a policy does in a Markov decision process, exactly: its visits, its objective, its KL over trajectories."""

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import bicgstab, splu
from scipy.special import entr

from kullback.discrete.kl import kl_log_probs, kl_probs
from kullback.discrete.validation import require_probs
from kullback.errors import ShapeError
from kullback.numerics.arrays import ArrayLike
from kullback.optimum.mdp import MDP

__all__ = ["as_policy", "bellman_operator", "policy_objective", "solve", "trajectory_kl"]

_DIRECT = 2000  # states up to which a factorisation is soonest


def trajectory_kl(
    mdp: MDP, policy: ArrayLike, ref: ArrayLike | None = None, *, log_ref: ArrayLike | None = None
) -> float:
    """KL(policy || ref) of whole trajectories that start from `mdp.initial`, in nats.

    The transitions are the same on both sides, so it is the sum over steps t of discount^t E[KL(policy(.|s_t) ||
    ref(.|s_t))], the states visited by `policy`. A discount is the chance that a trajectory goes on after a step.

    It is how far `policy` falls short of the best objective, in units of beta, where `ref` is the best policy that
    `soft_value_iteration` finds.

    Args:
        mdp: The process.
        policy: Probabilities of actions, shape (S, A), or (horizon, S, A); `(A,)` for the same in every state.
        ref: The same.
        log_ref: Their logarithms, in place of `ref`: a `log_policy` keeps what is too small for a probability.

    Returns:
        Nats; `inf` where `policy` does, in a state that it visits, what `ref` never does.

    Raises:
        ShapeError, NotNormalizedError: What a policy must be.

    Source: [levine2018], section 2.4.

    Example:
        >>> mdp = MDP([[[1.0], [1.0]]], [[0.0, 1.0]], horizon=3)
        >>> trajectory_kl(mdp, [0.5, 0.5], [0.5, 0.5]), round(trajectory_kl(mdp, [0.0, 1.0], [0.5, 0.5]), 4)
        (0.0, 2.0794)
    """
    if (ref is None) == (log_ref is None):
        raise ShapeError("expected one of ref and log_ref, got both or neither")
    probs = as_policy(mdp, "policy", policy)
    if log_ref is None:
        return _expected(mdp, probs, kl_probs(probs, as_policy(mdp, "ref", ref)))
    logs = _fitted(mdp, "log_ref", log_ref)
    with np.errstate(divide="ignore"):
        return _expected(mdp, probs, kl_log_probs(np.log(probs), logs))


def policy_objective(mdp: MDP, policy: ArrayLike, beta: float, ref: ArrayLike | None = None) -> float:
    """E[sum of discount^t (reward - beta KL(policy || ref))] of a policy, or with + beta entropy where `ref` is None.

    Args:
        mdp: The process.
        policy: Probabilities of actions, as in `trajectory_kl`.
        beta: Reward for a nat, >= 0.
        ref: Probabilities of actions, as in `trajectory_kl`; None for the entropy.

    Returns:
        In units of reward; `-inf` where the KL is `inf`.

    Raises:
        ShapeError, NotNormalizedError: What a policy must be.

    Source: [levine2018], section 2.4.

    Example:
        >>> mdp = MDP([[[1.0], [1.0]]], [[0.0, 1.0]], horizon=3)
        >>> round(policy_objective(mdp, [0.5, 0.5], 1.0), 4)
        3.5794
    """
    probs = as_policy(mdp, "policy", policy)
    cost = -entr(probs).sum(-1) if ref is None else kl_probs(probs, as_policy(mdp, "ref", ref))
    mean = (probs * mdp.rewards).sum(-1)
    return _expected(mdp, probs, mean - beta * cost if beta else mean)


def as_policy(mdp: MDP, name: str, given: ArrayLike) -> np.ndarray:
    """Probabilities of actions, (S, A) or (horizon, S, A), that fit the process."""
    probs = _fitted(mdp, name, given)
    require_probs(np, name, probs, probs, probs.dtype, -1)
    return probs


def _fitted(mdp: MDP, name: str, given: ArrayLike) -> np.ndarray:
    shape = mdp.rewards.shape
    array = np.asarray(given, dtype=np.float64)
    if array.ndim == 1:
        array = np.broadcast_to(array, (shape[0], *array.shape))
    if array.shape != shape and (mdp.horizon is None or array.shape != (mdp.horizon, *shape)):
        fits = f"{shape}" if mdp.horizon is None else f"{shape} or {(mdp.horizon, *shape)}"
        raise ShapeError(f"expected {name} of shape {fits}, got {np.asarray(given).shape}")
    return array


def state_transitions(mdp: MDP, policy: np.ndarray) -> sparse.csr_array:
    """The transitions from state to state, (S, S), under a policy (S, A)."""
    states, actions = policy.shape
    starts = np.arange(0, states * actions + 1, actions)
    choice = sparse.csr_array((policy.ravel(), np.arange(states * actions), starts), shape=(states, states * actions))
    return choice @ mdp.transitions


def bellman_operator(mdp: MDP, policy: np.ndarray) -> sparse.csr_array:
    """1 - discount P, for the transitions P under a policy."""
    return sparse.eye_array(len(mdp.rewards), format="csr") - mdp.discount * state_transitions(mdp, policy)


def solve(system: sparse.csr_array, right: np.ndarray) -> np.ndarray:
    """x of system x = right, for a `system` that is 1 less something of norm below 1: a few digits, for a correction.

    Where the iteration fails it is `right` itself, one step of the fixed-point iteration.
    """
    if len(right) <= _DIRECT:
        return splu(system.tocsc()).solve(right)
    size = np.linalg.norm(right)
    if size == 0:
        return right
    # Of unit size, or bicgstab takes a small right side for its breakdown.
    found = bicgstab(system, right / size, rtol=1e-4, maxiter=1000)[0] * size
    left = abs(right - system @ found).sum()
    return found if left < abs(right).sum() else right


def _expected(mdp: MDP, policy: np.ndarray, each: np.ndarray) -> float:
    """The sum over steps t of discount^t E[each(s_t)], the states visited by `policy`."""
    if mdp.horizon is None:
        visits = _visits(mdp, policy)
        if not np.isfinite(each).all():
            # Rounding visits every state a little.
            visits = np.where(_reached(mdp, policy), visits, 0.0)
        return _dot(visits, each)
    visits, total = mdp.initial, 0.0
    moves = state_transitions(mdp, policy).T if policy.ndim == 2 else None
    for step in range(mdp.horizon):
        now = each if each.ndim == 1 else each[step]
        total += _dot(visits, now)
        visits = mdp.discount * ((state_transitions(mdp, policy[step]).T if moves is None else moves) @ visits)
    return total


def _dot(visits: np.ndarray, each: np.ndarray) -> float:
    return float(visits[visits != 0] @ each[visits != 0])


def _visits(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """The discounted number of visits of each state: v = initial + discount P' v, to rounding."""
    system = bellman_operator(mdp, policy).T.tocsr()
    visits = np.zeros_like(mdp.initial)
    left, before = mdp.initial, np.inf
    # What is left over bounds the error: |error| <= |left| / (1 - discount), summed over states.
    while 1e-15 < (size := abs(left).sum()) < before:
        visits, before = visits + solve(system, left), size
        left = mdp.initial - system @ visits
    return visits


def _reached(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    moves = state_transitions(mdp, policy)
    moves.eliminate_zeros()
    starts = np.flatnonzero(mdp.initial)
    if mdp.discount == 0:
        return mdp.initial > 0
    return np.isfinite(csgraph.dijkstra(moves, indices=starts, unweighted=True, min_only=True))
