"""Every public function refuses arguments of a wrong kind by an error of this package."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import kullback
from kullback import families as f
from kullback.budget import controllers
from kullback.densities.resolve import resolve
from kullback.discrete import entropy as discrete
from kullback.errors import KullbackError
from kullback.optimum import sequences
from kullback.optimum import trajectory_kl as trajectories
from kullback.policy import advantages, aggregation, dpo, estimators, losses
from kullback.samples import clustered_mean, counts, monte_carlo, pareto_k
from kullback.tokens import entropy_floor, linear

P, Q = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
NORMAL, OTHER = f.Normal(loc=0.0, scale=1.0), f.Normal(loc=1.0, scale=1.0)
SAMPLER, OTHER_SAMPLER = (resolve(distribution).sampler for distribution in (NORMAL, OTHER))
MDP = kullback.MDP([[[1.0], [1.0]]], [[0.0, 1.0]], horizon=3)
REWARD = [0.0, 1.0, 2.0]
GENERATOR = torch.Generator().manual_seed(0)
LOGP, REF = (-torch.rand(2, 3, generator=GENERATOR) for _ in range(2))
LOGITS, REF_LOGITS = (torch.randn(2, 3, 4, generator=GENERATOR) for _ in range(2))
ONES = torch.ones(2, 3)
RATIOS = estimators.compute_log_ratios(LOGP, REF, None, None)
K2 = kullback.KLPenalty(estimator="k2")
TO_GO = kullback.KLPenalty(estimator="k1", placement="reward", horizon="sequence")
EXACT = kullback.KLPenalty()
BUDGET = kullback.KLBudget(0.1)


def coin(prefixes: np.ndarray) -> np.ndarray:
    return np.zeros((len(prefixes), 2))


def square(x: Any) -> Any:
    return -x * x / 2


SEQUENCES = sequences.enumerate_sequences(coin, max_tokens=2, end=1)

# A function with arguments that it accepts. Each argument in turn is replaced by every value of WRONG.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "kl_probs": (kullback.kl_probs, {"p": P, "q": Q, "axis": -1, "where": [True, True, True]}),
    "kl_log_probs": (kullback.kl_log_probs, {"log_p": np.log(P), "log_q": np.log(Q), "axis": -1, "where": None}),
    "kl_logits": (kullback.kl_logits, {"p_logits": P, "q_logits": Q, "axis": -1, "where": None}),
    "kl_terms": (kullback.kl_terms, {"p": P, "q": Q, "axis": -1, "where": None}),
    "discrete.entropy": (discrete.entropy, {"p": P, "axis": -1, "where": None}),
    "discrete.cross_entropy": (discrete.cross_entropy, {"p": P, "q": Q, "axis": -1, "where": None}),
    "entropy": (kullback.entropy, {"p": P, "axis": -1, "where": None}),
    "entropy of a distribution": (kullback.entropy, {"p": NORMAL}),
    "cross_entropy": (kullback.cross_entropy, {"p": P, "q": Q, "axis": -1, "where": None}),
    "cross_entropy of distributions": (kullback.cross_entropy, {"p": NORMAL, "q": OTHER}),
    "divergence": (kullback.divergence, {"p": P, "q": Q, "name": "js", "axis": -1, "where": None, "weight": 0.5}),
    "divergence renyi": (kullback.divergence, {"p": P, "q": Q, "name": "renyi", "order": 0.5}),
    "phi": (kullback.phi, {"d": 0.1}),
    "log1p_residual": (kullback.log1p_residual, {"x": 0.1}),
    "log_gamma_residual": (kullback.log_gamma_residual, {"a": 0.1, "h": 0.2}),
    "nats_to_bits": (kullback.nats_to_bits, {"x": 1.0}),
    "kl": (kullback.kl, {"p": NORMAL, "q": OTHER}),
    "register_kl": (kullback.register_kl, {"p_class": sequences.Sequences, "q_class": f.Normal}),
    "measure": (
        kullback.measure,
        {"p": NORMAL, "q": OTHER, "error": 1e-10, "method": None, "draws": 1000, "seed": 0, "confidence": 0.95},
    ),
    "measure by draws": (
        kullback.measure,
        {"p": NORMAL, "q": OTHER, "method": "Monte Carlo", "draws": 1000, "seed": 0, "confidence": 0.95},
    ),
    "measure_entropy": (
        kullback.measure_entropy,
        {"p": NORMAL, "error": 1e-10, "draws": 1000, "seed": 0, "confidence": 0.95},
    ),
    "measure_cross_entropy": (
        kullback.measure_cross_entropy,
        {"p": NORMAL, "q": OTHER, "error": 1e-10, "draws": 1000, "seed": 0, "confidence": 0.95},
    ),
    "kl_monte_carlo": (
        monte_carlo.kl_monte_carlo,
        {"p": SAMPLER, "q": OTHER_SAMPLER, "draws": 1000, "seed": 0, "confidence": 0.95},
    ),
    "cross_entropy_monte_carlo": (
        monte_carlo.cross_entropy_monte_carlo,
        {"p": SAMPLER, "q": OTHER_SAMPLER, "draws": 1000, "seed": 0, "confidence": 0.95},
    ),
    "kl_counts": (counts.kl_counts, {"p_counts": [3, 4, 5], "q_counts": [1, 2, 3]}),
    "kl_counts with q": (counts.kl_counts, {"p_counts": [3, 4, 5], "q": P}),
    "kl_per_token": (clustered_mean.kl_per_token, {"kl_sums": [0.1, 0.2], "lengths": [1, 2], "prompts": [0, 1]}),
    "kl_per_sequence": (clustered_mean.kl_per_sequence, {"kl_sums": [0.1, 0.2], "prompts": [0, 1]}),
    "pareto_k": (pareto_k.pareto_k, {"log_weights": np.arange(30.0)}),
    "fit_forward": (
        kullback.fit_forward,
        {
            "family": f.Normal,
            "samples": [1.0, 2.0, 4.0],
            "weights": [1.0, 1.0, 2.0],
            "start": None,
            "starts": (),
            "fixed": None,
            "components": None,
        },
    ),
    "fit_forward of a target": (
        kullback.fit_forward,
        {"family": f.Normal, "target": NORMAL, "start": None, "starts": (), "fixed": None, "components": None},
    ),
    "fit_reverse": (
        kullback.fit_reverse,
        {
            "family": f.Normal,
            "log_prob": square,
            "target": None,
            "start": None,
            "starts": (),
            "fixed": None,
            "components": None,
            "support": (-math.inf, math.inf),
        },
    ),
    "fit_reverse of a target": (kullback.fit_reverse, {"family": f.Normal, "target": OTHER}),
    "fit_alpha": (
        kullback.fit_alpha,
        {
            "family": f.Normal,
            "target": OTHER,
            "alpha": 0.5,
            "start": None,
            "starts": (),
            "fixed": None,
            "components": None,
        },
    ),
    "fit_tempered": (
        kullback.fit_tempered,
        {
            "family": f.Normal,
            "log_prob": square,
            "exponents": (0.5, 1.0),
            "start": None,
            "support": (-math.inf, math.inf),
        },
    ),
    "head_token_kl": (
        linear.head_token_kl,
        {
            "hidden_p": torch.eye(2),
            "head_p": torch.sin,
            "hidden_q": torch.eye(2),
            "head_q": torch.cos,
            "mask": None,
            "temperature": 1.0,
            "chunk": 2,
        },
    ),
    "EmpiricalConditional.add": (entropy_floor.EmpiricalConditional().add, {"context": "a", "outcome": "b"}),
    "KLBudget.after_step": (
        BUDGET.after_step,
        {"before": 0.1, "after": 0.2, "displacement_scale": 1.0, "std_error": 0.1},
    ),
    "KLBudget.after_brake": (BUDGET.after_brake, {"before": 0.1, "after": 0.2, "factor": 1.0}),
    "KLBudget.update_learning_rate_scale": (
        BUDGET.update_learning_rate_scale,
        {"before": 0.1, "after": 0.2, "steps": 2},
    ),
    "linear_token_kl": (
        kullback.linear_token_kl,
        {
            "hidden_p": torch.randn(2, 3),
            "weight_p": torch.randn(5, 3),
            "hidden_q": torch.randn(2, 4),
            "weight_q": torch.randn(5, 4),
            "bias_p": torch.randn(5),
            "bias_q": torch.randn(5),
            "mask": torch.ones(2),
            "temperature": 1.0,
            "softcap_p": 10.0,
            "logit_scale_q": 1.0,
            "token_weights": torch.ones(2),
            "targets": None,
            "chunk": 256,
        },
    ),
    "token_stats": (
        kullback.token_stats,
        {"p_logits": LOGITS, "q_logits": REF_LOGITS, "targets": torch.zeros(2, 3, dtype=torch.int64)},
    ),
    "topk_token_kl": (
        kullback.topk_token_kl,
        {
            "p_topk_log_probs": torch.tensor([[0.5, 0.3]]).log(),
            "p_topk_ids": torch.tensor([[2, 0]]),
            "q_logits": torch.zeros(1, 4),
        },
    ),
    **{
        f"distillation_loss {divergence}": (
            kullback.distillation_loss,
            {
                "teacher_hidden": LOGITS,
                "teacher_weight": torch.eye(4),
                "student_hidden": REF_LOGITS,
                "student_weight": torch.eye(4),
                "divergence": divergence,
                "weight": 0.5 if divergence == "skew_forward" else None,
                "mask": ONES,
                "aggregate": "token_mean",
                "normalizer": None,
                "teacher_bias": torch.zeros(4),
                "student_bias": torch.zeros(4),
                "temperature": 1.0,
                "teacher_softcap": 10.0,
                "student_softcap": None,
                "teacher_logit_scale": 1.0,
                "student_logit_scale": 1.0,
                "chunk": 2,
            },
        )
        for divergence in ("forward", "skew_forward")
    },
    "token_kl": (kullback.token_kl, {"p_logits": LOGITS, "q_logits": REF_LOGITS, "mask": ONES, "temperature": 1.0}),
    "KLPenalty": (
        kullback.KLPenalty,
        {
            "direction": "reverse",
            "estimator": "exact",
            "placement": "loss",
            "horizon": "token",
            "sampler": "policy",
            "unsafe": False,
            "bound": 20.0,
        },
    ),
    "KLPenalty.loss": (K2.loss, {"log_prob": LOGP, "ref_log_prob": REF, "old_log_prob": None, "mask": None}),
    "KLPenalty.loss of logits": (
        EXACT.loss,
        {"log_prob": LOGP, "ref_log_prob": REF, "logits": LOGITS, "ref_logits": REF_LOGITS, "mask": ONES},
    ),
    "KLPenalty.to_go": (TO_GO.to_go, {"log_prob": LOGP, "ref_log_prob": REF, "mask": ONES}),
    "KLPenalty.value": (
        K2.value,
        {"log_prob": LOGP, "ref_log_prob": REF, "aggregate": "token_mean", "prompts": [0, 1], "mask": None},
    ),
    "KLPenalty.statistics": (
        K2.statistics,
        {"log_prob": LOGP, "ref_log_prob": REF, "aggregate": "token_mean", "prompts": [0, 1], "mask": None},
    ),
    "clipped_surrogate": (
        losses.clipped_surrogate,
        {
            "log_prob": LOGP,
            "advantages": torch.ones(2),
            "old_log_prob": None,
            "mask": None,
            "clip": 0.2,
            "ratio": "token",
        },
    ),
    "grpo_loss": (
        kullback.grpo_loss,
        {
            "log_prob": LOGP,
            "advantages": torch.ones(2),
            "old_log_prob": None,
            "ref_log_prob": REF,
            "mask": None,
            "clip": 0.2,
            "ratio": "token",
            "beta": 0.1,
            "penalty": K2,
            "aggregate": "sequence_mean",
            "normalizer": None,
        },
    ),
    "ppo_loss": (
        kullback.ppo_loss,
        {
            "log_prob": LOGP,
            "advantages": torch.ones(2),
            "old_log_prob": LOGP,
            "ref_log_prob": REF,
            "logits": LOGITS,
            "ref_logits": REF_LOGITS,
            "mask": None,
            "clip": 0.2,
            "ratio": "token",
            "beta": 0.1,
            "penalty": EXACT,
            "aggregate": "sequence_mean",
            "normalizer": None,
        },
    ),
    "gae": (advantages.gae, {"rewards": LOGP, "values": REF, "mask": None, "discount": 1.0, "decay": 0.95}),
    "group_advantages": (
        advantages.group_advantages,
        {"rewards": torch.rand(4), "prompts": torch.tensor([0, 0, 1, 1]), "scale": True},
    ),
    "leave_one_out": (advantages.leave_one_out, {"rewards": torch.rand(4), "prompts": torch.tensor([0, 0, 1, 1])}),
    "aggregate_tokens": (
        aggregation.aggregate_tokens,
        {"values": LOGP, "mask": None, "how": "token_mean", "normalizer": None},
    ),
    "dpo_loss": (
        kullback.dpo_loss,
        {
            "chosen_log_prob": LOGP,
            "rejected_log_prob": LOGP,
            "ref_chosen_log_prob": LOGP,
            "ref_rejected_log_prob": LOGP,
            "chosen_mask": None,
            "rejected_mask": ONES,
            "beta": 0.1,
        },
    ),
    "implicit_reward": (dpo.implicit_reward, {"log_prob": LOGP, "ref_log_prob": REF, "mask": None, "beta": 0.1}),
    "compute_log_ratios": (
        estimators.compute_log_ratios,
        {"log_prob": LOGP, "ref_log_prob": REF, "old_log_prob": LOGP, "prefix_distribution": "policy"},
    ),
    "sampled_kl": (
        estimators.sampled_kl,
        {"log_ratios": RATIOS, "direction": "reverse", "estimator": "k3", "bound": math.inf},
    ),
    "loss_derivative": (
        estimators.loss_derivative,
        {"log_ratios": RATIOS, "direction": "reverse", "estimator": "k3", "weighted": True, "bound": math.inf},
    ),
    "bounded_exp": (estimators.bounded_exp, {"log_weight": LOGP, "bound": 3.0}),
    "sum_after": (estimators.sum_after, {"values": LOGP}),
    "safe_product": (estimators.safe_product, {"weights": LOGP, "values": LOGP}),
    "straight_through": (estimators.straight_through, {"log_prob": LOGP, "value": LOGP, "slope": LOGP}),
    "preset": (kullback.preset, {"name": "ppo2017"}),
    "tilt": (kullback.tilt, {"ref": P, "reward": REWARD, "beta": 1.0, "contexts": None}),
    "tilt with contexts": (kullback.tilt, {"ref": [P, Q], "reward": REWARD, "beta": 1.0, "contexts": [0.5, 0.5]}),
    "tilt_to_budget": (kullback.tilt_to_budget, {"ref": P, "reward": REWARD, "budget": 0.1, "contexts": None}),
    "frontier": (kullback.frontier, {"ref": P, "reward": REWARD, "contexts": None, "points": 5}),
    "reward_at": (kullback.frontier(P, REWARD, points=5).reward_at, {"kl": 0.1}),
    "best_of_n_policy": (kullback.best_of_n_policy, {"ref": P, "reward": REWARD, "n": 2}),
    "best_of_n_kl_bound": (kullback.best_of_n_kl_bound, {"n": 2}),
    "MDP": (
        kullback.MDP,
        {
            "transitions": [[[0.5], [1.0]]],
            "rewards": [[0.0, 1.0]],
            "ends": [[0.5, 0.0]],
            "horizon": 3,
            "discount": 1.0,
            "initial": [1.0],
        },
    ),
    "soft_value_iteration": (
        kullback.soft_value_iteration,
        {"mdp": MDP, "beta": 1.0, "ref": [0.5, 0.5], "tolerance": 1e-9, "max_iterations": 100},
    ),
    "policy_objective": (
        trajectories.policy_objective,
        {"mdp": MDP, "policy": [0.5, 0.5], "beta": 1.0, "ref": [0.5, 0.5]},
    ),
    "trajectory_kl": (kullback.trajectory_kl, {"mdp": MDP, "policy": [0.5, 0.5], "ref": [0.5, 0.5]}),
    "trajectory_kl with log_ref": (
        kullback.trajectory_kl,
        {"mdp": MDP, "policy": [0.5, 0.5], "log_ref": np.log([0.5, 0.5])},
    ),
    "enumerate_sequences": (
        sequences.enumerate_sequences,
        {"next_logits": coin, "max_tokens": 2, "end": 1, "min_prob": 0.0, "limit": 1000},
    ),
    "next_token_probs": (
        sequences.next_token_probs,
        {"found": SEQUENCES, "probs": [0.5, 0.25, 0.25], "prefix": [0], "vocabulary": 2},
    ),
    "tabulate": (sequences.tabulate, {"found": [SEQUENCES], "rewards": [REWARD], "rest_reward": None}),
    "KLBudget": (
        kullback.KLBudget,
        {"target": 0.1, "unit": "token", "price": 0.005, "gain": 0.05, "step_limit": 0.02, "learning_rate_scale": 0.1},
    ),
    "KLBudget.update": (BUDGET.update, {"observed_kl": 0.1, "std_error": 0.01, "count": 1}),
    "KLBudget.update_price": (BUDGET.update_price, {"observed_kl": 0.1, "set_point": 0.1, "steps": 1}),
    "KLBudget.update_evaluation": (BUDGET.update_evaluation, {"observed_kl": 0.1, "std_error": 0.01}),
    "PPO2017": (controllers.PPO2017, {"target": 0.1, "beta": 1.0}),
    "PPO2017.update": (controllers.PPO2017().update, {"observed_kl": 0.1, "std_error": 0.01, "count": 1}),
    "FixedBeta": (controllers.FixedBeta, {"beta": 1.0}),
    "FixedBeta.update": (controllers.FixedBeta(1.0).update, {"observed_kl": 0.1, "std_error": 0.01, "count": 1}),
    "RLlibController": (controllers.RLlibController, {"target": 0.1, "beta": 1.0}),
    "RLlibController.update": (controllers.RLlibController().update, {"observed_kl": 0.1}),
    "Ziegler2019": (controllers.Ziegler2019, {"target": 0.1, "beta": 1.0, "gain": 0.1}),
    "Ziegler2019.update": (controllers.Ziegler2019().update, {"observed_kl": 0.1, "count": 2}),
    "controller_from_dict": (controllers.controller_from_dict, {"state": controllers.controller_to_dict(BUDGET)}),
    "controller_to_dict": (controllers.controller_to_dict, {"controller": BUDGET}),
    "controller_config": (controllers.controller_config, {"controller": BUDGET, "unit": "token"}),
    "Estimate": (
        kullback.Estimate,
        {
            "value": 1.0,
            "std_error": 0.1,
            "count": 1,
            "unit": "nats",
            "method": "x",
            "error": 0.1,
            "interval": (0.0, 1.0),
            "status": "estimated",
            "warnings": (),
        },
    ),
    "prefixes.along": (entropy_floor.Prefixes().along, {"ids": [1, 2]}),
    "Normal": (f.Normal, {"loc": 0.0, "scale": 1.0}),
    "Dirichlet": (f.Dirichlet, {"concentration": [1.0, 2.0]}),
    "Categorical": (f.Categorical, {"probs": P}),
    "MultivariateNormal": (f.MultivariateNormal, {"loc": [0.0, 1.0], "covariance_matrix": [[1.0, 0.0], [0.0, 1.0]]}),
    "Binomial": (f.Binomial, {"total_count": 3, "probs": 0.5}),
    "NormalMixture": (f.NormalMixture, {"weights": [0.5, 0.5], "locs": [0.0, 1.0], "scales": [1.0, 1.0]}),
}


class Odd:
    """An object without any method that a number or an array has."""

    def __repr__(self) -> str:
        return "Odd()"


WRONG = [
    *("x", b"x", None, [], [[]], {"a": 1}, 1j, math.nan, -1, 1.5, math.inf, True, 2**70, 10**400, 1e308),
    *(Odd(), Odd, Ellipsis, iter([1.0]), NORMAL, [None, None, None], [[1.0, 2.0], [3.0]], ["a", "b"]),
    *(np.zeros((2, 3)), np.array(["a"]), np.array([1j]), np.datetime64("2020-01-01"), np.ma.masked_equal([1, 2, 3], 2)),
    *(torch.zeros(0), torch.zeros(()), torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.complex64), [torch.zeros(1)]),
    *(torch.zeros(2, 3).to_sparse(), torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, dtype=torch.int64)),
]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_arguments_of_a_wrong_kind(name: str) -> None:
    function, arguments = CALLS[name]
    function(**arguments)
    problems = []
    for argument in arguments:
        for wrong in WRONG:
            if argument in ("next_logits", "head_p", "head_q") and callable(wrong):
                continue  # errors of the caller's own function are passed on
            if problem := problem_of_call(function, {**arguments, argument: wrong}):
                problems.append(f"{argument}={wrong!r}: {problem}")
    assert not problems, "\n".join(problems)


def problem_of_call(function: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """What is wrong with the exception of a call; empty if it has none, or a clear error of this package."""
    try:
        function(**arguments)
    except KullbackError as error:
        return "" if re.search("expected|takes", str(error)) else f"unclear: {error}"
    except Exception as error:  # any other exception is a fault
        return f"{type(error).__name__}: {error}"
    return ""


def test_every_public_function_is_in_the_table() -> None:
    tested = {function for function, _ in CALLS.values()}
    public = {getattr(kullback, name) for name in kullback.__all__}
    functions = {function for function in public if callable(function) and not isinstance(function, type)}
    # The arguments of compare are files; its refusals are tested in tests/compare.
    assert functions - tested == {kullback.compare, kullback.doctor, kullback.show_config}
