"""Statistics of the token values of two language models over documents, from accumulators that merge exactly.

The tokens of a document are correlated, so documents are the independent samples. `DocumentSums` keeps the exact sum of
each column for each document, and a `QuantileSketch` has bins that do not depend on the values. Accumulators of parts
of a corpus can therefore be merged in any order, and give the results of a single accumulator to the last bit.

Their `state` is what JSON stores exactly, from which `from_state` restores them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import fsum, inf, isfinite, log, nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from kullback.compare.quantile_sketch import QuantileSketch, numbers_to_json
from kullback.errors import InputError, ShapeError, SupportError
from kullback.result import Estimate

__all__ = [
    "QUANTILES",
    "DocumentSums",
    "ModelStatistics",
    "ModelSummary",
    "PairedDifference",
    "confidence_labels",
    "paired_difference",
    "perplexity",
    "root_mean_square",
    "sums_of_models",
]

QUANTILES = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)

_METHOD = "documents as clusters"
_FEW_DOCUMENTS = 7  # with fewer, 95% intervals contain the mean in more than 98% of cases, see compare_coverage.py
_COVERAGE = 0.95
_CONFIDENCE_EDGES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


RANGES = {
    **dict.fromkeys(("kl", "reverse_kl", "certain_kl", "certain_reverse_kl"), (0.0, inf)),
    **dict.fromkeys(("entropy_base", "entropy", "nll_base", "nll"), (0.0, inf)),
    "js": (0.0, log(2)),
    **dict.fromkeys(("top1_agreement", "expected_acceptance", "tail_mass", "model_tail_mass"), (0.0, 1.0)),
    "delta_p": (-1.0, 1.0),
    "squared_delta_p": (0.0, 1.0),
    "ended": (0.0, 1.0),
    "tokens": (1.0, inf),  # of a continuation
    "bits": (0.0, inf),
    "sum of the modules": (0.0, inf),
}
"""The range of the mean of columns of these names. An interval has no values outside of it."""


# Exact sums


def exact_sum(values: Iterable[float]) -> tuple[float, ...]:
    """The exact sum of numbers, as decreasing numbers of which each is the rounded rest of the sum.

    The result depends on the sum only, and not on the numbers or their order: the first entry is the correctly rounded
    sum, the second the correctly rounded difference of the sum from it, and so on. The empty tuple is 0. `(inf,)` is
    the sum with inf; -inf and nan are not allowed.
    """
    terms, parts = list(values), []
    if inf in terms:
        return (inf,)
    try:
        while rest := fsum(terms):
            parts.append(rest)
            terms.append(-rest)
    except OverflowError:  # the sum exceeds the largest floating-point number
        return (inf,)
    return tuple(parts)


class DocumentSums:
    """Exact sums of columns of token values, for each document.

    Two accumulators with the same columns and the same tokens are equal, in whatever order and parts the tokens were
    added. The memory is proportional to the number of documents, and does not depend on the number of tokens.

    Args:
        units: The unit of the mean of each column by its name, such as {"kl": "nats per token", "same_top": ""}.

    Example:
        >>> sums = DocumentSums({"kl": "nats per token"})
        >>> for document, kl in enumerate([[0.1, 0.2], [0.4], [0.2, 0.2, 0.1]]):
        ...     sums.add(document, {"kl": kl})
        >>> estimate = sums.mean("kl")
        >>> f"{estimate.value:.3f} {estimate.std_error:.3f} {estimate.status}", sums.tokens, sums.documents
        ('0.200 0.047 unreliable', 6, 3)
    """

    def __init__(self, units: Mapping[str, str]) -> None:
        self.units = dict(units)
        self._counts: dict[int, int] = {}
        self._sums: dict[int, dict[str, tuple[float, ...]]] = {}
        self._squares: dict[str, tuple[float, ...]] = dict.fromkeys(self.units, ())

    @property
    def documents(self) -> int:
        """The number of documents with one token or more."""
        return len(self._counts)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return sum(self._counts.values())

    def add(self, document: int, values: Mapping[str, ArrayLike]) -> None:
        """Add tokens of one document; a document may be added in parts.

        Args:
            document: The number of the document.
            values: The values of each column, all of the shape (tokens,); inf is allowed.

        Raises:
            InputError: The columns differ from the columns of the accumulator.
            ShapeError: The columns differ in shape.
            SupportError: A value is nan or -inf.
        """
        if set(values) != set(self.units):
            raise InputError(f"expected the columns {sorted(self.units)}, got {sorted(values)}")
        columns = {name: np.asarray(values[name], np.float64) for name in self.units}
        shapes = {column.shape for column in columns.values()}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1:
            found = ", ".join(f"{name} {column.shape}" for name, column in columns.items())
            raise ShapeError(f"expected columns of one shape (tokens,), got {found}")
        for name, column in columns.items():
            if (bad := ~(column > -inf)).any():
                token = int(bad.argmax())
                raise SupportError(
                    f"expected {name} to be a number above -inf, got {column[token]} at token {token} of the values "
                    f"added for document {document}"
                )
        count = len(next(iter(columns.values())))
        if count:
            with np.errstate(over="ignore"):
                squares = {name: exact_sum((column * column).tolist()) for name, column in columns.items()}
            self._merge(
                {document: count}, {document: {name: exact_sum(c.tolist()) for name, c in columns.items()}}, squares
            )

    def merge(self, other: "DocumentSums") -> None:
        """Add the tokens of another accumulator, which may have tokens of the same documents.

        Args:
            other: The other accumulator. No token may be in both.

        Raises:
            InputError: The columns or their units differ.
        """
        if other.units != self.units:
            raise InputError(f"expected the columns {self.units}, got {other.units}")
        self._merge(other._counts, other._sums, other._squares)

    def _merge(
        self,
        counts: Mapping[int, int],
        sums: Mapping[int, Mapping[str, tuple[float, ...]]],
        squares: Mapping[str, tuple[float, ...]],
    ) -> None:
        for document, count in counts.items():
            own = self._sums.get(document, {})
            self._counts[document] = self._counts.get(document, 0) + count
            self._sums[document] = {
                name: exact_sum([*own.get(name, ()), *parts]) for name, parts in sums[document].items()
            }
        self._squares = {name: exact_sum([*parts, *squares[name]]) for name, parts in self._squares.items()}

    def mean(self, column: str, bounds: tuple[float, float] | None = None) -> Estimate:
        """The mean of a column over tokens, with a 95% interval from documents as independent samples.

        With S_g the sum and N_g the number of tokens of document g, N = sum_g N_g and h_g = N_g / N:

            value = sum_g S_g / N
            std_error^2 = (n - 1) / n sum_g ((S_g - value N_g) / (N (1 - h_g)))^2

        This is the variance of the jackknife over documents. The interval is asymmetric where the documents are skewed.
        With t the quantile of Student's t for (1 / sum_g h_g^2 - 1) / 2 degrees of freedom (half of the effective
        number of documents minus 1), c the skewness of the terms of the sum, and r = c / sqrt(n):

            interval = value - std_error u(t), value - std_error u(-t)
            u(t) = (3 / r) ((1 + r (t - r / 6))^(1/3) - 1), which is t without skewness

        The variance of n documents of kurtosis k is estimated with about 2 n / (k - 1) degrees of freedom. They are
        halved, as for a kurtosis of 5, because documents have heavier tails than a normal distribution, and because
        few documents do not show it. In simulations with 7 to 120 documents of 6 populations, the interval contains
        the mean in 92% to 98% of cases (`benchmarks/compare_coverage.py` has three of them).

        The interval is intersected with the range of the column, which does not change its coverage.

        Args:
            column: The name of the column.
            bounds: The range of the column. None: the range in `RANGES`, if the name is there.

        Returns:
            The estimate, whose `count` is the number of documents. It is "unreliable" with fewer than 7 effective
            documents, and has no interval with fewer than 2. The value is nan without a token, and `inf` where a value
            is.

        Raises:
            InputError: The accumulator has no such column.

        References:
            Cochran (1977), Sampling Techniques, chapter 6; Bell and McCaffrey (2002), "Bias reduction in standard
            errors for linear regression with multi-stage samples", for the factor 1 / (1 - h_g); Hall (1992), "On the
            removal of skewness by transformation", for u.
        """
        self._require(column)
        mean = _clustered({g: parts[column] for g, parts in self._sums.items()}, self._counts, self.units[column])
        return _in_range(mean, bounds or RANGES.get(column))

    def independent_mean(self, column: str) -> Estimate:
        """The mean of a column with the 95% interval that holds if all tokens are independent, for comparison.

        It is the interval that llama.cpp and other programs print. It is too narrow for tokens of documents.

        Args:
            column: The name of the column.

        Returns:
            The estimate, whose `count` is the number of tokens.

        Raises:
            InputError: The accumulator has no such column.
        """
        self._require(column)
        total = fsum(part for parts in self._sums.values() for part in parts[column])
        count, square = self.tokens, fsum(self._squares[column])
        if count < 2 or not isfinite(square):
            return Estimate(total / count if count else nan, nan, count, self.units[column], "independent tokens")
        mean = total / count
        error = sqrt(max(square / count - mean * mean, 0.0) / (count - 1))
        half = 1.959963984540054 * error
        interval = (mean - half, mean + half)
        estimate = Estimate(mean, error, count, self.units[column], "independent tokens", interval=interval)
        return _in_range(estimate, RANGES.get(column))

    def select(self, *columns: str) -> "DocumentSums":
        """The sums of some of the columns.

        Args:
            *columns: The names of the columns.

        Returns:
            An accumulator of the same tokens.

        Raises:
            InputError: The accumulator has no such column.
        """
        for column in columns:
            self._require(column)
        selected = DocumentSums({name: self.units[name] for name in columns})
        selected._merge(self._counts, {g: {c: p[c] for c in columns} for g, p in self._sums.items()}, self._squares)
        return selected

    def state(self) -> dict[str, Any]:
        """The accumulator as values that JSON stores exactly.

        Returns:
            A dictionary, in which inf is the string "inf".
        """
        documents = {
            str(g): [self._counts[g], *(numbers_to_json(self._sums[g][name]) for name in self.units)]
            for g in sorted(self._counts)
        }
        columns, squares = list(map(list, self.units.items())), list(map(numbers_to_json, self._squares.values()))
        return {"columns": columns, "squares": squares, "documents": documents}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "DocumentSums":
        """Restore an accumulator.

        Args:
            state: The result of `state`, also after storage as JSON.

        Returns:
            An accumulator that equals the original.

        Raises:
            InputError: The state is damaged.
        """
        try:
            sums = cls({str(name): str(unit) for name, unit in state["columns"]})
            sums._squares = dict(zip(sums.units, map(_from_json, state["squares"]), strict=True))
            for document, (count, *columns) in state["documents"].items():
                if int(count) < 1:
                    raise ValueError(f"document {document} has {count} tokens")
                sums._counts[int(document)] = int(count)
                sums._sums[int(document)] = dict(zip(sums.units, map(_from_json, columns), strict=True))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"expected the state of document sums, got a damaged one: {error!r}") from error
        return sums

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DocumentSums) and self.state() == other.state()

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def _require(self, column: str) -> None:
        if column not in self.units:
            raise InputError(f"expected one of the columns {', '.join(self.units)}, got {column!r}")


def _from_json(parts: Sequence[float | str]) -> tuple[float, ...]:
    numbers = tuple(map(float, parts))
    if any(number != number or number == -inf for number in numbers):
        raise ValueError("a sum is not a number")
    return numbers


def _clustered(sums: Mapping[int, tuple[float, ...]], counts: Mapping[int, int], unit: str) -> Estimate:
    """The ratio estimator sum(sums) / sum(counts) of `DocumentSums.mean`."""
    total, documents = sum(counts.values()), len(counts)
    if not total:
        return Estimate(nan, count=0, unit=unit, method=_METHOD, status="unreliable", warnings=("No token was added.",))
    infinite = sum(inf in parts for parts in sums.values())
    if infinite:
        warning = f"The sum of {infinite} of {documents} documents is infinite."
        return Estimate(inf, nan, documents, unit, _METHOD, warnings=(warning,))
    value = fsum(part for parts in sums.values() for part in parts) / total
    if documents < 2:
        warning = "One document does not determine an interval."
        return Estimate(value, nan, documents, unit, _METHOD, status="unreliable", warnings=(warning,))
    residuals = [
        (fsum(parts) - value * counts[document]) / (total - counts[document]) for document, parts in sums.items()
    ]
    scale = max(map(abs, residuals)) or 1.0
    residuals = [r / scale for r in residuals]  # so that their squares and cubes do not underflow
    square = fsum(r * r for r in residuals)
    error = scale * sqrt((documents - 1) / documents * square)
    effective = total * total / sum(count * count for count in counts.values())
    quantile = float(stdtrit((effective - 1) / 2, (1 + _COVERAGE) / 2))
    if error == 0:
        interval = (value, value)
    elif quantile < inf:
        rate = fsum(r**3 for r in residuals) / square**1.5  # the skewness divided by sqrt(n)
        interval = (value - error * _unskewed(quantile, rate), value - error * _unskewed(-quantile, rate))
    else:  # one document has almost all tokens
        interval = (-inf, inf)
    warnings = ()
    if effective < _FEW_DOCUMENTS:
        warnings = (
            f"The {documents} documents have the effect of {effective:.3g} of equal length; fewer than "
            f"{_FEW_DOCUMENTS} do not determine an interval reliably.",
        )
    return Estimate(
        value,
        error,
        documents,
        unit,
        _METHOD,
        interval=interval,
        status="unreliable" if warnings else "estimated",
        warnings=warnings,
    )


def _in_range(mean: Estimate, bounds: tuple[float, float] | None) -> Estimate:
    """The mean of a column with the part of its interval that is in the range of the column."""
    if mean.interval is None or bounds is None:
        return mean
    least, largest = bounds
    low, high = mean.interval
    # A mean that is at an end of the range can exceed it by rounding.
    return replace(mean, interval=(min(max(low, least), mean.value), max(min(high, largest), mean.value)))


def _unskewed(t: float, rate: float) -> float:
    """The solution u of u + rate (u^2 / 3 + 1 / 6) + rate^2 u^3 / 27 = t, by Hall (1992)."""
    change = rate * (t - rate / 6)
    if abs(change) < 0.5:
        return 3 * math.expm1(math.log1p(change) / 3) / rate if rate else t
    return 3 * (math.cbrt(1 + change) - 1) / rate


# Derived estimates


def perplexity(mean_nll: Estimate) -> Estimate:
    """The perplexity exp(m) of a mean m of -log p(target), or a ratio of perplexities of a mean difference.

    Args:
        mean_nll: The mean in nats per token.

    Returns:
        The estimate without a unit; `inf` with the status "overflow" where a finite perplexity overflows. The interval
        is the transformed interval of `mean_nll`.

    Example:
        >>> f"{perplexity(Estimate(1.0, 0.01)):.3f}"
        '2.718 ± 0.027  (estimated)'
    """
    value = _exp(mean_nll.value)
    found = _transformed(mean_nll, value, value, _exp)
    return replace(found, status="overflow") if isfinite(mean_nll.value) and not isfinite(value) else found


def _exp(x: float) -> float:
    """exp(x), and inf where it overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def root_mean_square(mean_square: Estimate) -> Estimate:
    """The root sqrt(m) of a mean m of squares, such as squared changes of a probability.

    Args:
        mean_square: The mean of the squares, without a unit.

    Returns:
        The estimate without a unit. The interval is the transformed interval, whose lower end is 0 where the interval
        of `mean_square` contains 0.

    Example:
        >>> root_mean_square(Estimate(0.04, 0.004)).value
        0.2
    """
    value = sqrt(mean_square.value)
    return _transformed(mean_square, value, 0.5 / value if value else nan, lambda end: sqrt(max(end, 0.0)))


def _transformed(estimate: Estimate, value: float, slope: float, function: Any) -> Estimate:
    """An estimate of a monotone function of a mean, with the given value and derivative at the mean."""
    interval = estimate.interval and (function(estimate.interval[0]), function(estimate.interval[1]))
    return Estimate(
        value,
        slope * estimate.std_error,
        estimate.count,
        "",
        estimate.method,
        interval=interval,
        status=estimate.status,
        warnings=estimate.warnings,
    )


# Paired differences


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two means over the same tokens.

    Args:
        first: The mean of the first model.
        second: The mean of the second model, or of the noise floor.
        difference: The mean of the first minus the mean of the second, with an interval of its own: the models have the
            documents in common, so that the interval is narrower than the intervals of the means imply.

    Example:
        >>> sums = [DocumentSums({"kl": "nats per token"}) for _ in range(2)]
        >>> for document in range(40):
        ...     kl = 0.01 * (1 + document % 5)
        ...     sums[0].add(document, {"kl": [kl, kl]})
        ...     sums[1].add(document, {"kl": [kl + 0.013, kl + 0.015 - 0.001 * (document % 3)]})
        >>> paired_difference(sums[1], sums[0], "kl").describe("C", "B")
        'B is nearer than C: difference 0.01351 [0.01337, 0.01365] nats per token'
        >>> paired_difference(sums[0], sums[0], "kl").describe_floor("B")
        'B is not distinguishable from the floor: difference 0 [0, 0] nats per token'
    """

    first: Estimate
    second: Estimate
    difference: Estimate

    @property
    def is_distinguishable(self) -> bool | None:
        """Whether the interval of the difference excludes 0.

        Returns:
            None if the documents do not determine an interval reliably.
        """
        if self.difference.interval is None or self.difference.status == "unreliable":
            return None
        low, high = self.difference.interval
        return not low <= 0 <= high

    def describe(self, first_name: str, second_name: str) -> str:
        """The comparison of two models with one base as a sentence, for a column that is a distance from the base.

        Args:
            first_name: The name of the first model.
            second_name: The name of the second model.

        Returns:
            The sentence.
        """
        near, far = (first_name, second_name) if self.difference.value < 0 else (second_name, first_name)
        sign = -1 if self.difference.value < 0 else 1
        states = {
            True: f"{near} is nearer than {far}",
            False: f"{first_name} and {second_name} are not distinguishable",
            None: f"It is not determined which of {first_name} and {second_name} is nearer",
        }
        return f"{states[self.is_distinguishable]}: difference {self._text(sign)}"

    def describe_floor(self, name: str, floor: str = "floor") -> str:
        """The comparison of a model with the noise floor as a sentence.

        Args:
            name: The name of the model.
            floor: The name of the floor.

        Returns:
            The sentence.
        """
        side = "above" if self.difference.value > 0 else "below"
        states = {
            True: f"{name} is {side} the {floor}",
            False: f"{name} is not distinguishable from the {floor}",
            None: f"It is not determined whether {name} is above the {floor}",
        }
        return f"{states[self.is_distinguishable]}: difference {self._text(1)}"

    def _text(self, sign: int) -> str:
        """The difference times the sign with its interval, with two digits of the interval's half width."""
        value, interval = sign * self.difference.value, self.difference.interval
        end = " ".join(["", self.difference.unit]) if self.difference.unit else ""
        if interval is None:
            return f"{value:.3g}{end}, without an interval"
        low, high = sorted(sign * bound for bound in interval)
        half = (high - low) / 2
        digits = max(0, 1 - math.floor(math.log10(half))) if 0 < half < inf else 6
        if not half:
            shown = [f"{number:.6g}" for number in (value, low, high)]
        else:
            shown = [f"{number:.{digits}f}" if digits < 8 else f"{number:.3g}" for number in (value, low, high)]
        return f"{shown[0]} [{shown[1]}, {shown[2]}]{end}"


def sums_of_models(result: Mapping[str, Any], key: str) -> dict[str, DocumentSums]:
    """The sums by document of the models of a stored result, by the names of the models.

    Args:
        result: The content of a result.json.
        key: The key of the sums of a model.

    Returns:
        The sums of each model.

    Raises:
        KeyError: A model has no name, or no sums of this key.
        TypeError: The result is not of the form of a result.json.

    Example:
        >>> sums = DocumentSums({"kl": "nats per token"})
        >>> sums.add(0, {"kl": [0.1, 0.2]})
        >>> model = {"name": "mine", "kl_by_document": sums.state()}
        >>> sums_of_models({"models": [model]}, "kl_by_document")["mine"].tokens
        2
    """
    return {str(model["name"]): DocumentSums.from_state(model[key]) for model in result["models"]}


def paired_difference(
    first: DocumentSums, second: DocumentSums, column: str, second_column: str | None = None
) -> PairedDifference:
    """The difference of the means of two columns over the same tokens, with an interval clustered by document.

        difference = sum_g (S_g - T_g) / N

    with the sums S_g and T_g of document g, and the standard error of `DocumentSums.mean` for S_g - T_g. It compares
    two models with one base, a model with the noise floor (the base with itself in another precision, batch size or
    kernel), or two columns of one model.

    Args:
        first: The sums of the first model.
        second: The sums of the second model for the same tokens; the same object for two columns of one model.
        column: The name of the column.
        second_column: The name of the column in `second`, `column` by default.

    Returns:
        The difference, first minus second. Where both means are infinite it is nan and "unreliable".

    Raises:
        InputError: A column is missing, the units differ, or the documents or their numbers of tokens differ.

    Example:
        >>> sums = DocumentSums({"nll": "nats per token", "nll_base": "nats per token"})
        >>> for document in range(30):
        ...     sums.add(document, {"nll": [2.0 + 0.1 * (document % 2), 3.0], "nll_base": [2.0, 3.0]})
        >>> ratio = perplexity(paired_difference(sums, sums, "nll", "nll_base").difference)
        >>> f"{ratio.value:.4f} [{ratio.interval[0]:.4f}, {ratio.interval[1]:.4f}]"
        '1.0253 [1.0152, 1.0355]'
    """
    second_column = column if second_column is None else second_column
    first._require(column)
    second._require(second_column)
    if first.units[column] != second.units[second_column]:
        raise InputError(
            f"expected one unit, got {first.units[column]!r} of {column} and {second.units[second_column]!r} of "
            f"{second_column}"
        )
    if first._counts != second._counts:
        documents = sorted(set(first._counts) | set(second._counts))
        bad = next(g for g in documents if first._counts.get(g) != second._counts.get(g))
        raise InputError(
            f"expected sums over the same tokens, got {first._counts.get(bad, 0)} and {second._counts.get(bad, 0)} "
            f"tokens of document {bad}; compare both models on the same text"
        )
    means = first.mean(column), second.mean(second_column)
    unit = first.units[column]
    if inf in (means[0].value, means[1].value):
        value = means[0].value - means[1].value if means[0].value != means[1].value else nan
        warning = "A mean is infinite, so that the difference has no interval."
        difference = Estimate(value, nan, means[0].count, unit, _METHOD, status="unreliable", warnings=(warning,))
        return PairedDifference(*means, difference)
    sums = {
        g: exact_sum([*parts[column], *(-part for part in second._sums[g][second_column])])
        for g, parts in first._sums.items()
    }
    return PairedDifference(*means, _clustered(sums, first._counts, unit))


# All statistics of a model


def confidence_labels(base_confidence: ArrayLike) -> NDArray[np.str_]:
    """The bucket of each token by the largest probability of the base, for `ModelStatistics.add`.

    Args:
        base_confidence: The largest probability of the base for each token, from 0 to 1, shape (tokens,).

    Returns:
        Labels such as "0.25-0.5", shape (tokens,). A bucket includes its lower end.

    Raises:
        SupportError: A probability is not from 0 to 1.

    Example:
        >>> confidence_labels([0.05, 0.5, 1.0]).tolist()
        ['0-0.1', '0.5-0.75', '0.99-1']
    """
    confidence = np.asarray(base_confidence, np.float64)
    if (bad := ~((confidence >= 0) & (confidence <= 1 + 1e-5))).any():
        raise SupportError(f"expected probabilities from 0 to 1, got {confidence[bad].flat[0]}")
    edges = ["0", *map(str, _CONFIDENCE_EDGES), "1"]
    names = np.array([f"{low}-{high}" for low, high in pairwise(edges)])
    return names[np.searchsorted(_CONFIDENCE_EDGES, confidence, side="right")]


@dataclass(frozen=True)
class ModelSummary:
    """The statistics of a model with respect to its base.

    Args:
        documents: The number of documents.
        tokens: The number of tokens.
        means: The mean of each column, with an interval clustered by document.
        independent_means: The mean of each column, with the interval of independent tokens for comparison.
        quantiles: For each column with a sketch, its minimum, its quantiles and its maximum by the names "min", "0.1%",
            ..., "99.9%" and "max".
        groups: For each grouping and each label, the number of tokens and the mean of the first column.

    Example:
        >>> statistics = ModelStatistics({"kl": "nats per token"})
        >>> for document in range(40):
        ...     statistics.add(document, {"kl": [0.1, 0.3]})
        >>> f"{statistics.summary().means['kl']:.2f}"
        '0.20 ± 0.00 nats per token (estimated)'
    """

    documents: int
    tokens: int
    means: dict[str, Estimate]
    independent_means: dict[str, Estimate]
    quantiles: dict[str, dict[str, float]]
    groups: dict[str, dict[str, tuple[int, Estimate]]]

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dictionary that JSON can store.

        Returns:
            The fields by name. Infinities and nan are strings, as in `Estimate.to_dict`.

        Example:
            >>> statistics = ModelStatistics({"kl": "nats per token"})
            >>> statistics.add(0, {"kl": [0.1, 0.3]})
            >>> statistics.summary().to_dict()["quantiles"]["kl"]["max"]
            0.3
        """
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "means": {name: estimate.to_dict() for name, estimate in self.means.items()},
            "independent_means": {name: estimate.to_dict() for name, estimate in self.independent_means.items()},
            "quantiles": {
                column: dict(zip(values, numbers_to_json(values.values()), strict=True))
                for column, values in self.quantiles.items()
            },
            "groups": {
                grouping: {label: {"tokens": count, "mean": mean.to_dict()} for label, (count, mean) in labels.items()}
                for grouping, labels in self.groups.items()
            },
        }


class ModelStatistics:
    """All statistics of a model with respect to its base, from the values of its tokens.

    Statistics of parts of a corpus can be merged in any order, and equal the statistics of the whole corpus exactly.

    Args:
        units: The unit of the mean of each column by its name. The first column is the main column, whose mean is also
            computed for each group of tokens.
        quantiles_of: The columns with quantiles; None: the main column.

    Example:
        >>> whole, part = ModelStatistics({"kl": "nats per token"}), ModelStatistics({"kl": "nats per token"})
        >>> whole.add(0, {"kl": [0.1, 0.3]}, groups={"confidence": confidence_labels([0.3, 0.8])})
        >>> part.add(1, {"kl": [0.2]}, groups={"confidence": confidence_labels([0.8])})
        >>> whole.merge(part)
        >>> summary = whole.summary()
        >>> summary.tokens, {label: count for label, (count, _) in summary.groups["confidence"].items()}
        (3, {'0.25-0.5': 1, '0.75-0.9': 2})
        >>> ModelStatistics.from_state(whole.state()) == whole
        True
    """

    def __init__(self, units: Mapping[str, str], *, quantiles_of: Sequence[str] | None = None) -> None:
        self.sums = DocumentSums(units)
        if not self.sums.units:
            raise InputError("expected one column or more, got none")
        self._main = next(iter(self.sums.units))
        chosen = (self._main,) if quantiles_of is None else tuple(quantiles_of)
        for column in chosen:
            self.sums._require(column)
        self.sketches = {column: QuantileSketch() for column in self.sums.units if column in chosen}
        self.groups: dict[str, dict[str, DocumentSums]] = {}
        self._windows: dict[int, set[int]] = {}

    def add(
        self,
        document: int,
        values: Mapping[str, ArrayLike],
        *,
        window: int | None = None,
        groups: Mapping[str, ArrayLike] | None = None,
    ) -> None:
        """Add tokens of one document; a document may be added in windows.

        Args:
            document: The number of the document.
            values: The values of each column, all of the shape (tokens,); inf is allowed.
            window: The number of the window in the document. A window that is added twice, as by a data loader that
                repeats windows so that all processes have equally many, is then an error. None: the window is not
                recorded.
            groups: For each grouping, such as "confidence" or "role", the label of each token, shape (tokens,).

        Raises:
            InputError: The columns differ from the columns of the statistics, or the window was added before.
            ShapeError: The columns or the labels differ in shape.
            SupportError: A value is nan or -inf.
        """
        labels = {name: np.asarray(given).astype(str) for name, given in (groups or {}).items()}
        main = np.asarray(values.get(self._main, ()), np.float64)
        for name, given in labels.items():
            if given.shape != main.shape:
                raise ShapeError(f"expected one label of {name} for each of {main.shape} values, got {given.shape}")
        if window is not None and self.has_window(document, window):
            raise _repeated_window(document, window)
        self.sums.add(document, values)
        if window is not None:
            self._windows.setdefault(document, set()).add(window)
        for column, sketch in self.sketches.items():
            sketch.add(values[column])
        for name, given in labels.items():
            for label in np.unique(given).tolist():
                self._group(name, label).add(document, {self._main: main[given == label]})

    def has_window(self, document: int, window: int) -> bool:
        """Whether a window of a document was added, so that a run that continues from a stored state omits it.

        Args:
            document: The number of the document.
            window: The number of the window in the document.

        Returns:
            True if it was added with this number, here or in statistics that were merged.
        """
        return window in self._windows.get(document, ())

    def _group(self, grouping: str, label: str) -> DocumentSums:
        unit = {self._main: self.sums.units[self._main]}
        return self.groups.setdefault(grouping, {}).setdefault(label, DocumentSums(unit))

    def merge(self, other: "ModelStatistics") -> None:
        """Add the tokens of other statistics, which may have tokens of the same documents.

        Args:
            other: The other statistics. No token may be in both.

        Raises:
            InputError: The columns, their units or the columns with quantiles differ, or both have the same window.
        """
        for document, windows in other._windows.items():
            if repeated := windows & self._windows.get(document, set()):
                raise _repeated_window(document, min(repeated))
        if set(other.sketches) != set(self.sketches):
            raise InputError(f"expected quantiles of {sorted(self.sketches)}, got {sorted(other.sketches)}")
        self.sums.merge(other.sums)
        for document, windows in other._windows.items():
            self._windows.setdefault(document, set()).update(windows)
        for column, sketch in other.sketches.items():
            self.sketches[column].merge(sketch)
        for grouping, labels in other.groups.items():
            for label, sums in labels.items():
                self._group(grouping, label).merge(sums)

    def summary(self) -> ModelSummary:
        """All statistics.

        Returns:
            The statistics, with the labels of each grouping in alphabetical order.
        """
        columns = list(self.sums.units)
        return ModelSummary(
            self.sums.documents,
            self.sums.tokens,
            {column: self.sums.mean(column) for column in columns},
            {column: self.sums.independent_mean(column) for column in columns},
            {
                column: {
                    "min": sketch.quantile(0),
                    **{f"{100 * q:g}%": sketch.quantile(q) for q in QUANTILES},
                    "max": sketch.quantile(1),
                }
                for column, sketch in self.sketches.items()
            },
            {
                grouping: {label: (labels[label].tokens, labels[label].mean(self._main)) for label in sorted(labels)}
                for grouping, labels in sorted(self.groups.items())
            },
        )

    def state(self) -> dict[str, Any]:
        """The statistics as values that JSON stores exactly.

        Returns:
            A dictionary, in which inf is the string "inf".
        """
        return {
            "sums": self.sums.state(),
            "sketches": {column: self.sketches[column].state() for column in sorted(self.sketches)},
            "groups": {
                grouping: {label: labels[label].state() for label in sorted(labels)}
                for grouping, labels in sorted(self.groups.items())
            },
            "windows": {str(document): sorted(self._windows[document]) for document in sorted(self._windows)},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ModelStatistics":
        """Restore statistics.

        Args:
            state: The result of `state`, also after storage as JSON.

        Returns:
            Statistics that equal the original.

        Raises:
            InputError: The state is damaged.
        """
        try:
            sums = DocumentSums.from_state(state["sums"])
            statistics = cls(sums.units, quantiles_of=tuple(state["sketches"]))
            statistics.sums = sums
            statistics.sketches = {name: QuantileSketch.from_state(s) for name, s in state["sketches"].items()}
            statistics.groups = {
                grouping: {label: DocumentSums.from_state(sums) for label, sums in labels.items()}
                for grouping, labels in state["groups"].items()
            }
            statistics._windows = {int(key): set(map(int, windows)) for key, windows in state["windows"].items()}
        except InputError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"expected the state of statistics, got a damaged one: {error!r}") from error
        return statistics

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModelStatistics) and self.state() == other.state()

    __hash__ = None  # pyright: ignore[reportAssignmentType]


def _repeated_window(document: int, window: int) -> InputError:
    return InputError(
        f"expected each window once, but window {window} of document {document} was added before; a data loader that "
        "gives all processes equally many windows repeats some of them"
    )
