"""Type aliases for annotations: functions that return arrays of their arguments' library, and arrays with a shape.

A function `f(x: ArrayInput[ArrayT]) -> ArrayT` returns a `torch.Tensor` for a tensor, a `jax.Array` for a JAX array,
and a NumPy array for NumPy arrays, numbers and lists. Type checkers infer this without importing PyTorch and JAX, which
may not be installed: a class of arrays is recognised by a method that only this class has.

`Float[ArrayT, "*batch n"]` is a floating-point array of shape (..., n); `Shaped` allows every dtype. Type checkers read
it as `ArrayT`, and it has no effect when the package runs. If jaxtyping has been imported before this module, as in the
tests, it is an annotation of jaxtyping, which can be checked at every call.
"""

import sys
from typing import TYPE_CHECKING, Any, TypeAlias

__all__ = ["ArrayInput", "ArrayT", "Bool", "Column", "Float", "Int", "PerEvent", "PerRow", "Shaped"]

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Annotated as Bool
    from typing import Annotated as Float
    from typing import Annotated as Int
    from typing import Annotated as Shaped
    from typing import Protocol

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import TypeVar

    # The result is a NumPy array if no argument determines the type.
    ArrayT = TypeVar("ArrayT", default=NDArray[Any])
    _ArrayT_co = TypeVar("_ArrayT_co", covariant=True)

    class _TorchTensor(Protocol[_ArrayT_co]):
        def detach(self) -> _ArrayT_co: ...

    class _JaxArray(Protocol[_ArrayT_co]):
        def block_until_ready(self) -> _ArrayT_co: ...

    _Numbers: TypeAlias = float | np.number[Any] | np.bool | NDArray[Any] | Sequence["_Numbers"]
    ArrayInput: TypeAlias = _TorchTensor[ArrayT] | _JaxArray[ArrayT] | _Numbers
else:
    from typing import TypeVar

    ArrayT = TypeVar("ArrayT")
    ArrayInput = ArrayT | Any
    if "jaxtyping" in sys.modules:
        from jaxtyping import Bool, Float, Int, Shaped
    else:
        from typing import Annotated

        Bool = Float = Int = Shaped = Annotated

# Rows of discrete distributions, with the events along the last axis.
PerEvent: TypeAlias = Float[Any, "*batch n"]
PerRow: TypeAlias = Float[Any, "*batch"]
Column: TypeAlias = Float[Any, "*batch 1"]
