"""How KL goes with the displacement from the reference: as a power of it, learned from what pulls did."""

import math
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["PullExponent"]

_BEND = 0.02  # what the power changes by in a step
_VAGUE = 1.0  # the most that its standard error is taken for
_LEAST, _MOST = 1.0, 20.0  # between which it lies
_FRESH = 0.05  # the variance that a step's own mean_log_kl_step gains, as a share of that of its noise
_FINEST = 1e-3  # the least error of a measured change of log KL ...
_COARSEST = 1e3  # ... and the most, beyond which it teaches nothing
_SURPRISE = 1.0  # the most that one change may teach


@dataclass(frozen=True)
class PullExponent:
    """change of log KL = mean_log_kl_step + value * log(pull), covariance by one Kalman filter; near the reference value is 2.

    Args:
        value: The power.
        mean_log_kl_step: What steps add to log KL by themselves, on average.
        std_error: The power's standard error.
        mean_log_kl_step_std_error: The mean_log_kl_step's.
        covariance: Their covariance.
    """

    value: float = 2.0
    mean_log_kl_step: float = 0.0
    std_error: float = _VAGUE
    mean_log_kl_step_std_error: float = _VAGUE
    covariance: float = 0.0

    def after_step(self, pulled: float, change: float, *, noise: float) -> Self:
        """The power after a step, whose own change is uncertain by noise, and a pull of that logarithm."""
        noise, std_error = min(_COARSEST, math.hypot(noise, _FINEST)), math.hypot(self.std_error, _BEND)
        shrink = min(1.0, _VAGUE / std_error)
        power, covariance = (shrink * std_error) ** 2, shrink * self.covariance
        mean_log_kl_step = self.mean_log_kl_step_std_error**2 + _FRESH * noise**2
        # Of the forecast with covariance, and with either.
        by_push, by_power = mean_log_kl_step + covariance * pulled, covariance + power * pulled
        total = by_push + by_power * pulled + noise**2
        surprise = change - self.mean_log_kl_step - self.value * pulled
        surprise = max(-_SURPRISE, min(_SURPRISE, surprise))
        return replace(
            self,
            value=max(_LEAST, min(_MOST, self.value + by_power / total * surprise)),
            mean_log_kl_step=self.mean_log_kl_step + by_push / total * surprise,
            std_error=math.sqrt(max(0.0, power - by_power**2 / total)),
            mean_log_kl_step_std_error=math.sqrt(max(0.0, mean_log_kl_step - by_push**2 / total)),
            covariance=covariance - by_push * by_power / total,
        )

    def after_scaling(self, pulled: float, change: float) -> Self:
        """The power after a pull alone."""
        gain = self.std_error**2 * pulled / (self.std_error**2 * pulled**2 + _FINEST**2)
        value = self.value + gain * (change - self.value * pulled)
        return replace(
            self,
            value=max(_LEAST, min(_MOST, value)),
            std_error=self.std_error * math.sqrt(1 - gain * pulled),
            covariance=self.covariance * (1 - gain * pulled),
        )
