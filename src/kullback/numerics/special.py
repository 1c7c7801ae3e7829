"""Special functions that the array API does not define, for NumPy, PyTorch and JAX arrays."""

from importlib import import_module
from typing import Any

import array_api_compat

from kullback.numerics.arrays import Array

__all__ = ["digamma", "erf", "log_gamma"]


def erf(xp: Any, x: Array) -> Array:
    """The error function, 2/sqrt(pi) times the integral of exp(-t^2) over 0 < t < x."""
    return _special_module(xp).erf(x)


def log_gamma(xp: Any, x: Array) -> Array:
    """log Gamma(x) for x > 0, by the library of the array."""
    return _special_module(xp).gammaln(x)


def digamma(xp: Any, x: Array) -> Array:
    """The derivative of log Gamma(x) for x > 0, by the library of the array."""
    return _special_module(xp).digamma(x)


def _special_module(xp: Any) -> Any:
    """The module of special functions that belongs to the array namespace."""
    if array_api_compat.is_torch_namespace(xp):
        return import_module("torch.special")
    if array_api_compat.is_jax_namespace(xp):
        return import_module("jax.scipy.special")
    return import_module("scipy.special")
