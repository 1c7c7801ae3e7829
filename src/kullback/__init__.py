"""Kullback: measure, minimise and constrain KL divergence.

The names below are the package's public verbs. Those that need PyTorch load it at their first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kullback.discrete import kl_log_probs, kl_logits, kl_probs
from kullback.errors import KullbackError
from kullback.policy.budget import KLBudget
from kullback.residual import log1p_residual, phi
from kullback.result import Estimate

if TYPE_CHECKING:
    from kullback.tokens import linear_token_kl, token_kl

__all__ = [
    "Estimate",
    "KLBudget",
    "KullbackError",
    "kl_log_probs",
    "kl_logits",
    "kl_probs",
    "linear_token_kl",
    "log1p_residual",
    "phi",
    "token_kl",
]

_NEED_TORCH = {"linear_token_kl": "kullback.tokens", "token_kl": "kullback.tokens"}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name]), name)
    raise AttributeError(f"module 'kullback' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
