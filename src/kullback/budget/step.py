"""What whoever holds the weights does after an optimiser's step, as a `KLBudget` asks."""

from collections.abc import Callable

from kullback.budget.kl_budget import KLBudget

__all__ = ["pull_and_brake"]

_MOST_BRAKES = 3


def pull_and_brake(
    budget: KLBudget,
    scale: Callable[[float], None],
    look: Callable[[], tuple[float, float, float]],
    *,
    is_told: bool = False,
) -> tuple[KLBudget, float]:
    """Pull the weights, see on held-out positions where the step went, brake if it went too far.

    Args:
        budget: Its state before.
        scale: Scales the displacement from the reference by a factor.
        look: Gives the positions' KL when last looked at, their KL now, and the relative standard error of the change.
        is_told: Whether the budget knows already what the step itself did.

    Returns:
        The state after, and by what the displacement was scaled in all.
    """
    pulled = budget.displacement_scale
    scale(pulled)
    before, after, std_error = look()
    if is_told:
        budget = budget.after_brake(before, after, factor=pulled)
    else:
        budget = budget.after_step(before, after, displacement_scale=pulled, std_error=std_error)
    for _ in range(_MOST_BRAKES):
        if (brake := budget.brake) == 1.0:
            break
        scale(brake)
        pulled *= brake
        before, after, _ = look()
        budget = budget.after_brake(before, after)
    return budget, pulled
