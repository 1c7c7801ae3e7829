"""Detection of the first loss, gradient or weight of a training run that is not finite."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from kullback.errors import BudgetError, InputError, NotNormalizedError, ParameterError, SupportError

__all__ = [
    "finite_outputs",
    "require_finite",
    "require_finite_gradients",
    "require_finite_loss",
    "require_finite_step",
    "require_finite_weights",
]


_ADVICE = "; training stops, and all checkpoints of earlier steps are kept"


def require_finite_weights(model: torch.nn.Module, *, step: int) -> None:
    """Raise InputError if a weight of a model is nan or infinite.

    Args:
        model: The model.
        step: The number of steps that have been taken, for the message.
    """
    if step == 0:
        require_finite("weight", model.named_parameters(), where="before step 1")
    else:
        require_finite("weight", model.named_parameters(), where=f"step {step}", advice=_ADVICE)


def require_finite_gradients(model: torch.nn.Module, *, step: int) -> None:
    """Raise InputError if a gradient of a weight of a model is nan or infinite.

    Args:
        model: The model.
        step: The step that is about to be taken, for the message.
    """
    gradients = ((name, weight.grad) for name, weight in model.named_parameters())
    require_finite("gradient", gradients, where=f"step {step}", advice=_ADVICE)


def require_finite_step(weights: Sequence[tuple[str, torch.nn.Parameter]], *, step: int) -> None:
    """Raise InputError if an optimizer step has made a weight nan or infinite; the message names the gradient if it is.

    A step with a gradient that is not finite makes its weight nan or infinite, so that the gradients are examined only
    to find the cause.

    Args:
        weights: The weights by name after the step, with their gradients. A training loop lists them once, because
            `named_parameters` takes a fifth of the time of the check.
        step: The step that was taken, for the message.
    """
    where = f"step {step}"
    try:
        require_finite("weight", weights, where=where, advice=_ADVICE)
    except InputError:
        require_finite("gradient", [(name, weight.grad) for name, weight in weights], where=where, advice=_ADVICE)
        raise


def require_finite_loss(loss: float, *, step: int) -> None:
    """Raise InputError if the loss of a step is nan or infinite."""
    if not math.isfinite(loss):
        raise InputError(f"step {step}: expected a finite loss, got {loss}{_ADVICE}")


@contextmanager
def finite_outputs(step: Callable[[], int], *, remedy: str = "") -> Iterator[None]:
    """Within the context, the errors of distributions with parameters that are not finite name the step.

    Finite weights that are very large have outputs that are not finite, which PyTorch rejects when it samples.

    Args:
        step: A function that returns the present step.
        remedy: What can be changed, for the message.

    Raises:
        InputError: A distribution or a controller rejected a value.
    """
    try:
        yield
    except (BudgetError, NotNormalizedError, ParameterError, SupportError) as error:
        raise _at_step(step(), str(error) + (remedy and f"; {remedy}")) from error
    except (RuntimeError, ValueError) as error:
        if not re.search("probability tensor contains|to satisfy the constraint|without overflow", str(error)):
            raise
        message = (
            "expected finite outputs of the model, got nan or infinity; its weights, its inputs, or a temperature near "
            "0 by which they are divided, can be the cause" + (remedy and f"; {remedy}")
        )
        raise _at_step(step(), message) from error


def _at_step(step: int, message: str) -> InputError:
    return InputError(f"before step 1: {message}" if step == 0 else f"step {step}: {message}{_ADVICE}")


def require_finite(
    kind: str, tensors: Iterable[tuple[str, torch.Tensor | None]], *, where: str, advice: str = ""
) -> None:
    """Raise InputError if one of several tensors contains nan or infinity.

    All tensors are reduced to one value, so that a GPU is synchronised once. The Euclidean norm, which takes a tenth of
    the time of the maximum norm on CPUs, is not finite for a tensor with nan or infinity. It may also overflow, so the
    values themselves are then examined.

    Args:
        kind: "weight" or "gradient".
        tensors: Tensors by name. None is skipped.
        where: The beginning of the message, such as "step 3".
        advice: The end of the message.

    Raises:
        InputError: A tensor contains nan or infinity; the message has its name and its index.

    Example:
        >>> require_finite("weight", [("bias", torch.tensor([1.0, torch.nan]))], where="step 3")
        Traceback (most recent call last):
        ...
        kullback.errors.InputError: step 3: expected finite weights, got nan at index 1 of bias
    """
    named = [
        (name, tensor.detach())
        for name, tensor in tensors
        if tensor is not None and tensor.numel() and tensor.is_floating_point()
    ]
    if not named:
        return
    if bool(torch.isfinite(torch.nn.utils.get_total_norm([tensor for _, tensor in named]))):
        return
    for name, tensor in named:
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            index = tuple(int(i) for i in (~finite).nonzero()[0])
            position = index[0] if len(index) == 1 else index
            raise InputError(
                f"{where}: expected finite {kind}s, got {float(tensor[index])} at index {position} of {name}{advice}"
            )
