"""The kernels in C++: KL of rows of probabilities or logits, and closed forms for arrays of parameters.

`kernels` is the compiled module, or None where the package was installed without a compiler. All callers then compute
by array operations.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

try:
    from kullback.compiled import _kernels as kernels
except ImportError:
    kernels = None

__all__ = ["FORM_INDEX", "elementwise", "kernels"]

FORM_INDEX = {name: index for index, name in enumerate(kernels.form_names())} if kernels else {}


def elementwise(name: str, *arrays: Any, derivative: int | None = None) -> "np.ndarray | None":
    """A compiled form, or its derivative by one argument, for NumPy arrays of one shape and dtype.

    The result is None where the general implementation is required: for other arrays and dtypes, for arguments outside
    the range of the form, and for a derivative at arguments that are not between 1e-90 and 1e90.
    """
    import numpy as np  # `kullback --version` imports this module, and not NumPy

    index, dtype = FORM_INDEX.get(name), arrays[0].dtype
    if index is None or not all(isinstance(array, np.ndarray | np.generic) for array in arrays):
        return None
    if dtype not in (np.float64, np.float32) or not arrays[0].size:
        return None
    out, given = np.empty(arrays[0].shape, dtype), [np.asarray(array, dtype, order="C") for array in arrays]
    if kernels is None or not all(array.flags.aligned for array in given):
        return None
    if derivative is None:
        return out if kernels.form_value(index, *given, out) else None
    if not all(float(array.min()) > 1e-90 and float(array.max()) < 1e90 for array in given[:2]):
        return None
    outs = [out if k == derivative else None for k in range(len(given))]
    kernels.form_gradient(index, *given, np.ones(out.shape, dtype), *outs)
    return out
