"""One optimizer step with a KL budget: scale the learning rate and the displacement, measure the KL, apply the brake.

The trainers of language models (`kullback.integrations.trl`), of policies in environments
(`kullback.integrations.sb3_budget`) and of VAEs (`kullback.train.vae.budget_step`) differ in two functions only: how
the displacement of the weights is scaled, and how the KL of held-out samples is measured.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from kullback.budget.kl_budget import KLBudget

__all__ = ["BudgetStep", "HeldOutMean", "HeldOutSamples", "scaled_learning_rates"]

_MAX_BRAKES = 3


class HeldOutSamples(Protocol):
    """Samples on which the KL is measured again after each change of the weights."""

    def remeasure(self) -> tuple[float, float, float]:
        """Return the mean KL at the previous measurement, the mean KL now, and the relative error of their ratio."""
        ...


class HeldOutMean:
    """The mean KL over fixed samples, as `HeldOutSamples`.

    Args:
        measure: Returns the mean KL over the samples for the current weights.

    Example:
        >>> values = iter([0.02, 0.03])
        >>> HeldOutMean(lambda: next(values)).remeasure()
        (0.02, 0.03, nan)
    """

    def __init__(self, measure: Callable[[], float]) -> None:
        self.measure = measure
        self.kl = measure()

    def remeasure(self) -> tuple[float, float, float]:
        """Return the previous KL, the present KL, and nan for the unknown error of their ratio."""
        before, self.kl = self.kl, self.measure()
        return before, self.kl, math.nan


@dataclass
class BudgetStep:
    """Applies a `KLBudget` to the weights after each optimizer step.

    Args:
        scale_displacement: Multiplies the displacement of the weights from the reference by a factor.
        held_out: The samples on which the result is measured.

    Example:
        >>> weight = [1.0]
        >>> def scale(factor):
        ...     weight[0] *= factor
        >>> step = BudgetStep(scale, HeldOutMean(lambda: 0.05 * weight[0] ** 2))
        >>> budget = KLBudget(0.05).update(0.05, std_error=0.0, count=64)
        >>> weight[0] = 1.2  # the optimizer step
        >>> budget, factor = step.apply(budget)
        >>> round(0.05 * weight[0] ** 2, 3), round(factor, 3)
        (0.05, 0.833)
    """

    scale_displacement: Callable[[float], None]
    held_out: HeldOutSamples

    def apply(self, budget: KLBudget, *, step_is_known: bool = False) -> tuple[KLBudget, float]:
        """Scale the displacement after an optimizer step, measure the KL, and apply the brake while it is needed.

        Args:
            budget: The state before.
            step_is_known: Whether the state contains the change of the KL by the optimizer step already.

        Returns:
            The state after, and the total factor by which the displacement was scaled.
        """
        factor = budget.displacement_scale
        self.scale_displacement(factor)
        before, after, std_error = self.held_out.remeasure()
        if step_is_known:
            budget = budget.after_brake(before, after, factor=factor)
        else:
            budget = budget.after_step(before, after, displacement_scale=factor, std_error=std_error)
        for _ in range(_MAX_BRAKES):
            if (brake := budget.brake) == 1.0:
                break
            self.scale_displacement(brake)
            factor *= brake
            before, after, _ = self.held_out.remeasure()
            budget = budget.after_brake(before, after)
        return budget, factor


@contextmanager
def scaled_learning_rates(groups: Sequence[dict[str, Any]], scale: float) -> Iterator[None]:
    """Multiply the learning rates of an optimizer's parameter groups within the context.

    The rates are restored afterwards, since a scheduler may compute its next rate from the present one. A rate that was
    set within the context, as by DeepSpeed's scheduler, is kept.

    Args:
        groups: Parameter groups as in `torch.optim.Optimizer.param_groups`.
        scale: The factor.

    Example:
        >>> groups = [{"lr": 0.1}]
        >>> with scaled_learning_rates(groups, 0.5):
        ...     groups[0]["lr"]
        0.05
        >>> groups[0]["lr"]
        0.1
    """
    rates = [group["lr"] for group in groups]
    scaled = [rate * scale for rate in rates]
    for group, rate in zip(groups, scaled, strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, rate, present in zip(groups, rates, scaled, strict=True):
            if group["lr"] == present:
                group["lr"] = rate
