"""The response of the KL to a scaling of the displacement: a power law, whose exponent is estimated."""

import math
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["PullExponent"]

_EXPONENT_WALK = 0.02  # standard deviation of the exponent's random walk in one step
_STD_ERROR_MAX = 1.0  # initial and largest standard error
_EXPONENT_MIN, _EXPONENT_MAX = 1.0, 20.0
_STEP_WALK = 0.05  # variance of the mean step's random walk, as a share of the noise variance
_NOISE_MIN = 1e-3  # smallest standard error of a measured change of log KL ...
_NOISE_MAX = 1e3  # ... and the largest, beyond which a change has no weight
_INNOVATION_MAX = 1.0  # bound of one innovation


@dataclass(frozen=True)
class PullExponent:
    """The exponent k in KL ~ displacement^k, estimated by a Kalman filter.

    The model is

        change of log KL = mean_log_kl_step + value * log(displacement scale)

    Close to the reference the KL is quadratic in the displacement, so that `value` is 2.

    Args:
        value: The exponent.
        mean_log_kl_step: The mean change of log KL in an optimizer step without scaling.
        std_error: The standard error of `value`.
        mean_log_kl_step_std_error: The standard error of `mean_log_kl_step`.
        covariance: The covariance of the two errors.

    Example:
        >>> import math
        >>> state = PullExponent()
        >>> for _ in range(20):
        ...     state = state.after_scaling(math.log(0.9), 3 * math.log(0.9))
        >>> round(state.value, 3)
        3.0
    """

    value: float = 2.0
    mean_log_kl_step: float = 0.0
    std_error: float = _STD_ERROR_MAX
    mean_log_kl_step_std_error: float = _STD_ERROR_MAX
    covariance: float = 0.0

    def after_step(self, log_scale: float, change: float, *, noise: float) -> Self:
        """Update the estimate with an optimizer step followed by a scaling of the displacement.

        Args:
            log_scale: The logarithm of the displacement scale.
            change: The measured change of log KL.
            noise: The standard deviation of the step's own change of log KL.

        Returns:
            The updated state.
        """
        noise = min(_NOISE_MAX, math.hypot(noise, _NOISE_MIN))
        std_error = math.hypot(self.std_error, _EXPONENT_WALK)
        shrink = min(1.0, _STD_ERROR_MAX / std_error)
        exponent_variance, covariance = (shrink * std_error) ** 2, shrink * self.covariance
        step_variance = self.mean_log_kl_step_std_error**2 + _STEP_WALK * noise**2
        # Covariances of the predicted change with the mean step and with the exponent.
        with_step = step_variance + covariance * log_scale
        with_exponent = covariance + exponent_variance * log_scale
        total = with_step + with_exponent * log_scale + noise**2
        innovation = change - self.mean_log_kl_step - self.value * log_scale
        innovation = max(-_INNOVATION_MAX, min(_INNOVATION_MAX, innovation))
        value = self.value + with_exponent / total * innovation
        return replace(
            self,
            value=max(_EXPONENT_MIN, min(_EXPONENT_MAX, value)),
            mean_log_kl_step=self.mean_log_kl_step + with_step / total * innovation,
            std_error=math.sqrt(max(0.0, exponent_variance - with_exponent**2 / total)),
            mean_log_kl_step_std_error=math.sqrt(max(0.0, step_variance - with_step**2 / total)),
            covariance=covariance - with_step * with_exponent / total,
        )

    def after_scaling(self, log_scale: float, change: float) -> Self:
        """Update the estimate with a scaling of the displacement alone.

        Args:
            log_scale: The logarithm of the displacement scale.
            change: The measured change of log KL.

        Returns:
            The updated state.
        """
        gain = self.std_error**2 * log_scale / (self.std_error**2 * log_scale**2 + _NOISE_MIN**2)
        value = self.value + gain * (change - self.value * log_scale)
        return replace(
            self,
            value=max(_EXPONENT_MIN, min(_EXPONENT_MAX, value)),
            std_error=self.std_error * math.sqrt(1 - gain * log_scale),
            covariance=self.covariance * (1 - gain * log_scale),
        )
