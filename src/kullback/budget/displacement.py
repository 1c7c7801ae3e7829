"""The displacement of weights from the weights of a reference, for PyTorch, and float32 copies of trained weights."""

import math
from collections.abc import Iterable
from typing import Any

from kullback.errors import BudgetError, MissingDependencyError
from kullback.numerics.arguments import is_number, shown

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install 'kullback[train]'") from error

from torch import Tensor

__all__ = ["Float32Weights", "scale_displacement"]

_HALF_PRECISION = (torch.bfloat16, torch.float16)


@torch.no_grad()
def scale_displacement(weights: Iterable[Tensor], anchors: Iterable[Tensor], factor: float) -> None:
    """Multiply the displacement of weights from anchors by a factor, in place.

    weight <- anchor + factor (weight - anchor)

    Args:
        weights: The weights that are changed.
        anchors: As many tensors of the same shapes, in any floating dtype.
        factor: The factor, a finite number; 1 leaves the weights unchanged.

    Raises:
        BudgetError: The factor is not a finite number, or the numbers or the shapes of the tensors differ.

    Example:
        >>> weight = torch.tensor([2.0, 4.0])
        >>> scale_displacement([weight], [torch.tensor([0.0, 2.0])], 0.5)
        >>> weight
        tensor([1., 3.])
    """
    if not (is_number(factor) and math.isfinite(factor)):
        raise BudgetError(f"expected factor to be a finite number, got {shown(factor)}")
    if factor == 1.0:
        return
    weights, anchors = list(weights), list(anchors)
    if len(weights) != len(anchors):
        raise BudgetError(f"expected as many anchors as weights, {len(weights)}, got {len(anchors)}")
    for index, (weight, anchor) in enumerate(zip(weights, anchors, strict=True)):
        if weight.shape != anchor.shape:
            shapes = tuple(weight.shape), tuple(anchor.shape)
            raise BudgetError(f"expected an anchor of the shape {shapes[0]} of weight {index}, got {shapes[1]}")
    for weight, anchor in zip(weights, anchors, strict=True):
        weight.copy_(torch.lerp(anchor.to(weight.dtype), weight, factor))


class Float32Weights:
    """Float32 copies of trained weights in bfloat16 or float16, on which the optimizer and the controller act.

    A step or a scaling of the displacement that is smaller than the rounding of a weight is added to the copy, so that
    many of them accumulate. After each change, the weights are the rounded copies.

    Args:
        weights: The trained weights; those in float32 or float64 need no copy.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        >>> copies = Float32Weights([weight])
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> copies.replace_in(optimizer)
        >>> for _ in range(4):
        ...     weight.grad = torch.full_like(weight, -0.001)  # the spacing of bfloat16 at 1 is 0.0078
        ...     copies.take_gradients()
        ...     optimizer.step()
        ...     copies.round()
        >>> weight.item()
        1.0078125
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._pairs = {
            id(weight): (weight, torch.nn.Parameter(weight.detach().float()))
            for weight in weights
            if weight.dtype in _HALF_PRECISION
        }

    def __len__(self) -> int:
        return len(self._pairs)

    def copies(self) -> dict[int, Tensor]:
        """Return the float32 copies by the id of the weight."""
        return {key: copy.detach() for key, (_, copy) in self._pairs.items()}

    def copy_of(self, weight: Tensor) -> Tensor:
        """Return the float32 copy of a weight, or the weight if it has none."""
        return self._pairs[id(weight)][1] if id(weight) in self._pairs else weight

    def replace_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the weights of an optimizer by their float32 copies, its state included."""
        for group in optimizer.param_groups:
            group["params"] = [self.copy_of(weight) for weight in group["params"]]
        for weight, copy in self._pairs.values():
            state: dict[str, Any] | None = optimizer.state.pop(weight, None)
            if state:
                optimizer.state[copy] = {
                    name: value.float() if isinstance(value, Tensor) and value.dtype in _HALF_PRECISION else value
                    for name, value in state.items()
                }

    def read(self) -> None:
        """Set the copies to weights that were changed elsewhere; a copy that rounds to its weight is kept."""
        with torch.no_grad():
            for weight, copy in self._pairs.values():
                changed = copy.to(weight.dtype) != weight
                copy.copy_(torch.where(changed, weight.float(), copy))

    def take_gradients(self) -> None:
        """Give the copies the gradients of the weights, before the optimizer step."""
        for weight, copy in self._pairs.values():
            copy.grad = None if weight.grad is None else weight.grad.float()

    def round(self) -> None:
        """Set the weights to the rounded copies after a change of the copies, and clear the copies' gradients."""
        with torch.no_grad():
            for weight, copy in self._pairs.values():
                weight.copy_(copy)
                copy.grad = None
