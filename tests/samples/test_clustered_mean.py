"""The standard error clustered by prompt, against simulations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kullback.errors import LabelError, ShapeError, SupportError
from kullback.samples.clustered_mean import kl_per_sequence, kl_per_token


def draw(rng: np.random.Generator, prompts: int = 30, each: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Completions whose KL and length vary more between prompts than within; the true KL per token is 0.05."""
    group = np.repeat(np.arange(prompts), each)
    lengths = 1 + rng.poisson(4, prompts)[group] + rng.poisson(1, prompts * each)
    rate = 0.05 * rng.gamma(2, 1 / 2, prompts)[group]
    return rate * lengths, lengths, group


def test_interval_has_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    hits, naive, rounds = 0, 0, 1500
    for _ in range(rounds):
        sums, lengths, group = draw(rng)
        estimate = kl_per_token(sums, lengths, group)
        hits += abs(estimate.value - 0.05) < 1.96 * estimate.std_error
        alone = kl_per_token(sums, lengths, np.arange(len(sums)))
        naive += abs(alone.value - 0.05) < 1.96 * alone.std_error
    bound = 4 * math.sqrt(0.95 * 0.05 / rounds)
    assert hits / rounds > 0.93 - bound  # with 30 groups the normal quantile is slightly too small
    assert naive / rounds < 0.7  # coverage with completions treated as independent


def test_values_match_a_manual_calculation() -> None:
    token = kl_per_token([0.3, 0.1, 0.4], [3, 1, 2], prompts=[7, 7, 9])
    assert token.value == pytest.approx(0.8 / 6)
    residuals = [0.4 - 4 * 0.8 / 6, 0.4 - 2 * 0.8 / 6]
    assert token.std_error == pytest.approx(math.sqrt(2 * sum(r * r for r in residuals)) / 6)
    assert token.count == 2
    assert token.unit == "nats per token"
    sequence = kl_per_sequence([0.3, 0.1, 0.4], prompts=[1, 2, 3])
    assert sequence.value == pytest.approx(0.8 / 3)
    assert sequence.std_error == pytest.approx(np.std([0.3, 0.1, 0.4], ddof=1) / math.sqrt(3))


def test_standard_error_of_one_prompt_is_nan() -> None:
    assert math.isnan(kl_per_token([0.1, 0.2], [1, 1], prompts=[4, 4]).std_error)


@given(st.permutations(range(6)), st.integers(1, 1000))
def test_order_and_labels_do_not_matter(order: list[int], offset: int) -> None:
    sums, lengths, group = np.arange(6) / 10, np.array([1, 2, 3, 1, 2, 3]), np.array([0, 0, 1, 1, 2, 2])
    plain = kl_per_token(sums, lengths, group)
    mixed = kl_per_token(sums[order], lengths[order], offset - group[order])
    assert mixed.value == pytest.approx(plain.value)
    assert mixed.std_error == pytest.approx(plain.std_error)


@pytest.mark.parametrize(("sums", "lengths", "prompts"), [([1.0], [1, 2], [0]), ([], [], []), ([0.0], [0], [0])])
def test_inconsistent_arguments_raise(sums: list[float], lengths: list[int], prompts: list[int]) -> None:
    with pytest.raises(ShapeError):
        kl_per_token(sums, lengths, prompts)


# Invalid samples.


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            ([0.1, math.nan], [2, 2], [0, 1]),
            SupportError,
            "the KL of each completion to be a number, but it is nan at index 1",
        ),
        (
            ([0.1, 0.2], [2, -1], [0, 1]),
            SupportError,
            r"length of each completion to be >= 0 and finite, but it is -1\.0",
        ),
        (([0.1, 0.2], [2, math.inf], [0, 1]), SupportError, "finite, but it is inf at index 1"),
        (([], [], []), ShapeError, "at least one token"),
        (([[0.1]], [[1]], [[0]]), ShapeError, r"shape \(sequences,\)"),
    ],
)
def test_invalid_samples_raise_one_line(arguments, error, words):
    with pytest.raises(error, match=words) as found:
        kl_per_token(*arguments)
    assert "\n" not in str(found.value)


def test_columns_of_pandas_are_matched_by_their_indexes():
    pandas = pytest.importorskip("pandas")
    sums = pandas.Series([0.2, 0.4, 0.3], index=[0, 1, 2])
    prompts = pandas.Series([0, 0, 1], index=[2, 1, 0])
    assert kl_per_sequence(sums, prompts) == kl_per_sequence(sums, prompts.sort_index())
    with pytest.raises(LabelError, match="label"):
        kl_per_sequence(sums, prompts.rename({0: 7}))
    assert kl_per_sequence(sums, prompts.to_numpy()).value == pytest.approx(0.3)
    assert kl_per_sequence(sums, prompts.sort_index()).value == pytest.approx(0.3)


def test_one_prompt_and_infinite_kl():
    one = kl_per_sequence([0.2, 0.4], [7, 7])
    assert (one.value, one.count) == (pytest.approx(0.3), 1)
    assert math.isnan(one.std_error)
    infinite = kl_per_sequence([math.inf, 0.4], [0, 1])
    assert infinite.value == math.inf
    assert math.isnan(infinite.std_error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_tensors_of_a_model_in_training_are_accepted(dtype: torch.dtype) -> None:
    sums = torch.tensor([0.25, 0.5, 0.125, 0.0], dtype=dtype, requires_grad=True)
    lengths, prompts = torch.tensor([4, 4, 2, 2], dtype=dtype), torch.tensor([0, 0, 1, 1])
    plain = [0.25, 0.5, 0.125, 0.0], [4, 4, 2, 2], [0, 0, 1, 1]
    assert kl_per_token(sums, lengths, prompts) == kl_per_token(*plain)
    assert kl_per_sequence(sums, prompts) == kl_per_sequence(plain[0], plain[2])


def test_a_prompt_that_is_nan_is_refused() -> None:
    with pytest.raises(SupportError, match="the prompt of each completion to be a number, but it is nan at index 1"):
        kl_per_sequence([0.1, 0.2], [0.0, math.nan])
