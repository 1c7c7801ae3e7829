"""Distributions of counts and of categories."""

from kullback.families.base import (
    Constraint,
    Count,
    Distribution,
    Logits,
    Nonnegative,
    Positive,
    Probability,
    Real,
    record,
    require,
    require_mass_one,
    require_one_of,
    require_order,
)

__all__ = [
    "Bernoulli",
    "Binomial",
    "Categorical",
    "Geometric",
    "Hypergeometric",
    "Multinomial",
    "NegativeBinomial",
    "OneHotCategorical",
    "Poisson",
    "Zipf",
    "Zipfian",
]


_ABOVE_ZERO = Constraint("1 or more", lambda x: x >= 1)
_ABOVE_ONE = Constraint("above 1", lambda x: x > 1)


@record
class Bernoulli(Distribution):
    """1 with probability probs, else 0; or give logits = log(probs / (1 - probs)), which keep probabilities near 1.

    Example:
        >>> Bernoulli(probs=1.5)
        Traceback (most recent call last):
        kullback.errors.ParameterError: expected Bernoulli's probs to be in [0, 1], but it is 1.5
    """

    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class Binomial(Distribution):
    """The number of ones among total_count draws of a Bernoulli."""

    total_count: Count
    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class Geometric(Distribution):
    """The number of failures before the first success: probs (1 - probs)^k, k = 0, 1, ..."""

    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class NegativeBinomial(Distribution):
    """The number k of successes before total_count failures: C(k + total_count - 1, k) probs^k (1 - probs)^total_count.

    probs is the probability of a success, as torch.distributions has it; SciPy's is that of a failure.
    """

    total_count: Positive
    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class Poisson(Distribution):
    """rate^k e^-rate / k!, k = 0, 1, ..."""

    rate: Nonnegative


@record
class Zipf(Distribution):
    """Proportional to k^-exponent, k = 1, 2, ...; the exponent is above 1. Also called the zeta distribution."""

    exponent: Positive

    def _check(self) -> None:
        require(self, "exponent", self.exponent, _ABOVE_ONE)


@record
class Zipfian(Distribution):
    """Proportional to k^-exponent, k = 1, ..., total_count."""

    exponent: Real
    total_count: Count

    def _check(self) -> None:
        require(self, "total_count", self.total_count, _ABOVE_ZERO)


@record
class Hypergeometric(Distribution):
    """How many of `draws`, taken without replacement from `population`, are among its `successes`."""

    population: Count
    successes: Count
    draws: Count

    def _check(self) -> None:
        require_order(self, "population", "successes", strict=False)
        require_order(self, "population", "draws", strict=False)


@record
class Categorical(Distribution):
    """One of n categories; probs, or logits (log-probabilities up to a constant, or -inf), lie along the last axis.

    Example:
        >>> Categorical(probs=[0.5, 0.4])
        Traceback (most recent call last):
        kullback.errors.NotNormalizedError: expected Categorical's probs to sum to 1, but it is 0.9; divide by the sum
    """

    probs: Probability = None
    logits: Logits = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")
        require_mass_one(self, "probs")


@record
class OneHotCategorical(Categorical):
    """A Categorical whose value is a vector of zeros and a one."""


@record
class Multinomial(Distribution):
    """How often each of n categories comes up in total_count draws; probs or logits lie along the last axis."""

    total_count: Count
    probs: Probability = None
    logits: Logits = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")
        require_mass_one(self, "probs")
