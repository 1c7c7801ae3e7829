"""Kullback: measure, minimise and constrain KL divergence.

The names below are the package's public verbs. Those that need PyTorch, or much of SciPy, load it at their first use.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kullback.budget.kl_budget import KLBudget
from kullback.discrete.divergence import divergence
from kullback.discrete.entropy import cross_entropy, entropy
from kullback.discrete.kl import kl_log_probs, kl_logits, kl_probs, kl_terms
from kullback.distributions import kl, register_kl
from kullback.errors import KullbackError
from kullback.numerics.log_gamma import log_gamma_residual
from kullback.numerics.phi import log1p_residual, phi
from kullback.optimum.best_of_n import best_of_n_kl_bound, best_of_n_policy
from kullback.optimum.tilt import frontier, tilt, tilt_to_budget
from kullback.result import Estimate, nats_to_bits

if TYPE_CHECKING:
    from kullback.doctor.models import doctor
    from kullback.fit import Fit, fit_alpha, fit_forward, fit_reverse, fit_tempered
    from kullback.measure import measure
    from kullback.optimum.mdp import MDP
    from kullback.optimum.soft_value_iteration import soft_value_iteration
    from kullback.optimum.trajectory_kl import trajectory_kl
    from kullback.policy.dpo import dpo_loss
    from kullback.policy.losses import grpo_loss, ppo_loss
    from kullback.policy.penalty import KLPenalty
    from kullback.policy.presets import preset
    from kullback.tokens import linear_token_kl, token_kl

__all__ = [
    "MDP",
    "Estimate",
    "Fit",
    "KLBudget",
    "KLPenalty",
    "KullbackError",
    "best_of_n_kl_bound",
    "best_of_n_policy",
    "cross_entropy",
    "divergence",
    "doctor",
    "dpo_loss",
    "entropy",
    "fit_alpha",
    "fit_forward",
    "fit_reverse",
    "fit_tempered",
    "frontier",
    "grpo_loss",
    "kl",
    "kl_log_probs",
    "kl_logits",
    "kl_probs",
    "kl_terms",
    "linear_token_kl",
    "log1p_residual",
    "log_gamma_residual",
    "measure",
    "nats_to_bits",
    "phi",
    "ppo_loss",
    "preset",
    "register_kl",
    "soft_value_iteration",
    "tilt",
    "tilt_to_budget",
    "token_kl",
    "trajectory_kl",
]

_AT_FIRST_USE = {
    "Fit": "kullback.fit",
    "KLPenalty": "kullback.policy.penalty",
    "MDP": "kullback.optimum.mdp",
    "doctor": "kullback.doctor.models",
    "dpo_loss": "kullback.policy.dpo",
    "fit_alpha": "kullback.fit",
    "fit_forward": "kullback.fit",
    "fit_reverse": "kullback.fit",
    "fit_tempered": "kullback.fit",
    "grpo_loss": "kullback.policy.losses",
    "linear_token_kl": "kullback.tokens",
    "measure": "kullback.measure",
    "ppo_loss": "kullback.policy.losses",
    "preset": "kullback.policy.presets",
    "soft_value_iteration": "kullback.optimum.soft_value_iteration",
    "token_kl": "kullback.tokens",
    "trajectory_kl": "kullback.optimum.trajectory_kl",
}


def __getattr__(name: str) -> Any:
    if name in _AT_FIRST_USE:
        return getattr(import_module(_AT_FIRST_USE[name]), name)
    raise AttributeError(f"module 'kullback' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `kullback.measure` and `kullback.doctor` functions after the submodules of the same names are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _AT_FIRST_USE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
