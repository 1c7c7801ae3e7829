"""Where the KL of a policy stands: one smoothed estimate from noisy batches, exact moves and a set that judges."""

import math
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["KLFilter"]

_MEMORY = 0.1  # share of the newest in the running spread
_TRUST = 0.25  # a measured move of the KL is believed to a quarter of itself ...
_JITTER = 0.012  # ... and never better than to one percent or so, where nobody says how well it was seen ...
_SERVED = 2.0  # ... and to so many standard errors where one does: a position errs alike for as long as it serves
_DRIFT = 0.01  # the most that held-out positions can be taken to miss in a step ...
_VAGUE = 0.003  # ... what it is doubted by, at most, and at first ...
_TURNS = 0.0003  # ... and what it changes by in one
_UNFOLLOWED = 0.1  # what the KL may move by in a step of which nobody says how far it went
_LEAP = 10.0  # a KL that grew by more than this says nothing of how the level grew: it is taken for the level
_MOST = 1e300  # nats, so that no state is infinite
_WIDEST = 10.0  # the largest spread between prompts, and relative error, that is believed
_RENEWED = 0.5  # share of a judgement's standard error that each one makes anew: the completions, not the prompts
_WANDER = 0.01  # what the offset changes by from one judgement to the next


@dataclass(frozen=True)
class KLFilter:
    """The KL as estimated, in nats per unit, with what has been learned about its measurements.

    A Kalman filter on the KL and on what held-out positions miss of its changes: these carry the level along, batches
    and judgements correct covariance by the weight that the errors deserve.

    Args:
        value: The estimate; 0 before the first measurement.
        rel_std_error: Its relative standard error.
        drift: What log KL gains in a step beyond what held-out positions show, as learned.
        drift_std_error: Its standard error.
        covariance: The covariance of log KL's error and the drift's.
        spread: The relative standard deviation of the KL between prompts, as measured.
        offset: The logarithm of the KL on the judged prompts over `value`, as learned.
        offset_std_error: Its standard error; 0 before the first judgement.
        has_step_update: Whether `moved` was called since the last batch.
    """

    value: float = 0.0
    rel_std_error: float = 0.0
    drift: float = 0.0
    drift_std_error: float = _VAGUE
    covariance: float = 0.0
    spread: float = 0.0
    offset: float = 0.0
    offset_std_error: float = 0.0
    has_step_update: bool = False

    def after_batch(self, kl: float, *, std_error: float, count: int) -> Self:
        """The level after a batch of `count` independent prompts; a standard error of nan is unknown."""
        if max(kl, self.value) <= 0:
            return replace(self, has_step_update=False)
        # One batch's standard error follows its mean, and weighing by it would favour low batches; the spread of those
        # before does not.
        about = self.value or kl
        known = math.isfinite(std_error) and count > 1
        newest = min(_WIDEST, std_error / about * math.sqrt(count)) if known else 1.0
        usual = self.spread or newest
        spread = math.hypot(math.sqrt(1 - _MEMORY) * usual, math.sqrt(_MEMORY) * newest)
        noise = usual**2 / count
        if self.value <= 0:
            return replace(self, value=kl, rel_std_error=math.sqrt(noise), spread=spread, has_step_update=False)
        prior = self.rel_std_error**2 + (0.0 if self.has_step_update else _UNFOLLOWED**2)
        total = max(prior + noise, 1e-300)
        weight = prior / total
        miss = max(-1.0, min(1.0, kl / self.value - 1))
        return replace(
            self._with_drift(miss, total=total),
            value=self.value + weight * (kl - self.value),
            rel_std_error=math.sqrt(prior * (1 - weight)),
            covariance=self.covariance * (1 - weight),
            spread=spread,
            has_step_update=False,
        )

    def is_valid_change(self, before: float, after: float) -> bool:
        """Whether the KL of fixed positions, before and after, says by what factor the level moved."""
        return before > 0 and 0 < after < _LEAP * before and self.value > 0

    def after_step(self, before: float, after: float, *, wanted: float, std_error: float = math.nan) -> Self:
        """The level after a step took held-out positions from before to after.

        Log KL moved by `wanted` unasked; `std_error` is that of after / before, relative, or nan where it is unknown.
        """
        if not self.is_valid_change(before, after):
            return replace(self, value=after, rel_std_error=1.0, covariance=0.0, has_step_update=True)
        unknown = math.isnan(std_error)
        noise = math.hypot(_JITTER, _TRUST * wanted) if unknown else min(1.0, _SERVED * std_error)
        drift_std_error = min(_VAGUE, math.hypot(self.drift_std_error, _TURNS))
        return replace(
            self,
            value=min(_MOST, self.value * (after / before) * math.exp(self.drift)),
            rel_std_error=math.sqrt(
                max(0.0, self.rel_std_error**2 + 2 * self.covariance + drift_std_error**2 + noise**2)
            ),
            drift_std_error=drift_std_error,
            covariance=self.covariance + drift_std_error**2,
            has_step_update=True,
        )

    def after_scaling(self, before: float, after: float) -> Self:
        """The level after the displacement alone was scaled."""
        if not self.is_valid_change(before, after):
            return self
        return replace(self, value=min(_MOST, self.value * (after / before)))

    def after_evaluation(self, kl: float, *, std_error: float) -> Self:
        """The level after a fixed set of prompts was measured.

        Part of the difference is the level's error, and goes. The rest is the set's own, the same each time since the
        prompts are, and becomes `offset`.
        """
        error = min(_WIDEST, std_error / kl)
        prior = error**2 if self.offset_std_error == 0 else self.offset_std_error**2 + _WANDER**2
        noise = (_RENEWED * error) ** 2
        surprise = math.log(kl) - math.log(self.value) - self.offset
        # What is more than the errors can say is the level's: a set of prompts does not change.
        rel_std_error = max(self.rel_std_error**2, surprise**2 - prior - noise)
        total = max(rel_std_error + prior + noise, 1e-300)
        return replace(
            self._with_drift(surprise, total=total),
            value=math.exp(min(math.log(_MOST), math.log(self.value) + rel_std_error / total * surprise)),
            rel_std_error=math.sqrt(rel_std_error * (1 - rel_std_error / total)),
            covariance=self.covariance * (1 - rel_std_error / total),
            offset=self.offset + prior / total * surprise,
            offset_std_error=math.sqrt(prior * (1 - prior / total)),
        )

    def _with_drift(self, surprise: float, *, total: float) -> Self:
        """What a measurement that surprises by so much, where its variance is the total, says of the drift."""
        slow = self.covariance / total
        return replace(
            self,
            drift=max(-_DRIFT, min(_DRIFT, self.drift + slow * surprise)),
            drift_std_error=math.sqrt(max(0.0, self.drift_std_error**2 - slow * self.covariance)),
        )
