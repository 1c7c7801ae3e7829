# The public names, each with the module that defines it: type checkers read this file, and __init__.py parses it.

from kullback.budget.kl_budget import KLBudget as KLBudget
from kullback.configuration import show_config as show_config
from kullback.discrete.divergence import divergence as divergence
from kullback.discrete.kl import kl_log_probs as kl_log_probs
from kullback.discrete.kl import kl_logits as kl_logits
from kullback.discrete.kl import kl_probs as kl_probs
from kullback.discrete.kl import kl_terms as kl_terms
from kullback.distributions import cross_entropy as cross_entropy
from kullback.distributions import entropy as entropy
from kullback.distributions import kl as kl
from kullback.distributions import register_kl as register_kl
from kullback.doctor.models import doctor as doctor
from kullback.errors import KullbackError as KullbackError
from kullback.fit import Fit as Fit
from kullback.fit import fit_alpha as fit_alpha
from kullback.fit import fit_forward as fit_forward
from kullback.fit import fit_reverse as fit_reverse
from kullback.fit import fit_tempered as fit_tempered
from kullback.measure import measure as measure
from kullback.measure_entropy import measure_cross_entropy as measure_cross_entropy
from kullback.measure_entropy import measure_entropy as measure_entropy
from kullback.numerics.log_gamma import log_gamma_residual as log_gamma_residual
from kullback.numerics.phi import log1p_residual as log1p_residual
from kullback.numerics.phi import phi as phi
from kullback.optimum.best_of_n import best_of_n_kl_bound as best_of_n_kl_bound
from kullback.optimum.best_of_n import best_of_n_policy as best_of_n_policy
from kullback.optimum.mdp import MDP as MDP
from kullback.optimum.soft_value_iteration import soft_value_iteration as soft_value_iteration
from kullback.optimum.tilt import frontier as frontier
from kullback.optimum.tilt import tilt as tilt
from kullback.optimum.tilt import tilt_to_budget as tilt_to_budget
from kullback.optimum.trajectory_kl import trajectory_kl as trajectory_kl
from kullback.policy.dpo import dpo_loss as dpo_loss
from kullback.policy.losses import grpo_loss as grpo_loss
from kullback.policy.losses import ppo_loss as ppo_loss
from kullback.policy.penalty import KLPenalty as KLPenalty
from kullback.policy.presets import preset as preset
from kullback.result import Estimate as Estimate
from kullback.result import nats_to_bits as nats_to_bits
from kullback.tokens import TokenStats as TokenStats
from kullback.tokens import linear_token_kl as linear_token_kl
from kullback.tokens import token_kl as token_kl
from kullback.tokens import token_stats as token_stats

__version__: str
