"""The schema of metrics: every key that a trainer writes to a run directory, with its unit and formula.

docs/metrics.md is generated from this file, and the charts, the doctor and the readers of run directories use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "METRICS",
    "REPORTED_METRICS",
    "Metric",
    "Trainer",
    "constrained_kl",
    "kl_key",
    "may_be_missing",
    "metrics_of",
    "metrics_tables",
    "with_present_keys",
    "with_present_settings",
]

Trainer = Literal["grpo", "ppo", "sft", "distill", "vae", "demo"]
_BOTH = "metrics.jsonl, evaluations.jsonl"
_OF_MICRO_BATCHES = (
    " In metrics.jsonl, TRL gives the means of all micro-batches and processes equal weights, whatever their lengths."
)
_METRICS, _EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"


@dataclass(frozen=True)
class Metric:
    """A metric of a trainer.

    Args:
        key: The key in the files of a run directory.
        trainer: The trainer that logs it, by the name of its command; "demo" is its supervised stage.
        files: The files whose rows have it.
        unit: Its unit.
        formula: Its definition, in Markdown.
        std_error: How the standard error is computed that is logged as `KEY_std_error`; empty if there is none.
        symbol: The divergence, such as "KL(policy || reference)", where the metric is a KL divergence.
        per: The unit of a budget that constrains this KL divergence.
    """

    key: str
    trainer: Trainer
    files: str
    unit: str
    formula: str
    std_error: str = ""
    symbol: str = ""
    per: str = ""


_POLICY_REF, _OLD_POLICY = "KL(policy || reference)", "KL(old policy || policy)"
_STUDENT_TEACHER, _TEACHER_STUDENT = "KL(student || teacher)", "KL(teacher || student)"
_POSTERIOR_PRIOR, _DATA_MODEL = "KL(q(z | x) || p(z))", "KL(data || model)"

METRICS: tuple[Metric, ...] = (
    # Language-model policies
    Metric("step", "grpo", _BOTH, "steps", "The number of optimizer steps, including the present one."),
    Metric(
        "kl_policy_ref_per_token",
        "grpo",
        _BOTH,
        "nats/token",
        "sum of KL_t over all completions / number of their tokens. In `metrics.jsonl`, of the policy before the step.",
        "With the n prompts g as independent samples, where S_g is the sum of KL_t and N_g the number of tokens of g: "
        "sqrt( n/(n-1) sum_g (S_g - mean N_g)^2 ) / sum_g N_g.",
        _POLICY_REF,
        "token",
    ),
    Metric(
        "kl_policy_ref_per_sequence",
        "grpo",
        _BOTH,
        "nats/sequence",
        "sum of KL_t over all completions / number of completions.",
        "With prompts as independent samples, as above.",
        _POLICY_REF,
        "sequence",
    ),
    Metric(
        "kl_filtered",
        "grpo",
        _METRICS,
        "nats per unit of the budget",
        "The controller's filtered estimate of the KL after the step, which is held at the budget.",
    ),
    Metric(
        "beta",
        "grpo",
        _METRICS,
        "reward/nat",
        "The coefficient of the KL penalty in the loss of this step: loss = TRL's loss + beta * KL per unit.",
    ),
    Metric(
        "learning_rate_scale",
        "grpo",
        _METRICS,
        "factor",
        "The factor on the learning rate in this step. It limits the change of the KL in one step to about 2% of the "
        "budget, and to a change that held-out samples can measure.",
    ),
    Metric(
        "displacement_scale",
        "grpo",
        _METRICS,
        "factor",
        "The factor by which the displacement of the weights from the reference was multiplied after the step.",
    ),
    Metric(
        "reward",
        "grpo",
        _METRICS,
        "reward",
        "Mean over completions of the sum of the optimised rewards. A step that reuses the completions of an "
        "earlier step (`num_iterations`, `steps_per_generation`) has no values of the rewards and lengths.",
    ),
    Metric(
        "reward_std",
        "grpo",
        _METRICS,
        "reward",
        "Standard deviation of that sum within the completions of a prompt, averaged over prompts.",
    ),
    Metric(
        "rewards/NAME",
        "grpo",
        _BOTH,
        "reward",
        "Mean over completions of the reward function NAME, optimised or watched.",
    ),
    Metric(
        "entropy",
        "grpo",
        _BOTH,
        "nats/token",
        "Mean over completion tokens of the entropy of the policy's next-token distribution." + _OF_MICRO_BATCHES,
    ),
    Metric(
        "repetition",
        "grpo",
        _EVALUATIONS,
        "fraction",
        "Mean over completions of 1 - (distinct adjacent token pairs / adjacent token pairs).",
    ),
    Metric(
        "completion_length",
        "grpo",
        _BOTH,
        "tokens",
        "Mean number of tokens of a completion, including the end-of-sequence token.",
    ),
    Metric("truncated", "grpo", _BOTH, "fraction", "Fraction of completions cut at the maximal length."),
    Metric("count", "grpo", _EVALUATIONS, "completions", "Number of evaluation prompts, one completion each."),
    Metric("learning_rate", "grpo", _METRICS, "1/step", "The learning rate of the schedule, before the scale."),
    Metric("gradient_norm", "grpo", _METRICS, "loss/weight", "Euclidean norm of the gradient before clipping."),
    Metric("loss", "grpo", _METRICS, "reward", "The loss that is differentiated: TRL's loss plus the penalty."),
    Metric("tokens", "grpo", _METRICS, "tokens", "Tokens of all prompts and completions up to this step."),
    Metric("step_seconds", "grpo", _METRICS, "s", "Time of this step: generation, rewards, forward and backward."),
    Metric("seconds", "grpo", _METRICS, "s", "Time since the start of the run, without interruptions."),
    # Policies in environments
    Metric("step", "ppo", _BOTH, "steps", "The number of environment steps, including the rollout of this update."),
    Metric("episodes", "ppo", _METRICS, "episodes", "Number of episodes that ended within the rollout."),
    Metric(
        "rewards/NAME",
        "ppo",
        _BOTH,
        "reward",
        "With NAME = return: mean return of these episodes, or of the evaluation episodes; `null` if none ended.",
        "Over the evaluation episodes (`evaluations.jsonl` only).",
    ),
    Metric("episode_length", "ppo", _BOTH, "steps", "Mean length of the same episodes."),
    Metric("count", "ppo", _EVALUATIONS, "episodes", "Number of evaluation episodes."),
    Metric(
        "kl_policy_ref_per_step",
        "ppo",
        _BOTH,
        "nats/step",
        "Mean over states of KL_s(policy || reference). In `metrics.jsonl`, before the update, over the states of the "
        "rollout.",
        "With episodes as independent samples.",
        _POLICY_REF,
        "step",
    ),
    Metric(
        "kl_policy_ref_per_reference_step",
        "ppo",
        _BOTH,
        "nats/step",
        "With `--states reference`: the same mean over 1024 fixed states that the reference visits, after the update.",
        "With states as independent samples.",
        _POLICY_REF,
        "reference_step",
    ),
    Metric(
        "kl_old_policy_per_step",
        "ppo",
        _BOTH,
        "nats/step",
        "Mean over states of KL_s(old policy || policy), where the old policy is the policy before the update. In "
        "`metrics.jsonl`, after the update, over the states of its rollout (d in the PPO paper); in "
        "`evaluations.jsonl`, over new states.",
        "With episodes as independent samples.",
        _OLD_POLICY,
        "step",
    ),
    Metric(
        "beta",
        "ppo",
        _METRICS,
        "reward/nat",
        "The coefficient of the KL penalty at the end of the update. With a `KLBudget` of the KL to the reference, it "
        "is the estimate of the Lagrange multiplier after the update; within the next update, the loss has it times "
        "(KL / set point)^3. PPO normalises advantages, so that the unit of reward is their standard deviation.",
    ),
    Metric(
        "kl_filtered", "ppo", _METRICS, "nats/step", "The controller's estimate of the KL at the end of the update."
    ),
    Metric("kl_budget", "ppo", _METRICS, "nats/step", "The budget of the update, if --budget-decay is given."),
    Metric(
        "learning_rate_scale", "ppo", _METRICS, "factor", "The factor on the actor's steps, averaged over the update."
    ),
    Metric(
        "displacement_scale",
        "ppo",
        _METRICS,
        "factor",
        "The product of the factors on the actor's displacement from the reference or the old policy in the update.",
    ),
    Metric(
        "entropy",
        "ppo",
        _BOTH,
        "nats/step",
        "Mean entropy of the action distribution; the differential entropy of continuous actions may be negative. In "
        "`metrics.jsonl`, over the minibatches of the update.",
    ),
    Metric("action_std", "ppo", _METRICS, "action", "Mean standard deviation of a continuous action."),
    Metric(
        "clip_fraction",
        "ppo",
        _METRICS,
        "fraction",
        "Fraction of actions whose probability ratio was outside the clip.",
    ),
    Metric("policy_loss", "ppo", _METRICS, "reward", "The negative PPO surrogate, averaged over the minibatches."),
    Metric("value_loss", "ppo", _METRICS, "reward^2", "Mean squared error of the critic."),
    Metric("loss", "ppo", _METRICS, "reward", "The loss of the last minibatch."),
    Metric(
        "explained_variance", "ppo", _METRICS, "fraction", "1 - Var(return - value) / Var(return) over the rollout."
    ),
    Metric("learning_rate", "ppo", _METRICS, "1/step", "The learning rate of the optimizer."),
    Metric("seconds", "ppo", _METRICS, "s", "Time since the start of the run, without interruptions."),
    # Supervised fine-tuning
    Metric("step", "sft", _BOTH, "steps", "The number of optimizer steps."),
    Metric(
        "loss",
        "sft",
        _METRICS,
        "nats/token",
        "The loss of TRL's SFTTrainer: the cross-entropy of the batch without loss_type and label_smoothing_factor.",
    ),
    Metric(
        "entropy",
        "sft",
        _METRICS,
        "nats/token",
        "Mean entropy of the model's next-token distribution." + _OF_MICRO_BATCHES,
    ),
    Metric(
        "accuracy",
        "sft",
        _METRICS,
        "fraction",
        "Fraction of tokens that are the most probable next token." + _OF_MICRO_BATCHES,
    ),
    Metric("learning_rate", "sft", _METRICS, "1/step", "The learning rate of the optimizer."),
    Metric("gradient_norm", "sft", _METRICS, "loss/weight", "Euclidean norm of the gradient before clipping."),
    Metric("seconds", "sft", _METRICS, "s", "Time since the start of the run, without interruptions."),
    *(
        metric
        for split, examples in (("train", "training"), ("eval", "held-out"))
        for metric in (
            Metric(
                f"{split}_cross_entropy_per_token",
                "sft",
                _EVALUATIONS,
                "nats/token",
                f"Cross-entropy of fixed {examples} examples under the model, in evaluation mode.",
            ),
            Metric(
                f"{split}_entropy_floor_per_token",
                "sft",
                _EVALUATIONS,
                "nats/token",
                f"Entropy of the tokens of these {examples} examples, each given the whole prefix before it.",
            ),
            Metric(
                f"{split}_forward_kl_per_token",
                "sft",
                _EVALUATIONS,
                "nats/token",
                "The difference of the two: KL(data || model), where data is the empirical distribution of these "
                "examples.",
                "With examples as independent samples.",
                _DATA_MODEL,
            ),
            Metric(
                f"{split}_contexts_seen_once",
                "sft",
                _EVALUATIONS,
                "fraction",
                "Fraction of tokens whose prefix occurs once, for which the entropy floor is 0.",
            ),
        )
    ),
    # Distillation
    Metric("step", "distill", _BOTH, "steps", "The number of optimizer steps."),
    Metric(
        "loss",
        "distill",
        _METRICS,
        "nats/token",
        "The divergence of `--divergence`: sum over the completions of the step / number of their tokens.",
    ),
    Metric(
        "divergence_per_token",
        "distill",
        _EVALUATIONS,
        "nats/token",
        "The same divergence on the completions of the evaluation.",
        "With prompts as independent samples.",
    ),
    Metric(
        "kl_student_teacher_per_token",
        "distill",
        _EVALUATIONS,
        "nats/token",
        "sum of KL_t(student || teacher) over the completions of the evaluation / number of their tokens.",
        "With prompts as independent samples.",
        _STUDENT_TEACHER,
    ),
    Metric(
        "kl_teacher_student_per_token",
        "distill",
        _EVALUATIONS,
        "nats/token",
        "The same mean of KL_t(teacher || student).",
        "With prompts as independent samples.",
        _TEACHER_STUDENT,
    ),
    Metric(
        "js_per_token",
        "distill",
        _EVALUATIONS,
        "nats/token",
        "The same mean of the Jensen-Shannon divergence, which is at most log 2.",
        "With prompts as independent samples.",
    ),
    Metric(
        "entropy",
        "distill",
        _BOTH,
        "nats/token",
        "Mean over completion tokens of the entropy of the student's next-token distribution." + _OF_MICRO_BATCHES,
    ),
    Metric(
        "completion_length",
        "distill",
        _BOTH,
        "tokens",
        "Mean number of tokens of a completion, including the end-of-sequence token.",
    ),
    Metric("truncated", "distill", _BOTH, "fraction", "Fraction of completions cut at the maximal length."),
    Metric("count", "distill", _EVALUATIONS, "completions", "Number of evaluation prompts, one completion each."),
    Metric("learning_rate", "distill", _METRICS, "1/step", "The learning rate of the optimizer."),
    Metric("gradient_norm", "distill", _METRICS, "loss/weight", "Euclidean norm of the gradient before clipping."),
    Metric("step_seconds", "distill", _METRICS, "s", "Time of this step: generation, forward and backward."),
    Metric("seconds", "distill", _METRICS, "s", "Time since the start of the run, without interruptions."),
    # Models with latent variables
    Metric("step", "vae", _BOTH, "steps", "The number of optimizer steps."),
    Metric(
        "kl_posterior_prior_per_image",
        "vae",
        _BOTH,
        "nats/image",
        "Mean over images of KL(q(z | x) || p(z)), summed over all latent dimensions.",
        "Over images.",
        _POSTERIOR_PRIOR,
        "image",
    ),
    Metric("kl_latents", "vae", _EVALUATIONS, "nats/image", "A list: the mean KL of each latent dimension."),
    Metric(
        "distortion",
        "vae",
        _BOTH,
        "nats/image",
        "Mean of -log p(x | z) at a sample z of the posterior.",
        "Over images.",
    ),
    Metric(
        "cross_entropy",
        "vae",
        _BOTH,
        "nats/image",
        "Of a bottleneck: mean of -log p(class | z), with one latent sample z of an image.",
        "Over images.",
    ),
    Metric(
        "accuracy",
        "vae",
        _EVALUATIONS,
        "fraction",
        "Of a bottleneck: probability of the correct class with one latent sample of an image, by 16 samples.",
        "Over images.",
    ),
    Metric("elbo", "vae", _EVALUATIONS, "nats/image", "-distortion - KL.", "Over images."),
    Metric(
        "log_likelihood",
        "vae",
        _EVALUATIONS,
        "nats/image",
        "After training: importance-sampling estimate of log p(x) with 256 samples, on 256 held-out images.",
        "Over images.",
    ),
    Metric(
        "active_units",
        "vae",
        _EVALUATIONS,
        "dimensions",
        "Latent dimensions whose posterior mean has a variance above 0.01 over images (Burda et al. 2016).",
    ),
    Metric(
        "active_units_by_kl", "vae", _EVALUATIONS, "dimensions", "Latent dimensions whose mean KL is above 0.01 nats."
    ),
    Metric(
        "alarm",
        "vae",
        _EVALUATIONS,
        "text",
        "A message about posterior collapse, if all latent dimensions together have a KL below 0.05 nats.",
    ),
    Metric("beta", "vae", _METRICS, "1", "The coefficient of the KL in the loss."),
    Metric("kl_filtered", "vae", _METRICS, "nats/image", "The controller's filtered estimate of the KL."),
    Metric("learning_rate_scale", "vae", _METRICS, "factor", "The factor on the encoder's learning rate."),
    Metric(
        "displacement_scale",
        "vae",
        _METRICS,
        "factor",
        "The factor by which the displacement of the posteriors from the prior was multiplied after the step.",
    ),
    Metric("seconds", "vae", _METRICS, "s", "Time since the start of the run, without interruptions."),
    # The supervised stage of the demonstration
    Metric("step", "demo", _METRICS, "steps", "The number of optimizer steps."),
    Metric(
        "kl_data_model_per_sequence",
        "demo",
        _METRICS,
        "nats/answer",
        "Cross-entropy of the answers under the model, averaged over the last 50 batches, minus the entropy of the "
        "data, which is known. Sampling noise can make it negative.",
        symbol=_DATA_MODEL,
    ),
)

# Keys under which null is a value that does not exist; under every other key it is nan or infinity, which JSON lacks.
_MAY_BE_MISSING = {
    *("reward", "reward_std", "episode_length", "completion_length", "truncated", "repetition"),
    *("kl_filtered", "explained_variance", "action_std", "log_likelihood", "alarm", "kl_latents"),
}

# The metrics of a budget that trainers of TRL report to TensorBoard, Weights & Biases and trackio.
REPORTED_METRICS = (
    "kl_policy_ref_per_token",
    "kl_policy_ref_per_token_std_error",
    "kl_policy_ref_per_sequence",
    "kl_policy_ref_per_sequence_std_error",
    "beta",
    "kl_filtered",
    "learning_rate_scale",
    "displacement_scale",
)

# Keys in run directories that were written before a metric was renamed.
_FORMER_KEYS = {
    "kl_level": "kl_filtered",
    "pull": "displacement_scale",
    "step_scale": "learning_rate_scale",
    "informed_units": "active_units_by_kl",
    "kl_posterior_prior_per_latent": "kl_posterior_prior_per_image",
    "kl_posterior_prior_per_latent_std_error": "kl_posterior_prior_per_image_std_error",
}

# Settings in configurations that were written before a setting was renamed.
_FORMER_SFT_KEYS = {"judged": "max_examples"}
_FORMER_BUDGET_KEYS = {"of": "constrain", "over": "states"}
_FORMER_BUDGET_VALUES = {
    ("of", "old"): "old-policy",
    ("unit", "latent"): "image",
    ("kind", "RLlib"): "RLlibController",
}

_SECTIONS = {
    "grpo": (
        "Language-model policies",
        "`kullback train grpo` and `kullback train rloo` write a row of `metrics.jsonl` for each optimizer step, "
        "measured on the samples of that step, and a row of `evaluations.jsonl` for each evaluation on a fixed set of "
        "prompts; step 0 is the reference.\n\n"
        "A completion y of |y| tokens (the end-of-sequence token counts; padding and tool tokens do not) is sampled "
        "from the policy pi for a prompt x. KL_t = sum_v pi(v | x, y_<t) log( pi(v | x, y_<t) / ref(v | x, y_<t) ), "
        "over the vocabulary v, is the exact KL(pi || ref) of the next token at position t and at the sampling "
        "temperature. It is computed as sum_v pi phi(log ref/pi) with phi(d) = e^d - 1 - d.",
    ),
    "ppo": (
        "Policies in environments",
        "`kullback train ppo` writes a row of `metrics.jsonl` for each update, and a row of `evaluations.jsonl` for "
        "each evaluation: episodes from a fixed set of initial states, whose actions are sampled with the same random "
        "numbers. At a visited state s, KL_s(p || q) = sum over the actions a (an integral for continuous actions) of "
        "p(a | s) log( p(a | s) / q(a | s) ) is exact. Means are over states.",
    ),
    "sft": ("Supervised fine-tuning", "`kullback train sft` writes these keys."),
    "distill": (
        "Distillation",
        "`kullback train distill` writes a row of `metrics.jsonl` for each optimizer step, and a row of "
        "`evaluations.jsonl` for each evaluation on a fixed set of prompts; step 0 is the student before training. The "
        "completions are samples of the student or, with `--off-policy`, a column of the data. At position t, the "
        "divergence between the next-token distributions of teacher and student is exact over the vocabulary, at the "
        "sampling temperature.",
    ),
    "vae": (
        "Models with latent variables",
        "`kullback train vae` and `kullback train bottleneck` write these keys.",
    ),
    "demo": (
        "The supervised stage of the demonstration",
        "`kullback train demo` writes `reference/metrics.jsonl`, a row every 50 steps.",
    ),
}


def metrics_of(trainer: Trainer) -> dict[str, Metric]:
    """Return the metrics of a trainer by key, with the standard errors as separate keys.

    Args:
        trainer: The name of the trainer.

    Returns:
        A dictionary from the keys of `metrics.jsonl` and `evaluations.jsonl` to their metrics.

    Example:
        >>> metrics_of("grpo")["kl_policy_ref_per_token"].unit
        'nats/token'
    """
    metrics = [metric for metric in METRICS if metric.trainer == trainer]
    errors = {f"{metric.key}_std_error": metric for metric in metrics if metric.std_error}
    return {metric.key: metric for metric in metrics} | errors


def kl_key(unit: str, *, constrain: str = "reference", states: str = "visited") -> str:
    """Return the key of the KL divergence that a budget of the given unit constrains.

    Args:
        unit: The unit of the budget, as in `KLBudget`.
        constrain: "reference" for KL(policy || reference), "old-policy" for KL(old policy || policy).
        states: For policies in environments, the states of the mean: "visited" by the policy, or fixed states that the
            "reference" visits.

    Returns:
        The key.

    Example:
        >>> kl_key("token"), kl_key("step", constrain="old-policy")
        ('kl_policy_ref_per_token', 'kl_old_policy_per_step')
    """
    if unit == "image":
        return "kl_posterior_prior_per_image"
    if states == "reference":
        return "kl_policy_ref_per_reference_step"
    return f"kl_{'old_policy' if constrain == 'old-policy' else 'policy_ref'}_per_{unit}"


def constrained_kl(config: Mapping[str, Any]) -> str | None:
    """Return the key of the KL that the budget of a run constrains.

    Args:
        config: The configuration of the run, as `RunDirectory.config` returns it.

    Returns:
        The key; None for a run without a budget.

    Example:
        >>> constrained_kl({"kind": "ppo", "budget": {"target": 0.01, "unit": "step", "constrain": "old-policy"}})
        'kl_old_policy_per_step'
        >>> constrained_kl({"kind": "grpo", "budget": None}) is None
        True
    """
    budget = config.get("budget")
    if not isinstance(budget, Mapping) or "target" not in budget:
        return None
    settings = {name: budget[name] for name in ("constrain", "states") if name in budget}
    return kl_key(budget.get("unit", "token"), **settings)


def may_be_missing(key: str) -> bool:
    """Return whether null under a key of a run directory stands for a value that does not exist.

    Args:
        key: A key of a row.

    Returns:
        True for values that some steps do not have, such as the return of a rollout in which no episode ended. Under
        other keys, null was written for nan or infinity.

    Example:
        >>> may_be_missing("rewards/return"), may_be_missing("kl_policy_ref_per_token")
        (True, False)
    """
    return key in _MAY_BE_MISSING or key.startswith("rewards/") or key.endswith("_std_error")


def with_present_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of metrics with former keys replaced by present ones.

    Example:
        >>> with_present_keys({"step": 1, "kl_level": 0.05})
        {'step': 1, 'kl_filtered': 0.05}
    """
    return {_FORMER_KEYS.get(key, key): value for key, value in row.items()}


def with_present_settings(config: Any) -> Any:
    """Return the configuration of a run with former names of settings replaced by present ones.

    Args:
        config: The content of config.json.

    Returns:
        The same content under present names; anything but a dictionary is returned as it is.

    Example:
        >>> with_present_settings({"budget": {"target": 0.01, "unit": "step", "of": "old", "over": "visited"}})
        {'budget': {'target': 0.01, 'unit': 'step', 'constrain': 'old-policy', 'states': 'visited'}}
    """
    if not isinstance(config, dict):
        return config
    present = dict(config)
    if present.get("kind") == "sft":
        present = {_FORMER_SFT_KEYS.get(key, key): value for key, value in present.items()}
    if isinstance(present.get("budget"), dict):
        present["budget"] = {
            _FORMER_BUDGET_KEYS.get(key, key): _FORMER_BUDGET_VALUES.get((key, str(value)), value)
            for key, value in present["budget"].items()
        }
    return present


def metrics_tables() -> str:
    """Return the page docs/metrics.md: one section and table for each trainer.

    Example:
        >>> print(metrics_tables().splitlines()[0])
        # Metrics
    """
    lines = [
        "# Metrics",
        "",
        "<!-- Generated from src/kullback/runs/metrics.py by docs/generate_metrics.py; do not edit. -->",
        "",
        "These are the keys that the trainers write to the files of a run directory. All KL divergences and entropies "
        "are in nats. `null` stands for a number that does not exist, such as the standard error over a single prompt, "
        "the rewards of a step without new completions, or a KL that is nan or infinite, which JSON does not have. "
        "Where a standard error is given, it is logged under the same key with `_std_error` appended.",
    ]
    for trainer, (title, introduction) in _SECTIONS.items():
        lines += ["", f"## {title}", "", introduction, ""]
        lines += ["| key | files | unit | definition |", "| --- | --- | --- | --- |"]
        for metric in (metric for metric in METRICS if metric.trainer == trainer):
            lines.append(_table_row(metric.key, metric.files, metric.unit, metric.formula))
            if metric.std_error:
                key = f"{metric.key}_std_error"
                lines.append(_table_row(key, metric.files, metric.unit, f"Its standard error. {metric.std_error}"))
    names = ", ".join(f"`{name}`" for name in REPORTED_METRICS)
    lines += [
        "",
        "## TensorBoard, Weights & Biases and trackio",
        "",
        "`BudgetGRPOTrainer` and `BudgetRLOOTrainer` log the metrics of the budget as TRL logs its own metrics, so "
        'that they are reported to every integration of `report_to` ("tensorboard", "wandb", "trackio", ...) at every '
        f"`logging_steps`: {names}. The integrations of transformers put `train/` before each name. Their definitions "
        "are in the table of language-model policies.",
        "",
        "`BudgetPPO` logs to the logger of stable-baselines3, under `train/`: `kl_policy_ref_per_step`, "
        "`kl_old_policy_per_step`, `kl_policy_ref_per_reference_step`, their standard errors, `beta`, `kl_filtered`, "
        "`learning_rate_scale`, `displacement_scale` and `kl_budget`; a budget of the old policy has the names of the "
        "last five with `_old` appended.",
        "",
        "`kullback explore DIR` draws these logs too; see [the explorer](explore.md).",
    ]
    return "\n".join(lines) + "\n"


def _table_row(key: str, files: str, unit: str, text: str) -> str:
    cells = [f"`{key}`", files.replace(".jsonl", ""), unit, text.replace("|", r"\|")]
    return f"| {' | '.join(cells)} |"
