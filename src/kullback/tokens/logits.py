"""KL divergence between next-token distributions, from the logits of two models."""

from typing import Any

import torch
from array_api_compat import torch as torch_namespace
from torch import Tensor

from kullback.discrete.kl import differentiable_kl_logits
from kullback.errors import ArrayTypeError, KullbackError, ShapeError, SupportError
from kullback.numerics.arguments import as_float64, boolean_mask, is_number, shown
from kullback.numerics.array_types import ArrayInput, ArrayT, Bool, Float
from kullback.numerics.arrays import ArrayLike, as_floats, cast, has_values, is_compiling
from kullback.numerics.labels import is_labelled, plain_arrays, require_unlabelled

__all__ = ["token_kl"]

# The dtypes with arithmetic; quantised and complex dtypes, and floats of 8 bits or less, are not among them.
_REAL = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
}


def token_kl(
    p_logits: ArrayInput[ArrayT],
    q_logits: ArrayInput[ArrayT],
    *,
    mask: ArrayLike | None = None,
    temperature: float = 1.0,
) -> Float[ArrayT, "..."]:
    """KL(p || q) of the next-token distributions at every position, by the exact sum over the vocabulary.

        KL(p || q) = sum_v p_v phi(log(q_v/p_v)), where phi(d) = e^d - 1 - d, p = softmax(p_logits / temperature) and
        q = softmax(q_logits / temperature)

    The result is non-negative. For identical logits, the result and its gradient are exactly 0.

    Args:
        p_logits: Shape (..., V), a tensor, a NumPy array, a JAX array or a list; -inf for a token of probability 0.
            float16 and bfloat16 are converted to float32.
        q_logits: Shape (..., V); -inf for a token of probability 0. float16 and bfloat16 are converted to float32.
        mask: Shape (...), true (or nonzero) for the positions that count. Other positions have result 0 and gradient 0,
            whatever their logits are, nan included. None: all positions count.
        temperature: The divisor of the logits, > 0.

    Returns:
        Shape (...), nats per position, float32 or float64, with the array type of the inputs. `inf` where q_logits is
        -inf for a token and p_logits is not, where the KL exceeds the largest number of the dtype, and, on an
        accelerator, where a difference of logits does. nan where a logit is nan or +inf, or where all logits are -inf;
        these are not errors, because a check would synchronise the device.

    Raises:
        ArrayTypeError: The logits are arrays of two libraries, or are not numbers, or the logits and the mask have
            labels, which are not matched.
        ShapeError: The shapes differ, or the vocabulary is empty.
        SupportError: The temperature is not a positive finite number.

    Example:
        >>> policy, reference = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.001]])
        >>> f"{token_kl(policy, reference).item():.4g}"
        '1.113e-07'
    """
    if is_compiling():
        from kullback.numerics.torch_graph import call_in_graph

        return call_in_graph(__name__, "_token_kl", p_logits, q_logits, mask, temperature)
    return _token_kl(p_logits, q_logits, mask, temperature)


def _token_kl(p_logits: Any, q_logits: Any, mask: ArrayLike | None, temperature: float) -> Any:
    xp: Any = torch_namespace
    if is_labelled(mask) and (is_labelled(p_logits) or is_labelled(q_logits)):
        require_unlabelled("mask", mask)
    if isinstance(p_logits, Tensor) and isinstance(q_logits, Tensor):
        p, q = plain_arrays(p_logits, q_logits)
        if p.is_complex() or q.is_complex():
            raise ArrayTypeError(f"expected real logits, got {p.dtype} and {q.dtype}")
    else:
        xp, [p, q], _ = as_floats(p_logits, q_logits)
    if p.shape == q.shape and p.ndim > 0 and p.shape[-1] == 0:
        raise ShapeError(f"expected logits of at least one token, got the shape {tuple(p.shape)}")
    if p.shape != q.shape or p.ndim == 0:
        raise ShapeError(
            f"expected p_logits and q_logits of one shape (..., V), got {tuple(p.shape)} and {tuple(q.shape)}; the "
            "models must share a vocabulary and the same positions"
        )
    temperature = require_temperature(temperature)
    if not isinstance(p, Tensor):
        return _array_kl(xp, p, q, mask, temperature)
    p, q = as_logits(p, q)
    if mask is None:
        return logit_kl(p, q, temperature)  # pyright: ignore[reportReturnType]
    mask = as_mask(mask, p.shape[:-1]).to(p.device)
    # The inputs are masked too: with the outer `where` alone, the gradient of a nan would be 0 * nan = nan.
    p, q = (torch.where(mask[..., None], z, 0.0) for z in (p, q))
    return torch.where(mask, logit_kl(p, q, temperature), 0.0)  # pyright: ignore[reportReturnType]


def _array_kl(xp: Any, p: Any, q: Any, mask: ArrayLike | None, temperature: float) -> Any:
    """KL(p || q) of validated logits in arrays of NumPy, JAX or another library."""
    if mask is None:
        kl = differentiable_kl_logits(xp, p / temperature, q / temperature)
    else:
        try:
            kept = boolean_mask(xp.asarray(plain_arrays(mask)[0]))
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, KullbackError):
                raise
            raise ArrayTypeError(f"expected a mask of the library of the logits, got {shown(mask)}") from error
        if kept.shape != p.shape[:-1]:
            raise _mask_error(kept, p.shape[:-1])
        p, q = (xp.where(kept[..., None], logits / temperature, 0.0) for logits in (p, q))
        kl = xp.where(kept, differentiable_kl_logits(xp, p, q), 0.0)
    return cast(xp, kl, kl.dtype)


def logit_kl(
    p_logits: Float[Tensor, "*batch vocab"], q_logits: Float[Tensor, "*batch vocab"], temperature: float
) -> Float[Tensor, "*batch"]:
    """KL(p || q) of validated logits of one dtype, in nats; see `token_kl` for the formula."""
    if temperature != 1:
        p_logits, q_logits = p_logits / temperature, q_logits / temperature
    return differentiable_kl_logits(torch_namespace, p_logits, q_logits)


def as_logits(
    p_logits: Float[Tensor, "*batch vocab"], q_logits: Float[Tensor, "*batch vocab"]
) -> tuple[Float[Tensor, "*batch vocab"], Float[Tensor, "*batch vocab"]]:
    """Both logits in float64 if either is float64, otherwise in float32."""
    dtype = torch.promote_types(torch.promote_types(p_logits.dtype, q_logits.dtype), torch.float32)
    return p_logits.to(dtype), q_logits.to(dtype)


def as_mask(mask: ArrayLike, shape: torch.Size) -> Bool[Tensor, "*batch"]:
    """The mask as booleans; raises ShapeError unless it has the given shape, ArrayTypeError for weights."""
    if isinstance(mask, Tensor):
        require_tensors(mask=mask)
    else:
        mask = torch.tensor(as_float64("mask", mask))
    if mask.shape != shape:
        raise _mask_error(mask, shape)
    return boolean_mask(mask)


def _mask_error(mask: Any, shape: Any) -> ShapeError:
    got = tuple(mask.shape)
    return ShapeError(f"expected a mask with one entry per position, shape {tuple(shape)}, got {got}")


def require_tensors(**given: Any) -> None:
    """Raises ArrayTypeError at the first argument, passed by its name, that is not a dense tensor of real numbers."""
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise ArrayTypeError(
                f"expected {name} to be a tensor, got {type(value).__name__}; pass torch.as_tensor(...)"
            )
        if value.dtype not in _REAL:
            raise ArrayTypeError(f"expected {name} to be a tensor of real numbers, got {value.dtype}; convert it first")
        if value.layout is not torch.strided or value.is_nested:
            raise ArrayTypeError(
                f"expected {name} to be a dense tensor, got layout {value.layout}; convert it with to_dense() or "
                "to_padded_tensor()"
            )
        if value.is_meta:
            raise ArrayTypeError(f"expected {name} to be a tensor with values, got a tensor on the device meta")


def is_scalar(value: Any) -> bool:
    """Whether a value is a real number or a dense tensor with one element, and no boolean."""
    if isinstance(value, Tensor):
        has_value = value.layout is torch.strided and not value.is_meta and value.numel() == 1
        return has_value and not value.is_complex() and value.dtype != torch.bool
    return is_number(value)


def as_scalar(value: Any) -> Any:
    """A number for which `is_scalar` is true, as a float, because PyTorch refuses integers beyond 64 bits."""
    return value if isinstance(value, Tensor) else float(value)


def can_be_checked(value: Any) -> bool:
    """Whether the value of a number or a tensor is known here; a check of a tensor on a GPU would synchronise it."""
    return not isinstance(value, Tensor) or (value.device.type == "cpu" and has_values(value))


def require_temperature(temperature: float) -> float:
    """The temperature; raises SupportError unless it is positive and finite."""
    if isinstance(temperature, torch.SymFloat | torch.SymInt):  # has no value inside torch.compile(dynamic=True)
        return temperature  # pyright: ignore[reportReturnType]
    if not (is_scalar(temperature) and 0 < temperature < float("inf")):
        raise SupportError(f"expected a positive finite temperature, got {shown(temperature)}")
    return as_scalar(temperature)
