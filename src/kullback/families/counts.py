"""Distributions of counts and of categories."""

from math import inf
from typing import Any

from kullback.families.base import (
    Constraint,
    Count,
    Distribution,
    Logits,
    Nonnegative,
    Positive,
    Probability,
    Real,
    Support,
    axes,
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


_AT_LEAST_ONE = Constraint("1 or more", lambda x: x >= 1)
_ABOVE_ONE = Constraint("above 1", lambda x: x > 1)


def _success_is_possible(d: Any) -> Any:
    """Whether the probability of success is positive."""
    return d.logits > -inf if d.probs is None else d.probs > 0


def _failure_is_possible(d: Any) -> Any:
    """Whether the probability of failure is positive."""
    return d.logits < inf if d.probs is None else d.probs < 1


@record
class Bernoulli(Distribution):
    """Bernoulli distribution on {0, 1}.

    Mass: probs at 1, and 1 - probs at 0. Pass exactly one of `probs` and `logits`; logits keep their accuracy for
    probabilities near 1.

    Args:
        probs: The probability of 1; in [0, 1], any shape.
        logits: log(probs / (1 - probs)); finite, any shape.

    Raises:
        ParameterError: An entry violates its constraint, or not exactly one parameter is passed.

    Example:
        >>> Bernoulli(probs=1.5)
        Traceback (most recent call last):
        kullback.errors.ParameterError: expected Bernoulli's probs to be in [0, 1], but it is 1.5
    """

    support = Support(
        lambda xp, d: xp.where(_failure_is_possible(d), 0.0, 1.0),
        lambda xp, d: xp.where(_success_is_possible(d), 1.0, 0.0),
        discrete=True,
    )

    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class Binomial(Distribution):
    """Binomial distribution: the number of successes in total_count independent Bernoulli trials.

    Mass: C(total_count, k) probs^k (1 - probs)^(total_count - k) for k = 0, ..., total_count. Pass exactly one of
    `probs` and `logits`.

    Args:
        total_count: The number of trials; a whole number >= 0, any shape.
        probs: The probability of success; in [0, 1], broadcast against `total_count`.
        logits: log(probs / (1 - probs)); finite, broadcast against `total_count`.

    Raises:
        ParameterError: An entry violates its constraint, or not exactly one of `probs` and `logits` is passed.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Binomial(total_count=10, probs=0.5), Binomial(total_count=10, probs=0.4))), 6)
        0.20411
    """

    support = Support(
        lambda xp, d: xp.where(_failure_is_possible(d), 0.0, d.total_count),
        lambda xp, d: xp.where(_success_is_possible(d), d.total_count, 0.0),
        discrete=True,
    )

    total_count: Count
    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class Geometric(Distribution):
    """Geometric distribution: the number of failures before the first success.

    Mass: probs (1 - probs)^k for k = 0, 1, 2, ... Pass exactly one of `probs` and `logits`.

    Args:
        probs: The probability of success; in [0, 1], any shape.
        logits: log(probs / (1 - probs)); finite, any shape.

    Raises:
        ParameterError: An entry violates its constraint, or not exactly one parameter is passed.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Geometric(probs=0.5), Geometric(probs=0.4))), 6)
        0.040822
    """

    support = Support(0.0, lambda xp, d: xp.where(_failure_is_possible(d), inf, 0.0), discrete=True)

    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class NegativeBinomial(Distribution):
    """Negative binomial distribution: the number of successes before total_count failures.

    Mass: C(k + total_count - 1, k) probs^k (1 - probs)^total_count for k = 0, 1, 2, ... Here probs is the probability
    of success, as in torch.distributions; in SciPy it is the probability of failure. Pass exactly one of `probs` and
    `logits`.

    Args:
        total_count: The number of failures; > 0 and finite, any shape; it need not be whole.
        probs: The probability of success; in [0, 1], broadcast against `total_count`.
        logits: log(probs / (1 - probs)); finite, broadcast against `total_count`.

    Raises:
        ParameterError: An entry violates its constraint, or not exactly one of `probs` and `logits` is passed.

    Example:
        >>> from kullback import kl
        >>> p, q = (NegativeBinomial(total_count=2.5, probs=probs) for probs in (0.5, 0.4))
        >>> round(float(kl(p, q)), 6)
        0.102055
    """

    support = Support(0.0, lambda xp, d: xp.where(_success_is_possible(d), inf, 0.0), discrete=True)

    total_count: Positive
    probs: Probability = None
    logits: Real = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")


@record
class Poisson(Distribution):
    """Poisson distribution.

    Mass: rate^k e^-rate / k! for k = 0, 1, 2, ...

    Args:
        rate: The mean; >= 0 and finite, any shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Poisson(rate=2.0), Poisson(rate=3.0))), 6)
        0.18907
    """

    support = Support(0.0, lambda xp, d: xp.where(d.rate > 0, inf, 0.0), discrete=True)

    rate: Nonnegative


@record
class Zipf(Distribution):
    """Zipf (zeta) distribution on the positive integers.

    Mass: k^-exponent / zeta(exponent) for k = 1, 2, 3, ... with the Riemann zeta function.

    Args:
        exponent: The exponent; above 1 and finite, any shape.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Zipf(exponent=2.0), Zipf(exponent=3.0))), 6)
        0.256295
    """

    support = Support(1.0, inf, discrete=True)

    exponent: Positive

    def _check(self) -> None:
        require(self, "exponent", self.exponent, _ABOVE_ONE)


@record
class Zipfian(Distribution):
    """Zipfian distribution on {1, ..., total_count}.

    Mass: k^-exponent / sum_j j^-exponent for k, j = 1, ..., total_count.

    Args:
        exponent: The exponent; finite, any shape.
        total_count: The largest value; a whole number >= 1, broadcast against `exponent`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(Zipfian(exponent=1.0, total_count=50), Zipfian(exponent=1.2, total_count=50))), 6)
        0.031575
    """

    support = Support(1.0, "total_count", discrete=True)

    exponent: Real
    total_count: Count

    def _check(self) -> None:
        require(self, "total_count", self.total_count, _AT_LEAST_ONE)


@record
class Hypergeometric(Distribution):
    """Hypergeometric distribution: the number of successes in a sample taken without replacement.

    Mass: C(successes, k) C(population - successes, draws - k) / C(population, draws) for
    max(0, draws + successes - population) <= k <= min(draws, successes).

    Args:
        population: The size of the population; a whole number >= 0, any shape.
        successes: The number of successes in the population; a whole number from 0 to `population`.
        draws: The size of the sample; a whole number from 0 to `population`.

    Raises:
        ParameterError: An entry of a parameter violates its constraint.

    Example:
        >>> from kullback import kl
        >>> p, q = (Hypergeometric(population=50, successes=successes, draws=10) for successes in (20, 25))
        >>> round(float(kl(p, q)), 6)
        0.24637
    """

    support = Support(
        lambda xp, d: xp.maximum(xp.zeros_like(d.draws), d.draws + d.successes - d.population),
        lambda xp, d: xp.minimum(d.draws, d.successes),
        discrete=True,
    )

    population: Count
    successes: Count
    draws: Count

    def _check(self) -> None:
        require_order(self, "population", "successes", strict=False)
        require_order(self, "population", "draws", strict=False)


@record
class Categorical(Distribution):
    """Categorical distribution on n categories, which lie along the last axis of the parameter.

    Mass: probs_i, or softmax(logits)_i, for i = 0, ..., n - 1. Pass exactly one of `probs` and `logits`.

    Args:
        probs: The probabilities, shape (..., n); in [0, 1], with sum 1 along the last axis.
        logits: Log-probabilities up to an additive constant, shape (..., n); below inf and not nan, -inf for an
            impossible category.

    Raises:
        NotNormalizedError: The probabilities do not sum to 1.
        ParameterError: An entry violates its constraint, or not exactly one parameter is passed.
        ShapeError: `probs` is a number.

    Example:
        >>> Categorical(probs=[0.5, 0.4])
        Traceback (most recent call last):
        kullback.errors.NotNormalizedError: expected Categorical's probs to sum to 1, but it is 0.9; divide by the sum
    """

    event_axes = axes(probs="n", logits="n")

    probs: Probability = None
    logits: Logits = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")
        require_mass_one(self, "probs")


@record
class OneHotCategorical(Categorical):
    """Categorical distribution whose values are one-hot vectors of length n.

    Mass: probs_i, or softmax(logits)_i, at the i-th unit vector. Pass exactly one of `probs` and `logits`.

    Args:
        probs: The probabilities, shape (..., n); in [0, 1], with sum 1 along the last axis.
        logits: Log-probabilities up to an additive constant, shape (..., n); below inf and not nan, -inf for an
            impossible category.

    Raises:
        NotNormalizedError: The probabilities do not sum to 1.
        ParameterError: An entry violates its constraint, or not exactly one parameter is passed.
        ShapeError: `probs` is a number.

    Example:
        >>> from kullback import kl
        >>> round(float(kl(OneHotCategorical(probs=[0.5, 0.5]), OneHotCategorical(logits=[0.0, 1.0]))), 6)
        0.120115
    """


@record
class Multinomial(Distribution):
    """Multinomial distribution: the count of each of n categories in total_count independent draws.

    Mass: total_count! prod_i probs_i^k_i / k_i! for counts k_i >= 0 with sum total_count. Pass exactly one of `probs`
    and `logits`.

    Args:
        total_count: The number of draws; a whole number >= 0, shape (...).
        probs: The probabilities, shape (..., n); in [0, 1], with sum 1 along the last axis.
        logits: Log-probabilities up to an additive constant, shape (..., n); below inf and not nan, -inf for an
            impossible category.

    Raises:
        NotNormalizedError: The probabilities do not sum to 1.
        ParameterError: An entry violates its constraint, or not exactly one of `probs` and `logits` is passed.
        ShapeError: `probs` is a number.

    Example:
        >>> from kullback import kl
        >>> p, q = (Multinomial(total_count=4, probs=probs) for probs in ([0.5, 0.5], [0.25, 0.75]))
        >>> round(float(kl(p, q)), 6)
        0.575364
    """

    event_axes = axes(probs="n", logits="n")

    total_count: Count
    probs: Probability = None
    logits: Logits = None

    def _check(self) -> None:
        require_one_of(self, "probs", "logits")
        require_mass_one(self, "probs")
