"""`kullback doctor` on runs of `kullback train ppo` with a budget that is met and a budget that is not reached."""

import json

import pytest

from kullback.cli import main
from kullback.integrations.sb3 import BudgetPPO  # noqa: F401  its import error names the missing extra


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "found"), [("0.01", []), ("5", ["budget-not-reached"])])
def test_a_budget_of_the_old_policy_is_checked(tmp_path, capsys, budget, found):
    words = ["--env", "CartPole-v1", "--budget", budget, "--clip", "none", "--steps", "4000", "--seed", "0"]
    sizes = [word for key in ("n_steps=128", "n_envs=2", "batch_size=64") for word in ("--set", key)]
    output = str(tmp_path / "run")
    assert main(["train", "ppo", *words, *sizes, "--evaluate-every", "5", "--output", output, "--json"]) == 0
    capsys.readouterr()
    assert main(["doctor", output, "--json"]) == (1 if found else 0)
    findings = json.loads(capsys.readouterr().out)["findings"][output]
    assert [finding["name"] for finding in findings] == found
