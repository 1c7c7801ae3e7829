"""A Kalman filter that estimates the KL of a policy from noisy batches, held-out changes and evaluations."""

import math
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["KLFilter"]

_SPREAD_GAIN = 0.1  # weight of the newest batch in the running mean square of the spread
_CHANGE_NOISE = 0.25  # standard error of a measured change of log KL, as a share of the change, if unknown ...
_CHANGE_NOISE_MIN = 0.012  # ... and its minimum, if unknown
_CHANGE_NOISE_SCALE = (
    2.0  # multiplies a known standard error: errors of one held-out position are correlated over steps
)
_DRIFT_MAX = 0.01  # bound of the drift of log KL in one step
_DRIFT_STD_ERROR = 0.003  # initial and largest standard error of the drift
_DRIFT_WALK = 0.0003  # standard deviation of the drift's random walk in one step
_UNMEASURED_STEP = 0.1  # standard deviation of the change of log KL in a step that was not measured
_JUMP = 10.0  # a KL that grows by a larger factor replaces the estimate
_KL_MAX = 1e300  # nats; keeps every state finite
_REL_ERROR_MAX = 10.0  # bound of relative standard deviations and errors
_EVALUATION_NOISE = 0.5  # share of an evaluation's standard error that is independent between evaluations
_OFFSET_WALK = 0.01  # standard deviation of the offset's random walk between evaluations


@dataclass(frozen=True)
class KLFilter:
    """The estimated KL in nats per unit, with its error and with the biases of its measurements.

    The state of a Kalman filter on log KL and on its drift. A step multiplies `value` by the measured ratio of the KLs
    of held-out samples and by exp(drift), where the drift is the mean change of log KL that these samples do not show.
    A batch or an evaluation then corrects both components with the Kalman gain.

    Args:
        value: The estimate in nats per unit; 0 before the first measurement.
        rel_std_error: The standard error of log KL.
        drift: The change of log KL in one step beyond the change measured on held-out samples.
        drift_std_error: The standard error of `drift`.
        covariance: The covariance of the errors of log KL and of `drift`.
        spread: The running relative standard deviation of the KL between prompts.
        offset: log(KL on the evaluation set / value).
        offset_std_error: The standard error of `offset`; 0 before the first evaluation.
        has_step_update: Whether `after_step` was called since the last batch.

    Example:
        >>> state = KLFilter().after_batch(0.04, std_error=0.004, count=16)
        >>> round(state.value, 4), round(state.rel_std_error, 4)
        (0.04, 0.1)
        >>> round(state.after_step(0.05, 0.055, optimizer_change=0.1).value, 4)
        0.044
    """

    value: float = 0.0
    rel_std_error: float = 0.0
    drift: float = 0.0
    drift_std_error: float = _DRIFT_STD_ERROR
    covariance: float = 0.0
    spread: float = 0.0
    offset: float = 0.0
    offset_std_error: float = 0.0
    has_step_update: bool = False

    def after_batch(self, kl: float, *, std_error: float, count: float) -> Self:
        """Correct the estimate with the mean KL of a batch.

        Args:
            kl: The mean KL of the batch, nats per unit.
            std_error: Its standard error; nan if unknown.
            count: The number of independent prompts in the batch.

        Returns:
            The corrected state.
        """
        if max(kl, self.value) <= 0:
            return replace(self, has_step_update=False)
        if 0 < _JUMP * self.value < kl and not self.has_step_update:
            # The earlier batch may have had the KL of rounding alone, as in 16 bits before the first step.
            return replace(self, value=0.0, spread=0.0).after_batch(kl, std_error=std_error, count=count)
        # The standard error of a batch grows with its mean, so that weights from it would favour low batches. The
        # spread of earlier batches does not depend on this batch.
        scale = self.value or kl
        known = math.isfinite(std_error) and count > 1
        batch_spread = min(_REL_ERROR_MAX, std_error / scale * math.sqrt(count)) if known else 1.0
        earlier = self.spread or batch_spread
        spread = math.hypot(math.sqrt(1 - _SPREAD_GAIN) * earlier, math.sqrt(_SPREAD_GAIN) * batch_spread)
        noise = earlier**2 / count
        if self.value <= 0:
            return replace(self, value=kl, rel_std_error=math.sqrt(noise), spread=spread, has_step_update=False)
        prior = self.rel_std_error**2 + (0.0 if self.has_step_update else _UNMEASURED_STEP**2)
        total = max(prior + noise, 1e-300)
        gain = prior / total
        innovation = max(-1.0, min(1.0, kl / self.value - 1))
        return replace(
            self._correct_drift(innovation, variance=total),
            value=self.value + gain * (kl - self.value),
            rel_std_error=math.sqrt(prior * (1 - gain)),
            covariance=self.covariance * (1 - gain),
            spread=spread,
            has_step_update=False,
        )

    def is_valid_change(self, before: float, after: float) -> bool:
        """Return whether the KL of held-out samples before and after a step gives a usable ratio."""
        return before > 0 and 0 < after < _JUMP * before and self.value > 0

    def after_step(self, before: float, after: float, *, optimizer_change: float, std_error: float = math.nan) -> Self:
        """Propagate the estimate through a step that was measured on held-out samples.

        Args:
            before: The KL of the held-out samples before the step.
            after: Their KL after the step.
            optimizer_change: The change of log KL caused by the optimizer alone.
            std_error: The relative standard error of after / before; nan if unknown.

        Returns:
            The state after the step.
        """
        if not self.is_valid_change(before, after):
            return replace(self, value=after, rel_std_error=1.0, covariance=0.0, has_step_update=True)
        if math.isnan(std_error):
            noise = math.hypot(_CHANGE_NOISE_MIN, _CHANGE_NOISE * optimizer_change)
        else:
            noise = min(1.0, _CHANGE_NOISE_SCALE * std_error)
        drift_std_error = min(_DRIFT_STD_ERROR, math.hypot(self.drift_std_error, _DRIFT_WALK))
        variance = self.rel_std_error**2 + 2 * self.covariance + drift_std_error**2 + noise**2
        return replace(
            self,
            value=min(_KL_MAX, self.value * (after / before) * math.exp(self.drift)),
            rel_std_error=math.sqrt(max(0.0, variance)),
            drift_std_error=drift_std_error,
            covariance=self.covariance + drift_std_error**2,
            has_step_update=True,
        )

    def after_scaling(self, before: float, after: float) -> Self:
        """Propagate the estimate through a scaling of the displacement alone."""
        if not self.is_valid_change(before, after):
            return self
        return replace(self, value=min(_KL_MAX, self.value * (after / before)))

    def after_evaluation(self, kl: float, *, std_error: float) -> Self:
        """Correct the estimate and the offset with the KL on a fixed evaluation set.

        One part of the difference is the error of the estimate, which is corrected. The other part is a property of the
        evaluation set, which is the same at each evaluation and becomes `offset`.

        Args:
            kl: The KL on the evaluation set, nats per unit, > 0.
            std_error: Its standard error.

        Returns:
            The corrected state.
        """
        error = min(_REL_ERROR_MAX, std_error / kl)
        prior = error**2 if self.offset_std_error == 0 else self.offset_std_error**2 + _OFFSET_WALK**2
        noise = (_EVALUATION_NOISE * error) ** 2
        innovation = math.log(kl) - math.log(self.value) - self.offset
        # An innovation beyond these errors is attributed to the estimate, since the evaluation set does not change.
        variance = max(self.rel_std_error**2, innovation**2 - prior - noise)
        total = max(variance + prior + noise, 1e-300)
        return replace(
            self._correct_drift(innovation, variance=total),
            value=math.exp(min(math.log(_KL_MAX), math.log(self.value) + variance / total * innovation)),
            rel_std_error=math.sqrt(variance * (1 - variance / total)),
            covariance=self.covariance * (1 - variance / total),
            offset=self.offset + prior / total * innovation,
            offset_std_error=math.sqrt(prior * (1 - prior / total)),
        )

    def _correct_drift(self, innovation: float, *, variance: float) -> Self:
        """Correct the drift with an innovation of log KL of the given total variance."""
        gain = self.covariance / variance
        return replace(
            self,
            drift=max(-_DRIFT_MAX, min(_DRIFT_MAX, self.drift + gain * innovation)),
            drift_std_error=math.sqrt(max(0.0, self.drift_std_error**2 - gain * self.covariance)),
        )
