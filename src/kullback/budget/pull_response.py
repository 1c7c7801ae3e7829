"""How KL goes with the displacement from the reference: as a power of it, learned from what pulls did."""

import math
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["Power"]

_BEND = 0.02  # what the power changes by in a step
_VAGUE = 1.0  # the most that its standard error is taken for
_LEAST, _MOST = 1.0, 20.0  # between which it lies
_FRESH = 0.05  # the variance that a step's own push gains, as a share of that of its noise
_FINEST = 1e-3  # the least error of a measured change of log KL ...
_COARSEST = 1e3  # ... and the most, beyond which it teaches nothing
_SURPRISE = 1.0  # the most that one change may teach


@dataclass(frozen=True)
class Power:
    """change of log KL = push + value * log(pull), both by one Kalman filter; near the reference value is 2.

    Args:
        value: The power.
        push: What steps add to log KL by themselves, on average.
        doubt: The power's standard error.
        push_doubt: The push's.
        both: Their covariance.
    """

    value: float = 2.0
    push: float = 0.0
    doubt: float = _VAGUE
    push_doubt: float = _VAGUE
    both: float = 0.0

    def moved(self, pulled: float, change: float, *, noise: float) -> Self:
        """The power after a step, whose own change is uncertain by noise, and a pull of that logarithm."""
        noise, doubt = min(_COARSEST, math.hypot(noise, _FINEST)), math.hypot(self.doubt, _BEND)
        shrink = min(1.0, _VAGUE / doubt)
        power, both = (shrink * doubt) ** 2, shrink * self.both
        push = self.push_doubt**2 + _FRESH * noise**2
        # Of the forecast with both, and with either.
        by_push, by_power = push + both * pulled, both + power * pulled
        total = by_push + by_power * pulled + noise**2
        surprise = change - self.push - self.value * pulled
        surprise = max(-_SURPRISE, min(_SURPRISE, surprise))
        return replace(
            self,
            value=max(_LEAST, min(_MOST, self.value + by_power / total * surprise)),
            push=self.push + by_push / total * surprise,
            doubt=math.sqrt(max(0.0, power - by_power**2 / total)),
            push_doubt=math.sqrt(max(0.0, push - by_push**2 / total)),
            both=both - by_push * by_power / total,
        )

    def scaled(self, pulled: float, change: float) -> Self:
        """The power after a pull alone."""
        gain = self.doubt**2 * pulled / (self.doubt**2 * pulled**2 + _FINEST**2)
        value = self.value + gain * (change - self.value * pulled)
        return replace(
            self,
            value=max(_LEAST, min(_MOST, value)),
            doubt=self.doubt * math.sqrt(1 - gain * pulled),
            both=self.both * (1 - gain * pulled),
        )
