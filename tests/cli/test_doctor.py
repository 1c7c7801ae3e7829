"""`kullback doctor` on trained runs: faults inserted into the trainer, correct runs, and invalid input."""

import copy
import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import kullback.integrations.trl as budget_trainer
from kullback import KLBudget
from kullback.budget.controllers import PPO2017
from kullback.cli import main
from kullback.errors import InputError
from kullback.integrations.transformers import completion_log_prob, last_hidden
from kullback.runs.lock import run_lock
from kullback.runs.run_directory import RunDirectory
from kullback.train.grpo import GRPOPlan, train_grpo

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

Train = Callable[..., Path]
Callback = budget_trainer._BudgetCallback
ROWS = [{"prompt": f"{a}+{a + 1}="} for a in range(40)]


def longer(completions: Sequence[str], **_: Any) -> list[float]:
    return [len(text) / 6 for text in completions]


def shorter(completions: Sequence[str], **_: Any) -> list[float]:
    return [1 - len(text) / 6 for text in completions]


def like_longer(completions: Sequence[str], **_: Any) -> list[float]:
    return [len(text) / 12 for text in completions]


def constant(completions: Sequence[str], **_: Any) -> list[float]:
    return [1.0 for _ in completions]


@pytest.fixture
def train(tiny_model: Path, tmp_path: Path) -> Train:
    def trained(budget: KLBudget | None = None, **changes: Any) -> Path:
        settings = {
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_completion_length": 6,
            "learning_rate": 1e-2,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            **changes.pop("settings", {}),
        }
        plan = GRPOPlan(
            model=tiny_model,
            rows=ROWS,
            rewards=[longer],
            watched=[like_longer],
            budget=budget,
            steps=12,
            evaluate_every=3,
            output=tmp_path / "run",
            settings=settings,
        )
        assert train_grpo(replace(plan, **changes))
        return tmp_path / "run"

    return trained


def run_doctor(capsys: pytest.CaptureFixture[str], *paths: Path) -> tuple[int, list[dict[str, Any]]]:
    """The exit status and the findings of `kullback doctor --json`."""
    capsys.readouterr()
    status = main(["doctor", "--json", *map(str, paths)])
    out = capsys.readouterr().out
    return status, [finding for findings in json.loads(out)["findings"].values() for finding in findings]


def names(findings: list[dict[str, Any]]) -> list[str]:
    assert all(finding["cause"] and finding["remedy"] and finding["evidence"] for finding in findings)
    return [finding["name"] for finding in findings]


@pytest.mark.slow
def test_a_run_within_its_budget_gives_no_finding(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(KLBudget(0.02), steps=30)
    assert run_doctor(capsys, run) == (0, [])
    assert main(["doctor", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: nothing found\n"


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_a_budget_that_is_not_reached(train: Train, capsys: pytest.CaptureFixture[str], unit: Any) -> None:
    budget = KLBudget(6.0, unit=unit, price=5.1e-4)
    status, [found] = run_doctor(capsys, train(budget, settings={"learning_rate": 1e-4}))
    assert status == 1
    assert (found["name"], found["severity"]) == ("budget-not-reached", "warning")
    other = "sequence" if unit == "token" else "token"
    assert found["evidence"][f"mean KL per {other}"] > 0


@pytest.mark.slow
def test_beta_at_its_upper_bound(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    # Without the displacement step only the penalty constrains the KL, which is not enough.
    monkeypatch.setattr(Callback, "_apply", lambda self, budget: 1.0)
    _, found = run_doctor(capsys, train(KLBudget(1e-3, price=0.45, learning_rate_scale=1.0), steps=20))
    assert names(found) == ["over-budget", "beta-at-upper-bound"]
    assert found[1]["evidence"]["upper bound of beta"] == pytest.approx(500)


@pytest.mark.slow
def test_a_kl_above_its_budget(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(Callback, "_apply", lambda self, budget: 1.0)
    _, found = run_doctor(capsys, train(KLBudget(1e-3, learning_rate_scale=1.0)))
    assert names(found) == ["over-budget"]
    assert found[0]["evidence"]["kl/budget"] > 1.2


def test_dropout_in_the_model(
    train: Train, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_dropout = tmp_path / "with-dropout"
    AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.1).save_pretrained(with_dropout)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(with_dropout)
    directory = train(None, model=with_dropout, steps=2)
    # The trainer measures the KL in evaluation mode, so that dropout is not measured.
    assert RunDirectory(directory).metrics()[0]["kl_policy_ref_per_token"] < 1e-6
    _, found = run_doctor(capsys, directory)
    assert names(found) == []


def test_a_wrong_reference(train: Train, monkeypatch: Any) -> None:
    def with_other_reference(self: Any, trainer: Any, init: Any = Callback.__init__) -> None:
        with torch.no_grad():
            trainer.ref_model.lm_head.weight.mul_(1.1)
        init(self, trainer)

    monkeypatch.setattr(Callback, "__init__", with_other_reference)
    with pytest.raises(InputError, match="wrong-reference"):
        train(None, steps=2)


def test_a_reference_replaced_during_the_run(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def replace_reference(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 8:
            self.weights.reference.model.load_state_dict(self.policy.state_dict())

    monkeypatch.setattr(Callback, "on_step_end", replace_reference)
    _, found = run_doctor(capsys, train(None, evaluate_every=0))
    assert names(found) == ["reference-moved"]
    assert found[0]["evidence"]["step"] == 9


def test_a_reversed_sign(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def measured(self: Any, original: Any = Callback.measured) -> Any:
        return tuple(replace(estimate, value=-estimate.value) for estimate in original(self))

    monkeypatch.setattr(Callback, "measured", measured)
    _, found = run_doctor(capsys, train(None, evaluate_every=0))
    assert names(found) == ["negative-kl"]
    assert found[0]["severity"] == "error"


def test_padding_in_the_lengths(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def record(self: Any, inputs: Any, scored: Any, original: Any = Callback.record) -> None:
        original(self, inputs, replace(scored, mask=torch.ones_like(scored.mask)))

    monkeypatch.setattr(Callback, "record", record)
    _, found = run_doctor(capsys, train(None, rewards=[shorter], watched=[], evaluate_every=0))
    assert names(found) == ["mask-mismatch"]


@pytest.mark.slow
def test_a_logged_kl_that_differs_from_the_evaluation(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    def record(self: Any, inputs: Any, scored: Any, original: Any = Callback.record) -> None:
        original(self, inputs, replace(scored, kl=scored.kl.detach() * 2))

    monkeypatch.setattr(Callback, "record", record)
    _, found = run_doctor(capsys, train(None, steps=20, settings={"per_device_train_batch_size": 64}))
    assert names(found) == ["logged-kl-differs-from-evaluation"]
    assert found[0]["evidence"]["median of logged/evaluated"] == pytest.approx(2, rel=0.25)


def test_an_infinite_kl(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def measured(self: Any, original: Any = Callback.measured) -> Any:
        return tuple(replace(estimate, value=math.inf) for estimate in original(self))

    monkeypatch.setattr(Callback, "measured", measured)
    _, found = run_doctor(capsys, train(None, steps=2))
    assert names(found) == ["kl-not-finite"]


@pytest.mark.slow
def test_rewards_that_are_all_equal(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = run_doctor(capsys, train(None, rewards=[constant], watched=[]))
    assert names(found) == ["nothing-trains"]
    assert "equal rewards" in found[0]["cause"]


@pytest.mark.slow
def test_reward_hacking(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(None, watched=[shorter], steps=40, evaluate_every=20, evaluation_rows=ROWS * 4)
    status, found = run_doctor(capsys, run)
    assert status == 1
    assert names(found) == ["reward-hacking"]
    assert main(["doctor", str(run)]) == 1
    output = capsys.readouterr().out
    assert "error reward-hacking: " in output
    assert "evidence: proxy longer 0." in output
    assert "remedy: use a smaller KL budget" in output


def test_the_settings_of_a_run_are_checked(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(None, steps=2, settings={"top_p": 0.9})
    assert names(run_doctor(capsys, run)[1]) == ["sampling-filter"]
    assert names(run_doctor(capsys, run / "config.json")[1]) == ["sampling-filter"]


def repeating(completions: Sequence[str], **_: Any) -> list[float]:
    return [max(map(text.count, text), default=0) / 6 for text in completions]


@pytest.mark.slow
def test_text_that_degenerates(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = run_doctor(capsys, train(None, rewards=[repeating], watched=[], steps=40))
    assert names(found) == ["degeneration"]
    assert found[0]["evidence"].keys() >= {"entropy", "proxy repeating"}


@pytest.mark.slow
def test_a_policy_that_gets_worse(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    # The advantages have the wrong sign, so the policy unlearns what is rewarded.
    def scored(self: Any, inputs: Any, original: Any = GRPOTrainer._generate_and_score_completions) -> Any:
        batch = original(self, inputs)
        batch["advantages"] = -batch["advantages"]
        return batch

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", scored)
    _, found = run_doctor(capsys, train(None, steps=20, settings={"per_device_train_batch_size": 64}))
    assert names(found) == ["collapse"]


@pytest.mark.slow
def test_a_diverging_beta(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = run_doctor(capsys, train(PPO2017(1e-7), steps=18, evaluate_every=0))
    assert "beta-diverges" in names(found)
    evidence = next(finding["evidence"] for finding in found if finding["name"] == "beta-diverges")
    assert evidence["last beta"] > 1e4 * evidence["first beta"]


@pytest.mark.slow
def test_k1_in_the_log(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def record(self: Any, inputs: Any, scored: Any, original: Any = Callback.record) -> None:
        ids, mask = scored.ids, scored.mask
        with torch.no_grad():
            hidden = last_hidden(self.policy, ids, scored.attention)[:, -mask.shape[1] - 1 :]
            ours = completion_log_prob(self.weights.head(), hidden, ids, mask, temperature=1.0)
            theirs = completion_log_prob(self.weights.ref_head(), scored.ref_hidden, ids, mask, temperature=1.0)
        original(self, inputs, replace(scored, kl=(ours - theirs) * mask))

    monkeypatch.setattr(Callback, "record", record)
    _, found = run_doctor(capsys, train(None, evaluate_every=0, settings={"learning_rate": 1e-3}))
    assert [(finding["name"], finding["severity"]) for finding in found] == [("negative-kl", "warning")]


# -- output directories of TRL --


class StaleEngine(GRPOTrainer):
    """Completions and their log-probabilities come from a copy of the model whose weights are never updated."""

    def __init__(self, model: Any, *arguments: Any, **options: Any) -> None:
        self.engine = copy.deepcopy(model)
        super().__init__(model, *arguments, **options)
        self.use_vllm = True  # TRL logs the metrics of an engine only with this flag

    def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **options: Any) -> Any:
        self.use_vllm = False
        completions, _ = super()._generate_single_turn(prompt_ids, *arguments, **options)
        self.use_vllm = True
        log_probs = []
        for prompt, completion in zip(prompt_ids, completions, strict=True):
            ids = torch.tensor([[*prompt, *completion]])
            with torch.no_grad():
                log_p = self.engine(ids).logits[0].log_softmax(-1)
            log_probs.append([float(log_p[len(prompt) + t - 1, token]) for t, token in enumerate(completion)])
        return completions, log_probs


class ReversedSign(GRPOTrainer):
    """Logs log ref/policy."""

    def log(self, logs: dict[str, float], *arguments: Any) -> None:
        self._metrics["train"]["kl"] = [-abs(kl) for kl in self._metrics["train"]["kl"]]
        super().log(logs, *arguments)


def trl_run(kind: Any, tiny_model: Path, output: Path) -> Path:
    from datasets import Dataset

    config = GRPOConfig(
        str(output),
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=6,
        max_steps=10,
        save_steps=5,
        learning_rate=1e-2,
        beta=0.01,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    kind(model, longer, config, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer).train()
    return output


@pytest.mark.slow
def test_a_plain_trl_run(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    correct = trl_run(GRPOTrainer, tiny_model, tmp_path / "correct")
    assert run_doctor(capsys, correct) == run_doctor(capsys, correct / "checkpoint-5") == (0, [])
    reversed_sign = trl_run(ReversedSign, tiny_model, tmp_path / "reversed")
    assert names(run_doctor(capsys, reversed_sign)[1]) == ["negative-kl"]
    assert run_doctor(capsys, correct, reversed_sign)[0] == 1


def test_an_engine_with_stale_weights(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = run_doctor(capsys, trl_run(StaleEngine, tiny_model, tmp_path / "run"))
    assert names(found) == ["engine-mismatch"]
    assert found[0]["evidence"]["median |log-probability difference|, nats"] > 0.05


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta": 0.04}, []),
        ({"beta": 0.04, "use_bias_correction_kl": False}, ["logged-kl-differs-from-trained"]),
        ({"beta": 0.04, "sync_ref_model": True, "top_p": 0.95}, ["reference-moved", "sampling-filter"]),
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, ["engine-mismatch"]),
        ({"beta": -0.1, "learning_rate": 0.0}, ["kl-sign", "nothing-trains"]),
        ({"top_p": 1.0, "top_k": 0, "min_p": None}, []),
        ({"generation_kwargs": {"repetition_penalty": 2.0}}, ["sampling-filter"]),
        ({"top_p": 0.9, "generation_kwargs": {"top_p": 1.0}}, []),
        ({"generation_kwargs": {"do_sample": False}}, ["sampling-filter"]),
        ({"temperature": 0.7, "generation_kwargs": {"temperature": 1.0}}, ["sampling-filter"]),
        ({"temperature": 0.7, "generation_kwargs": {"temperature": 0.7, "num_beams": 1, "use_cache": True}}, []),
    ],
)
def test_settings_in_a_file(
    settings: dict[str, Any], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grpo.json"
    path.write_text(json.dumps(settings))
    status, found = run_doctor(capsys, path)
    assert names(found) == expected
    assert status == (1 if expected else 0)


# -- invalid input --


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such file or directory"),
        ({}, "expected a run directory, found no config.json in it"),
        (
            {"config.json": '{"model_type": "llama"}'},
            "expected a run of kullback train, got a config.json of another kind: ",
        ),
        ({"config.json": "[1]"}, "expected a JSON object, got [1]"),
        (
            {"config.json": '{"kind": "supervised"}'},
            "expected a run of kullback train, got a config.json of another kind: ",
        ),
        ({"config.json": '{"kind": "grpo"'}, "not JSON"),
        ({"config.json": '{"kind": "grpo"}'}, "no step was taken yet"),
        ({"config.json": '{"kind": "grpo"}', "metrics.jsonl": '{"step": 1\n'}, "a line that is not JSON"),
        ({"trainer_state.json": '{"log_history": [{"loss": 1.0}]}'}, "expected the log of a policy's training"),
        ({"trainer_state.json": "{"}, "not JSON"),
    ],
)
def test_invalid_input_gives_one_line(
    files: dict[str, str] | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if files is not None:
        run.mkdir()
        for name, text in files.items():
            (run / name).write_text(text)
    assert main(["doctor", str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_settings_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grpo.yaml"
    path.write_text("beta: -1e-2\nlearning_rate: 1e-6\ntop_p: 0.9\nmodel_name_or_path: mine\n")
    assert names(run_doctor(capsys, path)[1]) == ["kl-sign", "sampling-filter"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"clip": None}, ["unconstrained-update"]),
        ({"clip": None, "budget": {"kind": "FixedBeta", "beta": 3.0}}, []),
        ({"clip": None, "budget": {"kind": "FixedBeta", "beta": 0.0}}, ["unconstrained-update"]),
        ({"clip": None, "budget": {"kind": "KLBudget", "target": 0.01}}, []),
        ({"settings": {"learning_rate": 0.0, "beta": -1.0}}, ["nothing-trains"]),
    ],
)
def test_settings_of_ppo(
    changes: dict[str, Any], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"kind": "ppo", "clip": 0.2, "budget": None, "settings": {}} | changes))
    assert names(run_doctor(capsys, path)[1]) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("settings", "beta: 0.04", "not JSON"),
        ("settings", "[]", "expected an object of settings"),
        ("settings.yaml", "beta: [", "not YAML"),
        ("settings.yml", "- 1", "expected an object of settings"),
        ("settings.yaml", "!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_files_without_settings_are_refused(
    name: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert main(["doctor", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_runs_are_checked_without_importing_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "config.json").write_text('{"kind": "grpo", "model": "absent", "budget": null}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kl_policy_ref_per_token": 0.5}\n')
    code = (
        f"import sys\nfrom kullback.cli import main\nassert main(['doctor', {str(tmp_path)!r}]) == 1\n"
        "assert not set(sys.modules) & {'torch', 'transformers', 'trl', 'jax', 'numba'}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "error kl-at-start" in done.stdout


# -- the files of a run: order, damage, directories --


def write_run(path: Path, rows: Any, config: Any = None, name: str = "metrics.jsonl") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config or {"kind": "grpo", "model": "absent", "budget": None}))
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (path / name).write_text(text)
    return path


def correct_rows(steps: int = 12) -> list[dict[str, Any]]:
    return [{"step": i, "kl_policy_ref_per_token": 0.01 * (i - 1), "loss": 0.1} for i in range(1, steps + 1)]


@pytest.mark.parametrize(("factor", "names_found"), [(1.0, []), (2.0, ["over-budget"]), (0.2, ["budget-not-reached"])])
def test_updates_are_compared_with_their_own_budgets(
    factor: float, names_found: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = [0.03 * (1 - i / 20) ** 2 for i in range(20)]
    rows = [
        {
            "step": i + 1,
            "loss": 0.1,
            "kl_budget": own,
            "kl_old_policy_per_step": factor * own,
            "kl_old_policy_per_step_std_error": 1e-3 * own,
            "beta": 1.0,
        }
        for i, own in enumerate(budgets)
    ]
    budget = {"kind": "KLBudget", "target": 0.01, "unit": "step", "constrain": "old-policy", "decay": 2.0}
    run = write_run(tmp_path / "run", rows, {"kind": "ppo", "steps": 20, "clip": None, "budget": budget})
    (run / "model").mkdir()
    assert [name for name in names(run_doctor(capsys, run)[1]) if "budget" in name] == names_found


@pytest.mark.parametrize(("factor", "names_found"), [(1.0, []), (1.6, ["over-budget"])])
def test_a_mean_over_updates_with_a_decay_is_compared_with_the_mean_of_the_budgets(
    factor: float, names_found: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The last updates have far more than their own budgets, and the mean of all is factor times the mean budget.
    budgets = np.linspace(0.02, 0.0001, 20)
    kls = factor * budgets.mean() * np.ones(20) * np.tile([0.5, 1.5], 10)
    kls[10:] *= budgets[10:].mean() / budgets.mean()
    rows = [
        {
            "step": i + 1,
            "loss": 0.1,
            "kl_budget": own,
            "kl_old_policy_per_step": kl,
            "kl_old_policy_per_step_std_error": 1e-3 * kl,
            "beta": 1.0,
        }
        for i, (own, kl) in enumerate(zip(budgets.tolist(), kls.tolist(), strict=True))
    ]
    budget = {"kind": "KLBudget", "target": 0.01, "unit": "step", "constrain": "old-policy", "decay": 1.0}
    budget |= {"mean_over_updates": True}
    run = write_run(tmp_path / "run", rows, {"kind": "ppo", "steps": 20, "clip": None, "budget": budget})
    (run / "model").mkdir()
    assert [name for name in names(run_doctor(capsys, run)[1]) if "budget" in name] == names_found


@pytest.mark.parametrize("kind", ["grpo", "ppo", "sft", "vae", "bottleneck"])
@pytest.mark.parametrize("steps", [[1, 2, 3, 3, 4], [1, 1, 2, 2, 3, 3], [1, 2, 3, 1, 2]])
def test_rows_of_two_processes(kind: str, steps: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, [{"step": step, "loss": 0.1} for step in steps], {"kind": kind, "clip": 0.2})
    status, [found] = run_doctor(capsys, run)
    assert (status, found["name"], found["severity"]) == (1, "rows-out-of-order", "error")


@pytest.mark.parametrize("kind", ["grpo", "sft", "vae"])
@pytest.mark.parametrize(
    ("steps", "checkpoint", "first", "end"),
    [([1, 2, 3, 7, 8], None, 4, 6), ([5, 6, 7], None, 1, 4), ([1, 2, 3], 8, 4, 8), ([10, 20, 50], None, 30, 40)],
)
def test_rows_that_are_missing_are_reported(
    kind: str,
    steps: list[int],
    checkpoint: int | None,
    first: int,
    end: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = write_run(tmp_path, [{"step": step, "loss": 0.1} for step in steps], {"kind": kind, "clip": 0.2})
    if checkpoint is not None:
        (run / "checkpoints" / f"checkpoint-{checkpoint}").mkdir(parents=True)
    found = next(one for one in run_doctor(capsys, run)[1] if one["name"] == "missing-rows")
    assert (found["severity"], found["evidence"]["first missing step"]) == ("warning", first)
    assert found["evidence"]["last of the range"] == end


def test_a_resumed_run_reports_rows_that_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(write_run(tmp_path, [{"step": step, "loss": 0.1} for step in (1, 2, 3, 9)], {"kind": "sft"}))
    run.remove_rows_after(8)
    assert f"{run.path / 'metrics.jsonl'}: the rows of the steps 4 to 8 are missing" in capsys.readouterr().err
    run.remove_rows_after(3)
    assert capsys.readouterr().err == ""


def test_evaluations_of_two_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, correct_rows())
    (run / "evaluations.jsonl").write_text('{"step": 0}\n{"step": 0}\n')
    assert names(run_doctor(capsys, run)[1]) == ["rows-out-of-order"]


@pytest.mark.parametrize("kind", ["grpo", "ppo", "sft", "vae"])
def test_a_run_that_died_of_nan(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 0.2}, {"step": 3, "loss": None, "gradient_norm": None}]
    run = write_run(tmp_path, rows, {"kind": kind, "steps": 60, "clip": 0.2})
    status, found = run_doctor(capsys, run)
    assert (status, names(found)) == (1, ["training-not-finite", "unfinished"])
    assert found[0]["evidence"]["first step"] == 3
    write_run(tmp_path, rows[:2], {"kind": kind, "steps": 60, "clip": 0.2})  # training stopped before the row
    status, [found] = run_doctor(capsys, run)
    assert (status, found["name"], found["severity"]) == (1, "unfinished", "warning")
    assert found["evidence"] == {"last step": 2, "steps": 60}


def test_a_run_that_trains_or_that_has_a_model_is_not_unfinished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", correct_rows(), {"kind": "grpo", "steps": 60})
    assert names(run_doctor(capsys, run)[1]) == ["unfinished"]
    with run_lock(run):
        assert run_doctor(capsys, run) == (0, [])
    (run / "model").mkdir()
    assert run_doctor(capsys, run) == (0, [])


def test_a_run_that_took_all_steps_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = correct_rows()
    run = write_run(tmp_path / "run", rows, {"kind": "grpo", "steps": rows[-1]["step"]})
    status, [found] = run_doctor(capsys, run)
    assert (status, found["name"]) == (1, "unfinished")
    assert "it has no trained model" in found["cause"]
    (run / "model").mkdir()
    assert run_doctor(capsys, run) == (0, [])


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "lo\n', "not JSON"),
        ("\n", "not JSON"),
        ("\x00\x00\x00\n", "not JSON"),
        ("[" * 100_000 + "\n", "not JSON"),
        ("[1]\n", 'a number under "step"'),
        ("3\n", 'a number under "step"'),
        ('{"loss": 1}\n', 'a number under "step"'),
        ('{"step": "3"}\n', 'a number under "step"'),
        ('{"step": null}\n', 'a number under "step"'),
        ('{"step": NaN}\n', 'a number under "step"'),
    ],
)
def test_a_damaged_line_is_named(
    name: str, line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, correct_rows())
    write_run(tmp_path, '{"step": 1}\n{"step": 2}\n' + line + '{"step": 4}\n', name=name)
    assert main(["doctor", str(run)]) == 2
    captured = capsys.readouterr()
    assert f"{run / name}: line 3: " in captured.err
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


def test_bytes_that_are_not_text_and_an_unfinished_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, correct_rows())
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "kl_policy_')
    assert run_doctor(capsys, run) == (0, [])
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n")
    assert main(["doctor", str(run)]) == 2
    assert "line 13: " in capsys.readouterr().err


def test_a_damaged_run_of_a_directory_does_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", correct_rows())
    for name, content in (("no-step", ""), ("binary", "\x00\xff" * 50), ("half", '{"step": 1}\n{"st\n')):
        write_run(write_run(tmp_path / name, correct_rows()), content, name="metrics.jsonl")
    configs = {"config": "{", "list": "[1]", "null": '{"kind": null}', "number": "3"}
    for name, content in configs.items():
        (write_run(tmp_path / name, correct_rows()) / "config.json").write_text(content)
    capsys.readouterr()
    assert main(["doctor", "--json", str(tmp_path)]) == 1
    findings = {
        Path(run).name: [finding["name"] for finding in found]
        for run, found in json.loads(capsys.readouterr().out)["findings"].items()
    }
    damaged = {name: ["unreadable"] for name in ("no-step", "binary", "half", *configs)}
    assert findings == {"a": [], **damaged}
    assert main(["doctor", str(tmp_path / "config")]) == 2  # a run that is named must be readable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\xff\xfe" * 100, "the file has no complete line"),
        (b"", "the file is empty, but the run was evaluated after step 1"),
        (None, "the file is missing, but the run was evaluated after step 1"),
    ],
)
def test_the_absence_of_rows_is_explained(
    content: bytes | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", correct_rows())
    write_run(run, '{"step": 0}\n{"step": 12}\n', name="evaluations.jsonl")
    (run / "metrics.jsonl").unlink()
    if content is not None:
        (run / "metrics.jsonl").write_bytes(content)
    assert main(["doctor", str(run)]) == 2
    assert message in capsys.readouterr().err


def test_every_run_of_a_directory_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", correct_rows())
    write_run(tmp_path / "b" / "inner", correct_rows()[5:6] * 2)
    write_run(tmp_path / "c", correct_rows(), {"kind": "sft"})
    (tmp_path / "notes").mkdir()
    capsys.readouterr()
    assert main(["doctor", "--json", str(tmp_path)]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {path: [finding["name"] for finding in of_run] for path, of_run in findings.items()} == {
        str(tmp_path / "a"): [],
        str(tmp_path / "b" / "inner"): ["rows-out-of-order"],
        str(tmp_path / "c"): [],
    }
    assert main(["doctor", str(tmp_path)]) == 1
    assert f"{tmp_path / 'a'}: nothing found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "the directory is empty"),
        (["adapter_config.json", "adapter_model.safetensors"], "it is an adapter"),
        (["events.out.tfevents.1700000000.host.1.0"], "logs of TensorBoard"),
        (["model.safetensors", "optimizer.safetensors"], "it has weights"),
        (["a.txt", "b.txt", "c.txt", "d.txt"], "it has a.txt, b.txt, c.txt, ..."),
    ],
)
def test_directories_that_are_no_run(
    files: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    assert main(["doctor", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("notes.json", '{"a": 1}', "expected settings of TRL"),
        ("empty.json", "{}", "an empty object"),
        ("config.json", '{"model_type": "llama", "vocab_size": 9}', "expected settings of TRL"),
        ("config.json", '{"kind": "vae"}', "expected settings of TRL"),
        ("adapter_config.json", '{"peft_type": "LORA", "r": 8}', "expected settings of TRL"),
        ("trainer_state.json", '{"log_history": []}', "expected the log of a policy's training"),
        ("trainer_state.json", '{"log_history": [3, null]}', "expected the log of a policy's training"),
        ("metrics.jsonl", '{"step": 1}\n', "pass the run directory"),
        ("report.html", "<html>", "pass the run directory"),
        ("events.out.tfevents.17.host", "\x00", "logs of TensorBoard"),
        ("model.safetensors", "\x00\x01\xff", "not JSON"),
        ("deep.json", "[" * 100_000, "not JSON"),
        ("deep.json", '{"beta": ' * 50_000, "not JSON"),
        ("empty.yaml", "", "expected an object of settings"),
        ("grpo.json", '{"beta": "high"}', "expected a finite number as beta"),
        ("grpo.json", '{"beta": Infinity}', "expected a finite number as beta"),
        ("grpo.json", '{"learning_rate": [1]}', "expected a finite number as learning_rate"),
        ("grpo.json", '{"top_p": NaN}', "expected a finite number as top_p"),
        ("config.json", '{"kind": "grpo", "settings": 3}', "expected an object of settings"),
        ("config.json", '{"kind": "ppo", "budget": 3}', "as budget"),
    ],
)
def test_files_that_are_no_run(
    name: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["doctor", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("budget", [{"target": "x"}, {"target": 0}, {"target": None}, {"target": 0.1, "price_max": []}])
def test_a_budget_that_is_not_a_number(budget: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, correct_rows(), {"kind": "grpo", "budget": {"unit": "token", **budget}})
    assert main(["doctor", str(run)]) == 2
    assert "of the budget, got" in capsys.readouterr().err


def test_a_trainer_state_file_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": step, "reward": 1.0, "kl": 0.01 * step, "loss": 0.1} for step in range(2, 9)]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": rows}))
    assert run_doctor(capsys, path) == (0, [])
    path.write_text(json.dumps({"log_history": [*rows, {"step": 9, "reward": 1.0, "loss": math.nan}]}))
    assert names(run_doctor(capsys, path)[1]) == ["training-not-finite"]


def test_an_interrupt_has_its_own_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("kullback.doctor.run"), "doctor_path", interrupt)
    assert main(["doctor", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "kullback: interrupted\n"
