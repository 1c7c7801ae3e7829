"""Special functions of NumPy, PyTorch and JAX arrays, which the array API lacks."""

from importlib import import_module
from typing import Any

import array_api_compat

from kullback.numerics.arrays import Array

__all__ = ["erf"]


def erf(xp: Any, x: Array) -> Array:
    """The error function."""
    return _library(xp).erf(x)


def _library(xp: Any) -> Any:
    if array_api_compat.is_torch_namespace(xp):
        return import_module("torch.special")
    if array_api_compat.is_jax_namespace(xp):
        return import_module("jax.scipy.special")
    return import_module("scipy.special")
