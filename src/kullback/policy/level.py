"""Where the KL of a policy stands: one smoothed estimate from noisy batches, exact moves and a set that judges."""

import math
from dataclasses import dataclass, replace
from typing import Self

__all__ = ["Level"]

_MEMORY = 0.1  # share of the newest in the running spread
_TRUST = 0.25  # a measured move of the KL is believed to a quarter of itself ...
_JITTER = 0.012  # ... and never better than to one percent or so
_DRIFT = 0.01  # the most that held-out positions can be taken to miss in a step ...
_SLOW = 0.2  # ... and the weight of one batch in learning it, at most: while the KL rises the level runs late
_UNFOLLOWED = 0.1  # what the KL may move by in a step of which nobody says how far it went
_LEAP = 10.0  # a KL that grew by more than this says nothing of how the level grew: it is taken for the level
_MOST = 1e300  # nats, so that no state is infinite
_WIDEST = 10.0  # the largest spread between prompts, and relative error, that is believed
_RENEWED = 0.5  # share of a judgement's standard error that each one makes anew: the completions, not the prompts
_WANDER = 0.01  # what the offset changes by from one judgement to the next


@dataclass(frozen=True)
class Level:
    """The KL as estimated, in nats per unit, with what has been learned about its measurements.

    A scalar Kalman filter on the KL: batches correct it by the weight that both errors deserve, and the change seen at
    held-out positions carries it along.

    Args:
        value: The estimate; 0 before the first measurement.
        doubt: Its relative standard error.
        drift: What log KL gains in a step beyond what held-out positions show, as learned.
        spread: The relative standard deviation of the KL between prompts, as measured.
        offset: The logarithm of the KL on the judged prompts over `value`, as learned.
        offset_doubt: Its standard error; 0 before the first judgement.
        followed: Whether `moved` was called since the last batch.
    """

    value: float = 0.0
    doubt: float = 0.0
    drift: float = 0.0
    spread: float = 0.0
    offset: float = 0.0
    offset_doubt: float = 0.0
    followed: bool = False

    def seen(self, kl: float, *, std_error: float, count: int) -> Self:
        """The level after a batch of `count` independent prompts; a standard error of nan is unknown."""
        if max(kl, self.value) <= 0:
            return replace(self, followed=False)
        # One batch's standard error follows its mean, and weighing by it would favour low batches; the spread of those
        # before does not.
        about = self.value or kl
        known = math.isfinite(std_error) and count > 1
        newest = min(_WIDEST, std_error / about * math.sqrt(count)) if known else 1.0
        usual = self.spread or newest
        spread = math.hypot(math.sqrt(1 - _MEMORY) * usual, math.sqrt(_MEMORY) * newest)
        noise = usual**2 / count
        if self.value <= 0:
            return replace(self, value=kl, doubt=math.sqrt(noise), spread=spread, followed=False)
        prior = self.doubt**2 + (0.0 if self.followed else _UNFOLLOWED**2)
        weight = prior / max(prior + noise, 1e-300)
        # What fixed positions miss steadily is learned, by an alpha-beta filter's gain.
        slow = min(weight, _SLOW)
        miss = max(-1.0, min(1.0, kl / self.value - 1))
        return replace(
            self,
            value=self.value + weight * (kl - self.value),
            doubt=math.sqrt(prior * (1 - weight)),
            drift=max(-_DRIFT, min(_DRIFT, self.drift + slow**2 / (2 - slow) * miss)),
            spread=spread,
            followed=False,
        )

    def knows_move(self, before: float, after: float) -> bool:
        """Whether the KL of fixed positions, before and after, says by what factor the level moved."""
        return before > 0 and 0 < after < _LEAP * before and self.value > 0

    def moved(self, before: float, after: float, *, wanted: float) -> Self:
        """The level after a step took held-out positions from before to after; log KL moved by `wanted` unasked."""
        if not self.knows_move(before, after):
            return replace(self, value=after, doubt=1.0, followed=True)
        return replace(
            self,
            value=min(_MOST, self.value * (after / before) * math.exp(self.drift)),
            doubt=math.hypot(self.doubt, _JITTER, _TRUST * wanted),
            followed=True,
        )

    def scaled(self, before: float, after: float) -> Self:
        """The level after the displacement alone was scaled."""
        if not self.knows_move(before, after):
            return self
        return replace(self, value=min(_MOST, self.value * (after / before)))

    def judged(self, kl: float, *, std_error: float) -> Self:
        """The level after a fixed set of prompts was measured.

        Part of the difference is the level's error, and goes. The rest is the set's own, the same each time since the
        prompts are, and becomes `offset`.
        """
        error = min(_WIDEST, std_error / kl)
        prior = error**2 if self.offset_doubt == 0 else self.offset_doubt**2 + _WANDER**2
        noise = (_RENEWED * error) ** 2
        surprise = math.log(kl) - math.log(self.value) - self.offset
        # What is more than the errors can say is the level's: a set of prompts does not change.
        doubt = max(self.doubt**2, surprise**2 - prior - noise)
        total = max(doubt + prior + noise, 1e-300)
        return replace(
            self,
            value=math.exp(min(math.log(_MOST), math.log(self.value) + doubt / total * surprise)),
            doubt=math.sqrt(doubt * (1 - doubt / total)),
            offset=self.offset + prior / total * surprise,
            offset_doubt=math.sqrt(prior * (1 - prior / total)),
        )
