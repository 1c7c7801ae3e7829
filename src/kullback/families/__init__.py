"""The distributions that `kl` and `measure` accept: one class for each family, each an immutable dataclass.

Parameters are passed by keyword and stored as given: numbers, lists, or arrays of NumPy, PyTorch, JAX or another array
API library. The shapes of the parameters broadcast to the batch shape. A parameter that violates its constraint raises
ParameterError.
"""
# ruff: noqa: F403

from kullback.families import bounded, composite, counts, multivariate, positive, real_line
from kullback.families.base import Distribution
from kullback.families.bounded import *
from kullback.families.composite import *
from kullback.families.counts import *
from kullback.families.multivariate import *
from kullback.families.positive import *
from kullback.families.real_line import *

__all__ = ["Distribution"]
__all__ += bounded.__all__
__all__ += composite.__all__
__all__ += counts.__all__
__all__ += multivariate.__all__
__all__ += positive.__all__
__all__ += real_line.__all__
