"""Registration of Kullback's closed forms in torch.distributions.kl_divergence."""

from itertools import product
from typing import Any

from kullback.closed_forms import FORMS, is_univariate
from kullback.distributions import kl
from kullback.errors import MissingDependencyError

try:
    from torch import distributions as d
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install torch") from error

from torch.distributions.kl import _KL_MEMOIZE, _KL_REGISTRY

from kullback.densities.from_torch import FAMILIES

__all__ = ["install", "uninstall"]

_Pair = tuple[type, type]

# Functions that `install` replaced, by pair; None where the pair was not registered.
_REPLACED: dict[_Pair, Any] = {}

# PyTorch's registrations for whole classes of families. They do not cover every pair, and are less accurate than the
# closed form of a pair.
_GENERIC_CLASSES = (d.TransformedDistribution, d.ExponentialFamily, d.Distribution)


def install(*, stable: bool = False) -> None:
    """Make torch.distributions.kl_divergence compute KL(p || q) by Kullback for the pairs of families it lacks.

    The pairs that gain an implementation are those with a closed form in Kullback, and univariate pairs whose supports
    make KL infinite. A function that was registered for a pair by another package is kept, and PyTorch's own functions
    are kept, except the generic ones for transformed distributions and exponential families. `uninstall` reverts the
    registration.

    Args:
        stable: Also replace PyTorch's own functions for these pairs, which lose digits by cancellation, clamp, or
            return inf for supports that are not known to differ. Transforms that are not invertible then raise
            NoClosedFormError.

    Returns:
        None. The registry of torch.distributions is changed in place.

    Raises:
        MissingDependencyError: PyTorch is not installed (raised when this module is imported).

    Example:
        >>> import torch
        >>> from torch.distributions import Normal, StudentT, kl_divergence
        >>> install()
        >>> kl_divergence(StudentT(torch.tensor(5.0)), Normal(0.0, 1.0))
        tensor(0.1248)
        >>> uninstall()
    """
    uninstall()
    pairs = [pair for pair in product(FAMILIES, FAMILIES) if _has_kl(pair)]
    if stable:
        pairs.append((d.TransformedDistribution, d.TransformedDistribution))
    else:
        pairs = [pair for pair in pairs if not _is_registered(pair)]
    for pair in pairs:
        _REPLACED[pair] = _KL_REGISTRY.get(pair)
        d.register_kl(*pair)(kl)
    # PyTorch selects the function of an exact pair in any case, by a search that torch.compile cannot trace.
    _KL_MEMOIZE.update(_KL_REGISTRY)


def uninstall() -> None:
    """Restore the functions of torch.distributions.kl_divergence that `install` replaced.

    A function that was registered after `install` is kept.

    Returns:
        None. Without a previous `install`, nothing changes.

    Example:
        >>> install(stable=True)
        >>> uninstall()
    """
    while _REPLACED:
        pair, before = _REPLACED.popitem()
        if _KL_REGISTRY.get(pair) is not kl:
            continue
        if before is None:
            del _KL_REGISTRY[pair]
        else:
            _KL_REGISTRY[pair] = before
    _KL_MEMOIZE.clear()


def _has_kl(pair: _Pair) -> bool:
    """Whether Kullback has a closed form for the pair, or both families are univariate, so that KL may be infinite."""
    families = tuple(FAMILIES[kind] for kind in pair)
    return families in FORMS or all(is_univariate(object.__new__(family)) for family in families)


def _is_registered(pair: _Pair) -> bool:
    """Whether PyTorch has a function for the pair or its base classes; functions for generic classes do not count."""
    ancestors = product(pair[0].__mro__, pair[1].__mro__)
    return any(pair in _KL_REGISTRY and pair[0] not in _GENERIC_CLASSES for pair in ancestors)
