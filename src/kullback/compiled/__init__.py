"""The kernels in C++: KL of rows of probabilities or logits, and closed forms for arrays of parameters.

`kernels` is the compiled module, or None where the package was installed without a compiler. All callers then compute
by array operations.
"""

try:
    from kullback.compiled import _kernels as kernels
except ImportError:
    kernels = None

__all__ = ["kernels"]
