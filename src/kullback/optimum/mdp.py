"""Markov decision processes whose transitions are known."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from kullback.errors import NotNormalizedError, ShapeError, SupportError

__all__ = ["MDP"]


@dataclass(frozen=True, eq=False)
class MDP:
    """A Markov decision process of S states and A actions: NumPy arrays, and SciPy's sparse transitions.

    Args:
        transitions: The probability of each next state: shape (S, A, S), or a sparse array of shape (S * A, S) whose
            row s * A + a belongs to state s and action a. Rows sum to 1 with `ends`.
        rewards: The expected reward of each action, shape (S, A); finite.
        ends: The probability that the episode ends with this step, shape (S, A); 0 if not given.
        discount: What a reward one step later counts, in [0, 1]; 1 only with a horizon.
        horizon: How many steps an episode has at most; None for no bound.
        initial: The probabilities of the first state, shape (S,); uniform if not given.

    Raises:
        ShapeError: The shapes do not fit together.
        NotNormalizedError: Probabilities are negative or nan, or do not sum to 1 to within 1e-9.
        SupportError: A reward is not finite, a discount lies outside [0, 1], or nothing ever ends.

    Example:
        >>> walk = np.asarray([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
        >>> mdp = MDP(walk, [[0.0, 1.0], [0.0, 2.0]], discount=0.9)
        >>> mdp.transitions.shape, mdp.initial
        ((4, 2), array([0.5, 0.5]))
    """

    transitions: Any
    rewards: Any
    _: KW_ONLY
    ends: Any = None
    discount: float = 1.0
    horizon: int | None = None
    initial: Any = None

    def __post_init__(self) -> None:
        rewards = np.asarray(self.rewards, dtype=np.float64)
        if rewards.ndim != 2 or 0 in rewards.shape:
            raise ShapeError(f"expected rewards of shape (states, actions), got {rewards.shape}")
        states, actions = rewards.shape
        given = self.transitions if sparse.issparse(self.transitions) else np.asarray(self.transitions)
        fits = [(states * actions, states), (states, actions, states)]
        if given.shape not in fits[: 1 if sparse.issparse(given) else 2]:
            raise ShapeError(
                f"expected transitions of shape {fits[1]}, or sparse ones of shape {fits[0]}, to go with rewards of "
                f"shape {rewards.shape}, got {given.shape}"
            )
        if not sparse.issparse(given):
            given = given.reshape(fits[0])
        transitions = sparse.csr_array(given, dtype=np.float64)
        ends = np.zeros(rewards.shape) if self.ends is None else np.asarray(self.ends, dtype=np.float64)
        initial = np.full(states, 1 / states) if self.initial is None else np.asarray(self.initial, dtype=np.float64)
        for name, array, shape in (("ends", ends, rewards.shape), ("initial", initial, (states,))):
            if array.shape != shape:
                raise ShapeError(f"expected {name} of shape {shape}, got {array.shape}")
        fields = {"transitions": transitions, "rewards": rewards, "ends": ends, "initial": initial}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._require_numbers()

    def _require_numbers(self) -> None:
        actions = self.rewards.shape[1]
        for name, array in (("transitions", self.transitions.data), ("ends", self.ends), ("initial", self.initial)):
            if not (array >= 0).all():
                value = array[~(array >= 0)].ravel()[0]
                raise NotNormalizedError(f"expected probabilities, >= 0, but {name} holds {float(value)!r}")
        sums = self.transitions.sum(axis=1) + self.ends.ravel()
        if (bad := abs(sums - 1) > 1e-9).any():
            row = int(bad.argmax())
            raise NotNormalizedError(
                f"expected transitions and ends to sum to 1 within 1e-9, but those of state {row // actions}, action "
                f"{row % actions} sum to {float(sums[row])!r}; where the episode ends, say so in ends"
            )
        if abs(self.initial.sum() - 1) > 1e-9:
            raise NotNormalizedError(f"expected initial to sum to 1 within 1e-9, got {float(self.initial.sum())!r}")
        if not np.isfinite(self.rewards).all():
            state, action = map(int, np.argwhere(~np.isfinite(self.rewards))[0])
            raise SupportError(
                f"expected finite rewards, but rewards[{state}, {action}] is {float(self.rewards[state, action])!r}; "
                "where an action is forbidden, give it probability 0 in ref"
            )
        if not 0 <= self.discount <= 1:
            raise SupportError(f"expected a discount in [0, 1], got {self.discount!r}")
        if self.horizon is not None and not (isinstance(self.horizon, int | np.integer) and self.horizon >= 1):
            raise SupportError(f"expected a horizon of 1 step or more, or None, got {self.horizon!r}")
        if self.horizon is None and self.discount == 1:
            raise SupportError(
                "expected a horizon, or a discount below 1: without either, nothing bounds the objective"
            )
