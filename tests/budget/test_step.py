"""The scaling of learning rates during one step."""

import pytest

from kullback.budget.step import scaled_learning_rates


def test_the_rates_are_scaled_and_restored() -> None:
    groups = [{"lr": 0.1}, {"lr": 0.3}]
    with scaled_learning_rates(groups, 0.25):
        assert [group["lr"] for group in groups] == pytest.approx([0.025, 0.075])
    assert [group["lr"] for group in groups] == [0.1, 0.3]


@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_a_rate_that_a_scheduler_sets_within_the_step_is_kept(scale: float) -> None:
    groups = [{"lr": 0.1}, {"lr": 0.3}]
    with scaled_learning_rates(groups, scale):
        groups[0]["lr"] = 0.09  # DeepSpeed's scheduler advances in the backward pass
    assert [group["lr"] for group in groups] == [0.09, 0.3]
