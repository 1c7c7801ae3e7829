"""The displacement of weights from the weights of a reference, for PyTorch."""

from collections.abc import Iterable

from kullback.errors import MissingDependencyError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install 'kullback[train]'") from error

from torch import Tensor

__all__ = ["scale_displacement"]


@torch.no_grad()
def scale_displacement(weights: Iterable[Tensor], anchors: Iterable[Tensor], factor: float) -> None:
    """Multiply the displacement of weights from anchors by a factor, in place.

    weight <- anchor + factor (weight - anchor)

    Args:
        weights: The weights that are changed.
        anchors: As many tensors of the same shapes, in any floating dtype.
        factor: The factor; 1 leaves the weights unchanged.

    Example:
        >>> weight = torch.tensor([2.0, 4.0])
        >>> scale_displacement([weight], [torch.tensor([0.0, 2.0])], 0.5)
        >>> weight
        tensor([1., 3.])
    """
    if factor == 1.0:
        return
    for weight, anchor in zip(weights, anchors, strict=True):
        weight.copy_(torch.lerp(anchor.to(weight.dtype), weight, factor))
