"""Kullback: measure, minimise and constrain KL divergence.

The names below are the package's public verbs. Those that need PyTorch, or much of SciPy, load it at their first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kullback.discrete import kl_log_probs, kl_logits, kl_probs, kl_terms
from kullback.distributions import kl, register_kl
from kullback.divergences import divergence
from kullback.entropies import cross_entropy, entropy
from kullback.errors import KullbackError
from kullback.log_gamma import log_gamma_residual
from kullback.policy.best_of_n import best_of_n, best_of_n_policy
from kullback.policy.budget import KLBudget
from kullback.policy.optimum import frontier, tilt, tilt_to_budget
from kullback.residual import log1p_residual, phi
from kullback.result import Estimate, nats_to_bits

if TYPE_CHECKING:
    from kullback.fit import Fit, fit_alpha, fit_forward, fit_reverse, fit_tempered
    from kullback.measures import measure
    from kullback.policy.mdp import MDP
    from kullback.policy.objectives import grpo_loss, ppo_loss
    from kullback.policy.penalty import KLPenalty
    from kullback.policy.preferences import dpo_loss
    from kullback.policy.presets import preset
    from kullback.policy.soft_values import soft_value_iteration
    from kullback.policy.trajectories import trajectory_kl
    from kullback.tokens import linear_token_kl, token_kl
    from kullback.train.checkup.live import doctor

__all__ = [
    "MDP",
    "Estimate",
    "Fit",
    "KLBudget",
    "KLPenalty",
    "KullbackError",
    "best_of_n",
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
    "MDP": "kullback.policy.mdp",
    "doctor": "kullback.train.checkup.live",
    "dpo_loss": "kullback.policy.preferences",
    "fit_alpha": "kullback.fit",
    "fit_forward": "kullback.fit",
    "fit_reverse": "kullback.fit",
    "fit_tempered": "kullback.fit",
    "grpo_loss": "kullback.policy.objectives",
    "linear_token_kl": "kullback.tokens",
    "measure": "kullback.measures",
    "ppo_loss": "kullback.policy.objectives",
    "preset": "kullback.policy.presets",
    "soft_value_iteration": "kullback.policy.soft_values",
    "token_kl": "kullback.tokens",
    "trajectory_kl": "kullback.policy.trajectories",
}


def __getattr__(name: str) -> Any:
    if name in _AT_FIRST_USE:
        return getattr(import_module(_AT_FIRST_USE[name]), name)
    raise AttributeError(f"module 'kullback' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
