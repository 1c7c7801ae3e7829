"""What type checkers infer for users, and the checks of array shapes that run in every test."""

import json
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from inspect import isfunction
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from kullback.discrete import kl as discrete_kl
from kullback.errors import ShapeError
from kullback.policy import estimators, losses
from kullback.tokens import linear, logits

SCRIPTS = Path(__file__).with_name("typing")


@pytest.fixture(scope="module")
def error_lines() -> dict[str, set[int]]:
    """The lines of the scripts in tests/typing in which Pyright reports an error, by the name of the script."""
    pyright, scripts = Path(sys.executable).with_name("pyright"), sorted(SCRIPTS.glob("*.py"))
    command = [pyright, "--outputjson", "--pythonpath", sys.executable, *scripts]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS, check=False)
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["summary"]["filesAnalyzed"] == len(scripts)
    lines = defaultdict(set)
    for found in report["generalDiagnostics"]:
        lines[Path(found["file"]).name].add(found["range"]["start"]["line"] + 1)
    return lines


@pytest.mark.slow
def test_results_have_the_types_that_the_user_script_asserts(error_lines: dict[str, set[int]]) -> None:
    assert error_lines["user_script.py"] == set()


def test_invalid_calls_are_rejected(error_lines: dict[str, set[int]]) -> None:
    script = (SCRIPTS / "invalid_calls.py").read_text(encoding="utf-8").splitlines()
    expected = {number for number, line in enumerate(script, 1) if line.endswith("# error")}
    assert error_lines["invalid_calls.py"] == expected


def test_a_result_of_the_wrong_shape_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "differentiable_kl_logits", lambda xp, p, q: p)
    with pytest.raises(TypeCheckError, match=r"return value of kullback\.tokens\.logits\.logit_kl"):
        logits.token_kl(torch.zeros(2, 3), torch.zeros(2, 3))
    monkeypatch.setattr(linear, "logit_kl", lambda p, q, temperature: p.sum())
    with pytest.raises(TypeCheckError, match="chunk_kl"):
        linear.head_token_kl(torch.zeros(4, 2), torch.tanh, torch.zeros(4, 2), torch.tanh)
    monkeypatch.setattr(losses, "aggregate_tokens", lambda loss, *_, **__: loss)
    with pytest.raises(TypeCheckError, match="ppo_loss"):
        losses.ppo_loss(log_prob=torch.zeros(2, 3), advantages=torch.zeros(2))
    monkeypatch.setattr(discrete_kl, "fast_kl_probs", lambda *_: None)
    monkeypatch.setattr(discrete_kl, "sum_kl", lambda xp, p, q, d: p[..., :1])
    with pytest.raises(TypeCheckError, match="_probs_value"):
        discrete_kl.kl_probs([[0.5, 0.5]], [[0.25, 0.75]])


def test_an_argument_of_the_wrong_shape_or_dtype_is_an_error() -> None:
    with pytest.raises(TypeCheckError, match="_log_p_gradient"):
        discrete_kl._log_p_gradient(np, np.zeros(1), np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(TypeCheckError, match="bounded_exp"):
        estimators.bounded_exp(torch.zeros(3, dtype=torch.int64))


def test_errors_of_the_package_precede_the_checks_of_shapes() -> None:
    with pytest.raises(ShapeError, match="the models must share a vocabulary"):
        logits.token_kl(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match="expected advantages of shape"):
        losses.ppo_loss(log_prob=torch.zeros(2, 3), advantages=torch.zeros(3))


@pytest.mark.parametrize(
    "name",
    ["discrete.divergence", "discrete.entropy", "discrete.kl", "policy.advantages", "policy.dpo", "tokens.linear"],
)
def test_every_public_function_of_a_checked_module_is_checked(name: str) -> None:
    module = import_module(f"kullback.{name}")
    public = [getattr(module, each) for each in module.__all__]
    assert public
    assert all(hasattr(each, "__wrapped__") for each in public if isfunction(each))


def test_users_need_neither_jaxtyping_nor_the_libraries_in_the_annotations() -> None:
    code = (
        "import sys, typing, kullback.discrete.kl as kl, kullback.optimum.tilt\n"
        "print(sorted({'beartype', 'jax', 'jaxtyping', 'torch'} & set(sys.modules)))\n"
        "print(typing.get_type_hints(kl.sum_kl)['return'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "typing.Any"]
