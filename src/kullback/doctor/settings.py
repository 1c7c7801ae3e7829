"""Checks of the settings of a trainer before it runs: TRL's GRPO, and `kullback train ppo`."""

from collections.abc import Mapping
from typing import Any

from kullback.doctor.finding import Finding

__all__ = [
    "check_beta_sign",
    "check_engine_correction",
    "check_filter_settings",
    "check_kl_estimator",
    "check_learning_rate",
    "check_ppo_settings",
    "check_reference_sync",
    "check_settings",
    "check_update_constraint",
]


def check_settings(settings: Mapping[str, Any]) -> list[Finding]:
    """Check the settings of TRL's GRPO.

    Runs `check_beta_sign`, `check_kl_estimator`, `check_reference_sync`, `check_filter_settings`,
    `check_engine_correction` and `check_learning_rate`.

    Args:
        settings: Fields of TRL's GRPOConfig; an absent field has TRL's default.

    Returns:
        Findings named `kl-sign`, `logged-kl-differs-from-trained`, `reference-moved`, `sampling-filter`,
        `engine-mismatch` or `nothing-trains`.

    Example:
        >>> check_settings({"beta": 0.04, "use_bias_correction_kl": False})[0].name
        'logged-kl-differs-from-trained'
        >>> check_settings({"beta": 0.04})
        []
    """
    checks = (
        check_beta_sign,
        check_kl_estimator,
        check_reference_sync,
        check_filter_settings,
        check_engine_correction,
        check_learning_rate,
    )
    return [finding for check in checks for finding in check(settings)]


def check_ppo_settings(config: Mapping[str, Any]) -> list[Finding]:
    """Check the config.json of a run of `kullback train ppo`.

    Runs `check_update_constraint` and `check_learning_rate`.

    Args:
        config: The content of config.json.

    Returns:
        Findings named `unconstrained-update` or `nothing-trains`.

    Example:
        >>> check_ppo_settings({"clip": None, "budget": None, "settings": {}})[0].name
        'unconstrained-update'
        >>> check_ppo_settings({"clip": 0.2, "budget": None, "settings": {}})
        []
    """
    return check_update_constraint(config) + check_learning_rate(config.get("settings") or {})


def check_beta_sign(settings: Mapping[str, Any]) -> list[Finding]:
    """Check that beta, the coefficient of the KL penalty, is not negative.

    Returns:
        `kl-sign` (error), or nothing.
    """
    beta = settings.get("beta") or 0.0
    if not beta < 0:
        return []
    cause = "beta is negative: descending the loss moves the policy away from its reference"
    return [Finding("kl-sign", "error", cause, "set beta > 0, or use a KL budget", {"beta": beta})]


def check_kl_estimator(settings: Mapping[str, Any]) -> list[Finding]:
    """Check that the KL term of TRL's loss descends the KL that TRL logs.

    Criterion: beta is 0, or use_bias_correction_kl is not false. Without this correction TRL differentiates k3 on
    samples of the policy, which descends KL(reference || policy).

    Returns:
        `logged-kl-differs-from-trained` (error), or nothing.
    """
    beta = settings.get("beta") or 0.0
    if not beta or settings.get("use_bias_correction_kl", True) is not False:
        return []
    cause = "the logged KL differs from the trained KL: the gradient of k3 as a loss descends KL(reference || policy)"
    evidence = {"beta": beta, "use_bias_correction_kl": False}
    remedy = "set use_bias_correction_kl=True"
    return [Finding("logged-kl-differs-from-trained", "error", cause, remedy, evidence)]


def check_reference_sync(settings: Mapping[str, Any]) -> list[Finding]:
    """Check that the reference is fixed.

    Criterion: sync_ref_model is false.

    Returns:
        `reference-moved` (warning), or nothing.
    """
    if not settings.get("sync_ref_model"):
        return []
    cause = (
        "the reference is updated towards the policy: a penalty on the KL to it limits the speed at which the "
        "policy changes, but not its distance from the initial model"
    )
    keys = ("ref_model_sync_steps", "ref_model_mixup_alpha")
    evidence = {"sync_ref_model": True, **{key: settings[key] for key in keys if key in settings}}
    return [Finding("reference-moved", "warning", cause, "set sync_ref_model=False", evidence)]


# The settings of sampling that change the distribution, and the values that leave it as it is, beside None.
UNFILTERED: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "num_beams": (1,),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "suppress_tokens": ([],),
    "bad_words_ids": ([],),
    "sequence_bias": ({}, []),
    "begin_suppress_tokens": ([],),
    "force_words_ids": ([],),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "top_h": (1,),
    "watermarking_config": (),
}


def check_filter_settings(settings: Mapping[str, Any]) -> list[Finding]:
    """Check that completions are sampled from the unfiltered distribution.

    Criterion: top_p is 1, top_k is 0 or -1, min_p is 0, repetition_penalty is 1, and the other settings of sampling in
    `UNFILTERED` leave the distribution as it is, where they are set. The entries of generation_kwargs, which TRL passes
    to `generate` after its other settings, take precedence; they neither turn off sampling nor change the temperature.

    Returns:
        `sampling-filter` (warning), or nothing.
    """
    added = settings.get("generation_kwargs")
    added = added if isinstance(added, Mapping) else {}
    effective = {**settings, **added}
    filters = {
        key: effective[key]
        for key, values in UNFILTERED.items()
        if effective.get(key) is not None and effective[key] not in values
    }
    if added.get("do_sample") is False:
        filters["do_sample"] = False
    if added.get("temperature", settings.get("temperature", 1.0)) != settings.get("temperature", 1.0):
        filters["temperature of generation_kwargs"] = added["temperature"]
    if not filters:
        return []
    cause = (
        "completions are sampled from a filtered distribution, but every KL and probability ratio is of the "
        "unfiltered distribution"
    )
    remedy = (
        "train with top_p=1, top_k=0, repetition_penalty=1 and without min_p, and remove such settings from "
        "generation_kwargs and model.generation_config; the field temperature of the configuration excludes no token"
    )
    return [Finding("sampling-filter", "warning", cause, remedy, filters)]


def check_engine_correction(settings: Mapping[str, Any]) -> list[Finding]:
    """Check that the difference between the inference engine and the trainer is corrected.

    Criterion: use_vllm is false, or vllm_importance_sampling_correction is not false.

    Returns:
        `engine-mismatch` (warning), or nothing.
    """
    if not settings.get("use_vllm") or settings.get("vllm_importance_sampling_correction", True) is not False:
        return []
    cause = (
        "the inference engine's log-probabilities differ slightly from the trainer's, and no importance weight "
        "corrects the difference"
    )
    evidence = {"use_vllm": True, "vllm_importance_sampling_correction": False}
    remedy = "set vllm_importance_sampling_correction=True"
    return [Finding("engine-mismatch", "warning", cause, remedy, evidence)]


def check_learning_rate(settings: Mapping[str, Any]) -> list[Finding]:
    """Check that the learning rate is not 0.

    Returns:
        `nothing-trains` (error), or nothing.
    """
    if settings.get("learning_rate") != 0:
        return []
    cause = "the learning rate is 0: nothing trains"
    return [Finding("nothing-trains", "error", cause, "set learning_rate > 0", {"learning_rate": 0.0})]


def check_update_constraint(config: Mapping[str, Any]) -> list[Finding]:
    """Check that a PPO run limits how far one update can change the policy.

    Criterion: the probability ratio is clipped, or the KL has a budget or a penalty with beta above 0.

    Returns:
        `unconstrained-update` (warning), or nothing.
    """
    budget = config.get("budget")
    if config.get("clip") is not None or (budget and (budget.get("target") or budget.get("beta"))):
        return []
    cause = "the run has no clip, no KL penalty and no KL budget: an update can change the policy arbitrarily"
    remedy = "use --clip 0.2, or --budget 0.01 --constrain old-policy"
    evidence = {"clip": None, "budget": budget}
    return [Finding("unconstrained-update", "warning", cause, remedy, evidence)]
