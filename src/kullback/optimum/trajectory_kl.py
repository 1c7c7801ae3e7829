"""KL divergence between trajectory distributions and objectives of policies in a Markov decision process, exactly."""

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse.linalg import LinearOperator, bicgstab, splu
from scipy.special import entr

from kullback.discrete.kl import kl_log_probs, kl_probs
from kullback.discrete.validation import require_probs
from kullback.errors import ShapeError
from kullback.numerics.arrays import ArrayLike
from kullback.optimum.mdp import MDP

__all__ = ["as_policy", "policy_objective", "solve_linear", "state_transitions", "trajectory_kl"]

_DIRECT_STATES = 2000  # the number of states up to which a sparse factorisation is faster than an iteration


def trajectory_kl(
    mdp: MDP, policy: ArrayLike, ref: ArrayLike | None = None, *, log_ref: ArrayLike | None = None
) -> float:
    """KL(policy || ref) between the distributions of whole trajectories that start from `mdp.initial`.

        KL = sum_t discount^t E[KL(policy(.|s_t) || ref(.|s_t))], with states s_t visited by `policy`

    The transition probabilities are the same under both policies and cancel. A discount is interpreted as the
    probability that a trajectory continues after a step. If `ref` is the optimal policy of `soft_value_iteration`, beta
    times this KL is the difference between the optimal objective and the objective of `policy`.

    Args:
        mdp: The Markov decision process.
        policy: Probabilities of actions, shape (S, A), (horizon, S, A), or (A,) for the same probabilities in every
            state.
        ref: Probabilities of actions of the reference policy, in one of the same shapes.
        log_ref: Log-probabilities of actions of the reference policy, nats, instead of `ref`. `SoftOptimum.log_policy`
            represents probabilities that underflow in `SoftOptimum.policy`.

    Returns:
        Nats per trajectory; `inf` where `policy` takes, in a state that it visits, an action of reference probability
        0.

    Raises:
        ShapeError: A policy does not have one of the shapes above, or not exactly one of `ref` and `log_ref` is given.
        NotNormalizedError: A probability is negative or nan, or a row does not sum to 1.

    References:
        Levine (2018), "Reinforcement Learning and Control as Probabilistic Inference", section 2.4 [levine2018].

    Example:
        >>> mdp = MDP([[[1.0], [1.0]]], [[0.0, 1.0]], horizon=3)
        >>> trajectory_kl(mdp, [0.5, 0.5], [0.5, 0.5]), round(trajectory_kl(mdp, [0.0, 1.0], [0.5, 0.5]), 4)
        (0.0, 2.0794)
    """
    if (ref is None) == (log_ref is None):
        raise ShapeError(f"expected one of ref and log_ref, got {'neither' if ref is None else 'both'}")
    probs = as_policy(mdp, "policy", policy)
    if log_ref is None:
        return _expected_sum(mdp, probs, kl_probs(probs, as_policy(mdp, "ref", ref)))
    ref_log_probs = _broadcast_policy(mdp, "log_ref", log_ref)
    with np.errstate(divide="ignore"):
        return _expected_sum(mdp, probs, kl_log_probs(np.log(probs), ref_log_probs))


def policy_objective(mdp: MDP, policy: ArrayLike, beta: float, ref: ArrayLike | None = None) -> float:
    """The KL-regularised objective of a policy, or the entropy-regularised objective if `ref` is None.

        E[sum_t discount^t (reward - beta KL(policy || ref))],   or   E[sum_t discount^t (reward + beta entropy)]

    Args:
        mdp: The Markov decision process.
        policy: Probabilities of actions, shape (S, A), (horizon, S, A), or (A,) for the same probabilities in every
            state.
        beta: Coefficient of the KL or the entropy, in units of reward per nat, >= 0.
        ref: Probabilities of actions of the reference policy, in one of the same shapes. None selects the entropy.

    Returns:
        In units of reward; `-inf` where beta > 0 and the KL is `inf`.

    Raises:
        ShapeError: A policy does not have one of the shapes above.
        NotNormalizedError: A probability is negative or nan, or a row does not sum to 1.

    References:
        Levine (2018), "Reinforcement Learning and Control as Probabilistic Inference", section 2.4 [levine2018].

    Example:
        >>> mdp = MDP([[[1.0], [1.0]]], [[0.0, 1.0]], horizon=3)
        >>> round(policy_objective(mdp, [0.5, 0.5], 1.0), 4)
        3.5794
    """
    probs = as_policy(mdp, "policy", policy)
    cost = -entr(probs).sum(-1) if ref is None else kl_probs(probs, as_policy(mdp, "ref", ref))
    mean = (probs * mdp.rewards).sum(-1)
    return _expected_sum(mdp, probs, mean - beta * cost if beta else mean)


def as_policy(mdp: MDP, name: str, given: ArrayLike) -> np.ndarray:
    """Validated probabilities of actions, shape (S, A) or (horizon, S, A); `name` is used in error messages."""
    probs = _broadcast_policy(mdp, name, given)
    require_probs(np, name, probs, probs, probs.dtype, -1)
    return probs


def _broadcast_policy(mdp: MDP, name: str, given: ArrayLike) -> np.ndarray:
    """The array in float64 with shape (S, A) or (horizon, S, A)."""
    shape = mdp.rewards.shape
    array = np.asarray(given, dtype=np.float64)
    if array.ndim == 1:
        array = np.broadcast_to(array, (shape[0], *array.shape))
    if array.shape != shape and (mdp.horizon is None or array.shape != (mdp.horizon, *shape)):
        expected = f"{shape}" if mdp.horizon is None else f"{shape} or {(mdp.horizon, *shape)}"
        raise ShapeError(f"expected {name} of shape {expected}, got {np.asarray(given).shape}")
    return array


def state_transitions(mdp: MDP, policy: np.ndarray) -> sparse.csr_array:
    """The transition probabilities between states, shape (S, S), under a policy of shape (S, A).

    A row has one entry for each action and next state, so that an entry of the matrix may be the sum of several.
    """
    states, actions = policy.shape
    starts, columns = mdp.transitions.indptr, mdp.transitions.indices
    probs = mdp.transitions.data * np.repeat(policy.ravel(), np.diff(starts))
    return sparse.csr_array((probs, columns, starts[::actions]), shape=(states, states))


def solve_linear(discounted: sparse.csr_array, right: np.ndarray) -> np.ndarray:
    """An approximate solution x of x - discounted x = right, for iterative refinement.

    The norm of `discounted` is less than 1. Large systems are solved iteratively to a few digits. If the iteration does
    not reduce the residual, `right` is returned, which is one step of the fixed-point iteration.
    """
    states = len(right)
    if states <= _DIRECT_STATES:
        return splu((sparse.eye_array(states, format="csr") - discounted).tocsc()).solve(right)
    size = np.linalg.norm(right)
    if size == 0:
        return right
    system = LinearOperator(  # pyright: ignore[reportCallIssue]
        (states, states),
        matvec=lambda x: x - discounted @ x,  # pyright: ignore[reportCallIssue]
        dtype=np.float64,  # pyright: ignore[reportCallIssue]
    )
    # bicgstab treats a small right-hand side as a breakdown, so it is scaled to unit norm.
    solution = bicgstab(system, right / size, rtol=1e-4, maxiter=1000)[0] * size
    residual = abs(right - solution + discounted @ solution).sum()
    return solution if residual < abs(right).sum() else right


def _expected_sum(mdp: MDP, policy: np.ndarray, state_values: np.ndarray) -> float:
    """The sum over t of discount^t E[state_values(s_t)], with states visited by `policy`."""
    if mdp.horizon is None:
        visits = _discounted_visits(mdp, policy)
        if not np.isfinite(state_values).all():
            # Rounding gives unreachable states a small number of visits, which must not multiply an infinite value.
            visits = np.where(_reachable(mdp, policy), visits, 0.0)
        return _dot(visits, state_values)
    visits, total = mdp.initial, 0.0
    stationary = state_transitions(mdp, policy).T if policy.ndim == 2 else None
    for step in range(mdp.horizon):
        step_values = state_values if state_values.ndim == 1 else state_values[step]
        total += _dot(visits, step_values)
        transitions = state_transitions(mdp, policy[step]).T if stationary is None else stationary
        visits = mdp.discount * (transitions @ visits)
    return total


def _dot(visits: np.ndarray, state_values: np.ndarray) -> float:
    """The inner product over states with visits, so that 0 times infinity is 0."""
    return float(visits[visits != 0] @ state_values[visits != 0])


def _discounted_visits(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """The expected discounted number of visits v of each state: v = initial + discount P' v, up to rounding."""
    discounted = state_transitions(mdp, mdp.discount * policy).T.tocsr()
    visits = np.zeros_like(mdp.initial)
    residual, previous = mdp.initial, np.inf
    # The residual bounds the error: |error| <= |residual| / (1 - discount), summed over states.
    while 1e-15 < (size := abs(residual).sum()) < previous:
        visits, previous = visits + solve_linear(discounted, residual), size
        residual = mdp.initial - visits + discounted @ visits
    return visits


def _reachable(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """Whether each state has a positive probability of a visit under `policy`."""
    transitions = state_transitions(mdp, policy).copy()  # the original shares its columns with the process
    transitions.sum_duplicates()
    transitions.eliminate_zeros()
    starts = np.flatnonzero(mdp.initial)
    if mdp.discount == 0:
        return mdp.initial > 0
    return np.isfinite(csgraph.dijkstra(transitions, indices=starts, unweighted=True, min_only=True))
