"""Accumulators of token values: exact merges, intervals clustered by document, quantiles and stored states."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.compare.statistics import (
    DocumentSums,
    ModelStatistics,
    confidence_labels,
    exact_sum,
    paired_difference,
    perplexity,
    root_mean_square,
)
from kullback.errors import InputError, KullbackError, ShapeError, SupportError
from kullback.result import Estimate
from kullback.samples.clustered_mean import kl_per_token

NATS = {"kl": "nats per token"}


def corpus(documents: int = 30, seed: int = 0) -> list[np.ndarray]:
    """The token KL of documents, which differ in length and in their mean."""
    rng = np.random.default_rng(seed)
    return [
        rng.gamma(2, 0.01) * rng.exponential(size=rng.integers(1, 60)) ** 3 * 10.0 ** rng.integers(-6, 2)
        for _ in range(documents)
    ]


def sums_of(documents: list[np.ndarray]) -> DocumentSums:
    sums = DocumentSums(NATS)
    for number, values in enumerate(documents):
        sums.add(number, {"kl": values})
    return sums


# Exact sums.


@given(st.lists(st.floats(-1e300, 1e300), max_size=30))
@settings(max_examples=200)
def test_exact_sums_have_every_digit(values: list[float]) -> None:
    parts = exact_sum(values)
    assert sum(map(Fraction, parts)) == sum(map(Fraction, values))
    assert list(map(abs, parts)) == sorted(map(abs, parts), reverse=True)
    assert exact_sum(values[::-1]) == parts
    assert exact_sum([*exact_sum(values[:7]), *exact_sum(values[7:])]) == parts


def test_exact_sums_of_infinities() -> None:
    assert exact_sum([1.0, math.inf, math.inf]) == (math.inf,)
    assert exact_sum([]) == exact_sum([1.0, -1.0]) == ()


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_accumulators_merge_exactly_in_any_order_and_split(workers: int) -> None:
    rng = np.random.default_rng(workers)
    documents = corpus(12)
    units = {"kl": "nats per token", "delta_p": ""}

    def add(statistics: ModelStatistics, document: int, values: np.ndarray) -> None:
        labels = {"confidence": confidence_labels(np.minimum(values * 20, 1))}
        columns = {"kl": values, "delta_p": np.sin(1e6 * values)}
        statistics.add(document, columns, groups=labels)

    whole = ModelStatistics(units, quantiles_of=("kl", "delta_p"))
    for number, values in enumerate(documents):
        add(whole, number, values)
    pieces = [(g, part) for g, values in enumerate(documents) for part in np.array_split(values, 3)]
    parts = [ModelStatistics(units, quantiles_of=("delta_p", "kl")) for _ in range(workers)]
    for index in rng.permutation(len(pieces)).tolist():
        document, values = pieces[index]
        add(parts[index % workers], document, rng.permutation(values))
    first = parts[0]
    for part in parts[1:]:
        first.merge(ModelStatistics.from_state(json.loads(json.dumps(part.state(), sort_keys=True))))
    assert first == whole
    assert json.dumps(first.state()) == json.dumps(whole.state())
    assert first.summary() == whole.summary()
    assert json.dumps(first.summary().to_dict()) == json.dumps(whole.summary().to_dict())


# Means.


@pytest.mark.parametrize(
    ("column", "values", "least", "largest"),
    [
        ("kl", [[0.0], [3.0]], 0.0, math.inf),
        ("js", [[0.6], [0.1]], 0.0, math.log(2)),
        ("top1_agreement", [[1.0], [1.0], [0.0]], 0.0, 1.0),
        ("delta_p", [[1.0], [-0.9]], -1.0, 1.0),
        ("squared_delta_p", [[1.0], [0.0]], 0.0, 1.0),
        ("ended", [[0.0], [0.0], [1.0]], 0.0, 1.0),
        ("tokens", [[1.0], [3.0]], 1.0, math.inf),
        ("bits", [[0.1], [4.0]], 0.0, math.inf),
    ],
)
def test_intervals_are_within_the_range_of_the_column(
    column: str, values: list[list[float]], least: float, largest: float
) -> None:
    sums, free = DocumentSums({column: ""}), DocumentSums({"other": ""})
    for document, part in enumerate(values):
        sums.add(document, {column: part})
        free.add(document, {"other": part})
    for name in ("mean", "independent_mean"):
        estimate, other = getattr(sums, name)(column), getattr(free, name)("other")
        assert estimate.value == other.value
        assert estimate.interval == (max(least, other.interval[0]), min(largest, other.interval[1]))
    assert free.mean("other").interval[0] < least or free.mean("other").interval[1] > largest
    assert free.mean("other", (least, largest)).interval == sums.mean(column).interval  # such as the KL of a module


def test_means_match_the_ratio_estimator() -> None:
    documents = [values + 0.01 for values in corpus(300)]
    lengths = [len(values) for values in documents]
    estimate = sums_of(documents).mean("kl")
    linear = kl_per_token([values.sum() for values in documents], lengths, range(len(documents)))
    assert estimate.value == pytest.approx(linear.value, rel=1e-13)
    assert estimate.std_error == pytest.approx(linear.std_error, rel=0.05)  # the factors 1 / (1 - h) are near 1
    assert (estimate.count, estimate.unit, estimate.status) == (300, "nats per token", "estimated")


def test_the_standard_error_is_the_jackknife() -> None:
    documents = corpus(25)
    estimate = sums_of(documents).mean("kl")
    without = [np.concatenate(documents[:g] + documents[g + 1 :]).mean() for g in range(25)]
    expected = math.sqrt(24 / 25 * sum((mean - estimate.value) ** 2 for mean in without))
    assert estimate.std_error == pytest.approx(expected, rel=1e-9)
    equal = sums_of([np.full(4, float(g)) for g in range(25)]).mean("kl")
    assert equal.std_error == pytest.approx(np.std(range(25), ddof=1) / 5, rel=1e-12)
    low, high = equal.interval
    assert high - equal.value == pytest.approx(2.1788128296672284 * equal.std_error, rel=1e-9)  # t with 12 degrees
    assert equal.value - low == pytest.approx(high - equal.value)


def test_intervals_cover_the_true_mean_and_those_of_independent_tokens_do_not() -> None:
    rng = np.random.default_rng(1)
    rounds, hits, independent = 500, 0, 0
    for _ in range(rounds):
        sums = DocumentSums(NATS)
        for document in range(30):
            rate = 0.1 * rng.gamma(2, 0.5)
            sums.add(document, {"kl": rate * rng.exponential(size=rng.integers(20, 60))})
        low, high = sums.mean("kl").interval
        hits += low <= 0.1 <= high
        low, high = sums.independent_mean("kl").interval
        independent += low <= 0.1 <= high
    assert 0.92 <= hits / rounds <= 0.98
    assert independent / rounds < 0.6


def test_independent_means_match_numpy() -> None:
    documents = corpus()
    estimate = sums_of(documents).independent_mean("kl")
    values = np.concatenate(documents)
    assert estimate.value == pytest.approx(values.mean(), rel=1e-13)
    assert estimate.std_error == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)), rel=1e-9)
    assert estimate.count == len(values)
    assert estimate.interval[1] - estimate.value == pytest.approx(1.959963984540054 * estimate.std_error)


@pytest.mark.parametrize(
    ("documents", "status", "words", "has_interval"),
    [
        ([], "unreliable", "No token", False),
        ([[0.1, 0.2]], "unreliable", "One document", False),
        ([[0.1], [0.2], [0.4]], "unreliable", "The 3 documents have the effect of 3 of equal length", True),
        ([[0.1] * 100, *[[0.2]] * 50], "unreliable", "51 documents have the effect of 2.24", True),
        ([[0.1], [0.2]] * 3, "unreliable", "fewer than 7 do not", True),
        ([[0.1], *[[0.2]] * 6], "estimated", "", True),
    ],
)
def test_few_documents_are_unreliable(documents: list, status: str, words: str, has_interval: bool) -> None:
    estimate = sums_of([np.array(values) for values in documents]).mean("kl")
    assert estimate.status == status
    assert words in " ".join(estimate.warnings)
    assert (estimate.interval is not None) == has_interval


def test_one_document_with_almost_all_tokens_has_a_wide_interval() -> None:
    sums = sums_of([np.full(10**6, 0.1), np.array([0.2])])
    low, high = sums.mean("kl").interval
    assert low == 0
    assert high > 1


@pytest.mark.parametrize("unit", [1e-300, 1e-120, 1e120])
def test_intervals_do_not_depend_on_the_unit(unit: float) -> None:
    values = np.random.default_rng(7).exponential(size=(40, 3))
    plain, scaled = (sums_of(list(factor * values)).mean("kl") for factor in (1.0, unit))
    assert scaled.value == pytest.approx(unit * plain.value, rel=1e-12)
    assert scaled.interval == pytest.approx([unit * end for end in plain.interval], rel=1e-12)


def test_sums_that_overflow_are_infinite() -> None:
    sums = sums_of([np.full(3, 1.7e308), np.ones(1)])
    assert sums.mean("kl").value == math.inf


def test_infinite_values() -> None:
    sums = sums_of([np.array([0.1, math.inf]), np.array([math.inf]), np.array([1.0])])
    estimate = sums.mean("kl")
    assert estimate.value == math.inf
    assert estimate.interval is None
    assert estimate.warnings == ("The sum of 2 of 3 documents is infinite.",)
    assert sums.independent_mean("kl").value == math.inf
    assert DocumentSums.from_state(json.loads(json.dumps(sums.state(), allow_nan=False))) == sums
    finite = sums_of([np.zeros(2), np.zeros(1), np.zeros(1)])
    for first, second, value in ((sums, finite, math.inf), (finite, sums, -math.inf), (sums, sums, math.nan)):
        difference = paired_difference(first, second, "kl")
        assert difference.difference.value == pytest.approx(value, nan_ok=True)
        assert difference.is_distinguishable is None
        assert "without an interval" in difference.describe("B", "C")


def test_skewness_is_removed_by_halls_transformation() -> None:
    documents = [np.full(2, x) for x in np.random.default_rng(5).exponential(size=50)]
    estimate = sums_of(documents).mean("kl")
    values = np.array([part[0] for part in documents])
    rate = ((values - values.mean()) ** 3).mean() / values.std() ** 3 / math.sqrt(50)
    for end, quantile in zip(estimate.interval, (2.06167187934741, -2.06167187934741), strict=True):  # t, 24.5
        u = (estimate.value - end) / estimate.std_error
        assert u + rate * (u * u / 3 + 1 / 6) + rate**2 * u**3 / 27 == pytest.approx(quantile, rel=1e-9)
    assert estimate.interval[1] - estimate.value > 1.1 * (estimate.value - estimate.interval[0])


@pytest.mark.parametrize("count", [7, 12, 40])
@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_intervals_cover_the_mean_of_skewed_documents(count: int, kind: str) -> None:
    rng = np.random.default_rng(6)
    rounds, hits = 1500, 0
    for _ in range(rounds):
        sums = sums_of([np.full(1, x) for x in getattr(rng, kind)(size=count)])
        low, high = sums.mean("kl").interval
        hits += low <= (kind == "exponential") <= high
    assert 0.94 <= hits / rounds <= 0.985


# Paired differences.


def test_paired_intervals_are_narrower_than_the_intervals_of_the_means() -> None:
    documents = corpus(40)
    rng = np.random.default_rng(2)
    nearer = [values * rng.uniform(0.85, 0.95, len(values)) for values in documents]
    first, second = sums_of(documents), sums_of(nearer)
    paired = paired_difference(first, second, "kl")
    alone = sums_of([a - b for a, b in zip(documents, nearer, strict=True)]).mean("kl")
    assert paired.difference.value == pytest.approx(alone.value, rel=1e-9)
    assert paired.difference.std_error == pytest.approx(alone.std_error, rel=1e-9)
    assert paired.difference.std_error < 0.2 * paired.first.std_error
    assert (paired.first, paired.second) == (first.mean("kl"), second.mean("kl"))
    assert paired_difference(second, first, "kl").difference.value == -paired.difference.value


def with_differences(differences: list[float]) -> tuple[DocumentSums, DocumentSums]:
    base = [np.full(3, 1.0 + g % 4) for g in range(len(differences))]
    return sums_of([b + d for b, d in zip(base, differences, strict=True)]), sums_of(base)


def test_sentences() -> None:
    far, near = with_differences([0.01 + 0.001 * (g % 5) for g in range(40)])
    assert paired_difference(far, near, "kl").is_distinguishable is True
    text = "B is nearer than C: difference 0.01200 [0.01153, 0.01247] nats per token"
    assert paired_difference(far, near, "kl").describe("C", "B") == text
    assert paired_difference(near, far, "kl").describe("B", "C") == text
    assert paired_difference(far, near, "kl").describe_floor("C").startswith("C is above the floor: difference 0.012")
    assert paired_difference(near, far, "kl").describe_floor("C").startswith("C is below the floor: difference -0.012")
    same = paired_difference(*with_differences([0.01 * (-1) ** g for g in range(40)]), "kl")
    assert same.is_distinguishable is False
    assert same.describe("B", "C").startswith("B and C are not distinguishable: difference 0.0000 [-0.0033, 0.0033]")
    assert same.describe_floor("B").startswith("B is not distinguishable from the floor")
    few = paired_difference(*with_differences([0.01, 0.011, 0.012]), "kl")
    assert few.is_distinguishable is None
    assert few.describe("C", "B").startswith("It is not determined which of C and B is nearer: difference 0.0110 [")
    assert few.describe_floor("B").startswith("It is not determined whether B is above the floor")


def test_different_tokens_raise() -> None:
    first, second = sums_of([np.ones(2), np.ones(3)]), sums_of([np.ones(2), np.ones(4)])
    with pytest.raises(InputError, match="got 3 and 4 tokens of document 1"):
        paired_difference(first, second, "kl")
    with pytest.raises(InputError, match="got 3 and 0 tokens of document 1"):
        paired_difference(first, sums_of([np.ones(2)]), "kl")
    with pytest.raises(InputError, match="one of the columns kl, got 'js'"):
        paired_difference(first, first, "kl", "js")
    bits = DocumentSums({"kl": "bits per token"})
    with pytest.raises(InputError, match="one unit"):
        paired_difference(first, bits, "kl")
    with pytest.raises(InputError, match="expected the columns"):
        first.merge(bits)


def test_derived_estimates() -> None:
    mean = Estimate(2.0, 0.1, 30, "nats per token", "documents as clusters", interval=(1.8, 2.2))
    ppl = perplexity(mean)
    assert (ppl.value, ppl.std_error) == pytest.approx((math.exp(2), 0.1 * math.exp(2)))
    assert ppl.interval == pytest.approx((math.exp(1.8), math.exp(2.2)))
    assert (ppl.unit, ppl.count, ppl.status) == ("", 30, "estimated")
    rms = root_mean_square(Estimate(0.04, 0.004, 30, "", interval=(-0.01, 0.09)))
    assert (rms.value, rms.interval) == (0.2, (0.0, 0.3))
    assert rms.std_error == pytest.approx(0.01)
    assert perplexity(Estimate(math.inf)).value == math.inf
    assert perplexity(Estimate(math.inf)).status == "estimated"
    assert perplexity(Estimate(800.0, 1.0)).status == "overflow"
    assert perplexity(Estimate(800.0, 1.0, interval=(700.0, 900.0))).interval == (np.exp(700.0), math.inf)
    assert math.isnan(root_mean_square(Estimate(0.0, 0.0)).std_error)


# Groups, and invalid arguments.


def test_groups_are_means_of_their_tokens() -> None:
    statistics = ModelStatistics(NATS)
    rng = np.random.default_rng(4)
    kl, confidence = rng.exponential(size=(2, 30, 10))
    confidence = confidence / (1 + confidence)
    for document in range(30):
        labels = {"confidence": confidence_labels(confidence[document]), "role": ["user"] * 4 + ["assistant"] * 6}
        statistics.add(document, {"kl": kl[document]}, groups=labels)
    groups = statistics.summary().groups
    assert sum(count for count, _ in groups["confidence"].values()) == 300
    count, mean = groups["confidence"]["0.25-0.5"]
    inside = (confidence >= 0.25) & (confidence < 0.5)
    assert count == inside.sum()
    assert mean.value == pytest.approx(kl[inside].mean())
    assert groups["role"]["user"][1].value == pytest.approx(kl[:, :4].mean())
    assert groups["role"]["user"][1].interval is not None


def test_a_window_that_is_added_twice_raises() -> None:
    first, second = ModelStatistics(NATS), ModelStatistics(NATS)
    first.add(0, {"kl": [0.1]}, window=0)
    first.add(0, {"kl": [0.2]}, window=1)
    second.add(1, {"kl": [0.3]}, window=1)
    stored = ModelStatistics.from_state(json.loads(json.dumps(first.state())))
    assert stored == first
    assert [stored.has_window(0, window) for window in range(3)] == [True, True, False]
    with pytest.raises(InputError, match="window 1 of document 0 was added before"):
        stored.add(0, {"kl": [0.2]}, window=1)
    first.merge(second)
    assert first.has_window(1, 1)
    whole = first.state()
    for other in (second, stored):
        with pytest.raises(InputError, match="was added before"):
            first.merge(other)
    assert first.state() == whole
    with pytest.raises(SupportError):
        first.add(2, {"kl": [math.nan]}, window=0)
    assert not first.has_window(2, 0)


def test_confidence_labels_include_their_lower_end() -> None:
    labels = confidence_labels([0, 0.1, 0.25, 0.989, 0.99, 1.0])
    assert labels.tolist() == ["0-0.1", "0.1-0.25", "0.25-0.5", "0.9-0.99", "0.99-1", "0.99-1"]
    for wrong in (-0.1, 1.1, math.nan):
        with pytest.raises(SupportError, match="from 0 to 1"):
            confidence_labels([0.5, wrong])


@pytest.mark.parametrize(
    ("values", "groups", "error", "words"),
    [
        ({"js": [1.0]}, None, InputError, r"columns \['kl'\], got \['js'\]"),
        ({"kl": [[1.0]]}, None, ShapeError, r"kl \(1, 1\)"),
        ({"kl": [1.0, math.nan]}, None, SupportError, "kl .* nan at token 1 .* document 7"),
        ({"kl": [-math.inf]}, None, SupportError, "above -inf"),
        ({"kl": [1.0]}, {"role": ["a", "b"]}, ShapeError, "one label of role"),
    ],
)
def test_invalid_values_raise_and_change_nothing(values, groups, error: type[KullbackError], words: str) -> None:
    statistics = ModelStatistics(NATS)
    with pytest.raises(error, match=words):
        statistics.add(7, values, groups=groups)
    assert statistics == ModelStatistics(NATS)


def damaged_states() -> list:
    """States of which one part has been removed or replaced."""
    statistics = ModelStatistics(NATS)
    statistics.add(0, {"kl": [0.1]}, groups={"role": ["user"]})
    found = [{}, None, []]
    for path in (
        ("windows",),
        ("sums",),
        ("sketches",),
        ("groups",),
        ("sums", "columns"),
        ("sums", "documents", "0"),
        ("sums", "squares"),
    ):
        for value in ("removed", None, "text", [["nan"]], 3):
            state = json.loads(json.dumps(statistics.state()))
            inner = state
            for key in path[:-1]:
                inner = inner[key]
            if value == "removed" and path[-1] != "0":
                del inner[path[-1]]
            else:
                inner[path[-1]] = value
            found.append(state)
    return found


def test_damaged_states_raise() -> None:
    for state in damaged_states():
        with pytest.raises(InputError):
            ModelStatistics.from_state(state)
