"""Markov decision processes with known transition probabilities and rewards."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from scipy import sparse

from kullback.errors import NotNormalizedError, ShapeError, SupportError
from kullback.numerics.arguments import as_float64, is_index, is_number, shown
from kullback.numerics.labels import is_labelled, require_unlabelled

__all__ = ["MDP"]

_MAX_HORIZON = 10**9  # each step needs an array of the size of the rewards


@dataclass(frozen=True, eq=False)
class MDP:
    """A Markov decision process with S states and A actions.

    The fields are converted to float64: `transitions` to a SciPy sparse array of shape (S * A, S), and all others to
    NumPy arrays.

    Args:
        transitions: The probability of each next state: shape (S, A, S), or a sparse array of shape (S * A, S) whose
            row s * A + a belongs to state s and action a. Each row plus its entry of `ends` sums to 1.
        rewards: The expected reward of each action, shape (S, A); finite.
        ends: The probability that the episode ends after this action, shape (S, A); 0 if None.
        discount: The discount factor per step, in [0, 1]; 1 only with a horizon.
        horizon: The largest number of steps in an episode; None for an unbounded number.
        initial: The probabilities of the first state, shape (S,); uniform if None.

    Raises:
        ArrayTypeError: An argument is not an array of real numbers, or several arguments have labels.
        ShapeError: The shapes do not match.
        NotNormalizedError: Probabilities are negative or nan, or do not sum to 1 within 1e-9.
        SupportError: A reward is not finite, the discount is outside [0, 1], the horizon is not a positive integer, or
            the discount is 1 without a horizon.

    References:
        Puterman (1994), "Markov Decision Processes" [puterman1994].

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
        given = {name: getattr(self, name) for name in ("rewards", "transitions", "ends", "initial")}
        for name in [name for name, value in given.items() if is_labelled(value)][1:]:
            require_unlabelled(name, given[name])  # the states of two arrays would be matched by position
        rewards = as_float64("rewards", self.rewards)
        if rewards.ndim != 2 or 0 in rewards.shape:
            raise ShapeError(f"expected rewards of shape (states, actions), got {rewards.shape}")
        states, actions = rewards.shape
        transitions = (
            self.transitions if sparse.issparse(self.transitions) else as_float64("transitions", self.transitions)
        )
        flat, full = (states * actions, states), (states, actions, states)
        if transitions.shape not in ([flat] if sparse.issparse(transitions) else [flat, full]):
            raise ShapeError(
                f"expected transitions of shape {full}, or a sparse array of shape {flat}, to match rewards of shape "
                f"{rewards.shape}, got shape {transitions.shape}"
            )
        if not sparse.issparse(transitions):
            transitions = transitions.reshape(flat)
        transitions = sparse.csr_array(transitions, dtype=np.float64)
        ends = np.zeros(rewards.shape) if self.ends is None else as_float64("ends", self.ends)
        initial = np.full(states, 1 / states) if self.initial is None else as_float64("initial", self.initial)
        for name, array, shape in (("ends", ends, rewards.shape), ("initial", initial, (states,))):
            if array.shape != shape:
                raise ShapeError(f"expected {name} of shape {shape}, got {array.shape}")
        fields = {"transitions": transitions, "rewards": rewards, "ends": ends, "initial": initial}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self._require_values()

    def _require_values(self) -> None:
        """Raises unless probabilities sum to 1, rewards are finite, and the objective is bounded."""
        actions = self.rewards.shape[1]
        for name, array in (("transitions", self.transitions.data), ("ends", self.ends), ("initial", self.initial)):
            if not (array >= 0).all():
                value = array[~(array >= 0)].ravel()[0]
                raise NotNormalizedError(f"expected probabilities >= 0, but {name} contains {float(value)!r}")
        sums = self.transitions.sum(axis=1) + self.ends.ravel()
        if (invalid := abs(sums - 1) > 1e-9).any():
            row = int(invalid.argmax())
            raise NotNormalizedError(
                "expected transitions plus ends to sum to 1 within 1e-9, but for state "
                f"{row // actions}, action {row % actions} they sum to {float(sums[row])!r}; put the probability that "
                "the episode ends in ends"
            )
        if abs(self.initial.sum() - 1) > 1e-9:
            raise NotNormalizedError(f"expected initial to sum to 1 within 1e-9, got {float(self.initial.sum())!r}")
        if not np.isfinite(self.rewards).all():
            state, action = map(int, np.argwhere(~np.isfinite(self.rewards))[0])
            raise SupportError(
                f"expected finite rewards, but rewards[{state}, {action}] is {float(self.rewards[state, action])!r}; "
                "to exclude an action, set its probability in ref to 0"
            )
        if not (is_number(self.discount) and 0 <= self.discount <= 1):
            raise SupportError(f"expected a discount in [0, 1], got {shown(self.discount)}")
        if self.horizon is not None and not (is_index(self.horizon) and 1 <= self.horizon <= _MAX_HORIZON):
            raise SupportError(
                f"expected a horizon of at least 1 step and at most {_MAX_HORIZON}, as an integer, or None, got "
                f"{shown(self.horizon)}"
            )
        if self.horizon is None and self.discount == 1:
            raise SupportError(
                "expected a horizon, or a discount less than 1, got neither: the objective would be unbounded; pass a "
                "horizon or a discount"
            )
