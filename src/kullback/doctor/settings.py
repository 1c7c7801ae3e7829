"""What a trainer's settings say before anything runs: TRL's, from a GRPOConfig or a file of one, or a PPO run's."""

from collections.abc import Mapping
from typing import Any

from kullback.doctor.finding import Finding

__all__ = ["check_ppo_settings", "check_settings"]


def check_settings(settings: Mapping[str, Any]) -> list[Finding]:
    """What TRL's settings will break; those that are not there count as TRL's defaults.

    Example:
        >>> check_settings({"beta": 0.04, "use_bias_correction_kl": False})[0].name
        'logged-is-not-trained'
        >>> check_settings({"beta": 0.04})
        []
    """
    found = []
    beta = settings.get("beta") or 0.0
    if beta < 0:
        cause = "beta is negative: the loss drives the policy away from its reference"
        found.append(Finding("kl-sign", "error", cause, "beta > 0, or a KL budget", {"beta": beta}))
    if beta and settings.get("use_bias_correction_kl", True) is False:
        cause = "the KL that is logged is not the one that is trained: k3 in the loss descends KL(ref || policy)"
        evidence = {"beta": beta, "use_bias_correction_kl": False}
        found.append(Finding("logged-is-not-trained", "error", cause, "use_bias_correction_kl=True", evidence))
    if settings.get("sync_ref_model"):
        cause = "the reference follows the policy: a KL to it bounds the speed of the policy, not how far it goes"
        keys = ("ref_model_sync_steps", "ref_model_mixup_alpha")
        evidence = {"sync_ref_model": True, **{key: settings[key] for key in keys if key in settings}}
        found.append(Finding("reference-moved", "warning", cause, "sync_ref_model=False", evidence))
    filters = {
        key: settings[key]
        for key, off in (("top_p", (None, 1, 1.0)), ("top_k", (None, 0, -1)), ("min_p", (None, 0, 0.0)))
        if settings.get(key) not in off
    }
    if filters:
        cause = "the completions come from a filtered distribution, and every KL and ratio is taken of the whole one"
        remedy = "top_p=1, top_k=0 and no min_p while training; the temperature alone keeps every token possible"
        found.append(Finding("sampling-filter", "warning", cause, remedy, filters))
    if settings.get("use_vllm") and settings.get("vllm_importance_sampling_correction", True) is False:
        cause = "the engine's log-probabilities are taken for the trainer's, with nothing to correct the difference"
        evidence = {"use_vllm": True, "vllm_importance_sampling_correction": False}
        remedy = "vllm_importance_sampling_correction=True"
        found.append(Finding("engine-mismatch", "warning", cause, remedy, evidence))
    return found + _idle(settings)


def check_ppo_settings(config: Mapping[str, Any]) -> list[Finding]:
    """What the config.json of `kullback train ppo` will come to.

    Example:
        >>> check_ppo_settings({"clip": None, "budget": None, "settings": {}})[0].name
        'nothing-holds'
        >>> check_ppo_settings({"clip": 0.2, "budget": None, "settings": {}})
        []
    """
    settings, budget = config.get("settings") or {}, config.get("budget")
    found = []
    if config.get("clip") is None and not (budget and (budget.get("target") or budget.get("beta"))):
        cause = "neither a clip nor a penalty nor a budget: nothing bounds how far one update takes the policy"
        remedy = "--clip 0.2, or --budget 0.01 --constrain old-policy"
        found.append(Finding("nothing-holds", "warning", cause, remedy, {"clip": None, "budget": budget}))
    return found + _idle(settings)


def _idle(settings: Mapping[str, Any]) -> list[Finding]:
    if settings.get("learning_rate") != 0:
        return []
    cause = "the learning rate is 0: nothing trains"
    return [Finding("nothing-trains", "error", cause, "learning_rate > 0", {"learning_rate": 0.0})]
