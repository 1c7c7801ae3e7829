"""The public names are these; each is documented with a formula or an example; the docs name no other."""

import subprocess
import sys

import pytest

import kullback

PUBLIC = {
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
}


def test_the_public_names_are_these() -> None:
    assert set(kullback.__all__) == PUBLIC
    assert len(kullback.__all__) == len(PUBLIC)
    assert set(dir(kullback)) == PUBLIC
    for name in PUBLIC:
        assert getattr(kullback, name) is not None


def test_other_names_are_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'kl_div'"):
        _ = kullback.kl_div


@pytest.mark.parametrize("name", sorted(PUBLIC - {"KullbackError"}))
def test_public_names_are_documented(name: str) -> None:
    text = getattr(kullback, name).__doc__
    assert text
    assert "Args:" in text
    assert "Example:" in text
    assert ">>>" in text


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import kullback\n"
        "from kullback.errors import MissingDependencyError\n"
        "try: kullback.token_kl\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'kullback[train]'" in done.stdout, done.stderr
