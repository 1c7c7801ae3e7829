"""Aggregation of token values into one number."""

import math

import pytest
import torch

from kullback.errors import PenaltyError, ShapeError
from kullback.policy.aggregation import aggregate_tokens

VALUES = torch.tensor([[1.0, 2.0, 6.0], [5.0, torch.nan, torch.inf], [torch.nan] * 3])
MASK = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])


@pytest.mark.parametrize(
    ("how", "expected"), [("token_mean", 14 / 4), ("sequence_mean", (3 + 5 + 0) / 3), ("sequence_sum", (9 + 5 + 0) / 3)]
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_values_where_the_mask_is_false_are_ignored(how: str, expected: float, dtype: torch.dtype) -> None:
    values = VALUES.clone().requires_grad_()
    got = aggregate_tokens(values, MASK.to(dtype), how)
    assert got.item() == pytest.approx(expected)
    got.backward()
    assert (values.grad[~MASK] == 0).all()
    assert (values.grad[MASK] > 0).all()


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "sequence_sum"])
def test_with_a_normalizer_parts_of_a_batch_sum_to_the_value_of_the_batch(how: str) -> None:
    normalizer = MASK.sum() if how == "token_mean" else len(MASK)
    parts = [aggregate_tokens(VALUES[k : k + 1], MASK[k : k + 1], how, normalizer=normalizer) for k in range(3)]
    assert sum(parts).item() == pytest.approx(aggregate_tokens(VALUES, MASK, how).item())


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "sequence_sum"])
def test_without_tokens_value_and_gradient_are_zero(how: str) -> None:
    values = VALUES.clone().requires_grad_()
    got = aggregate_tokens(values, torch.zeros(3, 3), how)
    got.backward()
    assert got == 0
    assert (values.grad == 0).all()


def test_without_a_mask_all_tokens_count() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    for how in ("token_mean", "sequence_mean"):
        assert aggregate_tokens(values, how=how) == values.mean()


def test_invalid_arguments_raise() -> None:
    with pytest.raises(PenaltyError, match="'mean'"):
        aggregate_tokens(VALUES, MASK, "mean")
    with pytest.raises(ShapeError, match=r"\(3, 3\), got \(3,\)"):
        aggregate_tokens(VALUES, MASK[0])


@pytest.mark.parametrize("normalizer", [-1.0, 0.0, math.inf, math.nan])
@pytest.mark.parametrize("convert", [float, torch.tensor, lambda x: torch.tensor([x], dtype=torch.float64)])
def test_a_normalizer_that_is_not_positive_is_refused(normalizer, convert):
    with pytest.raises(PenaltyError, match="positive finite normalizer"):
        aggregate_tokens(torch.ones(2, 3), normalizer=convert(normalizer))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("how", "expected"), [("token_mean", 96), ("sequence_mean", 96), ("sequence_sum", 192_000)])
def test_sums_of_values_of_16_bits_do_not_overflow(dtype: torch.dtype, how: str, expected: float) -> None:
    values = torch.full((4, 2000), 96.0, dtype=dtype, requires_grad=True)
    got = aggregate_tokens(values, None, how)
    got.backward()
    assert got.item() == expected
    assert values.grad.dtype == dtype
