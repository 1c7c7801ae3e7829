"""`kullback doctor` on runs that were really trained: faults planted in the trainer, sound runs, and bad input."""

import ast
import copy
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import kullback.integrations.trl as budget_trainer
from kullback import KLBudget
from kullback.budget.controllers import PPO2017
from kullback.cli import main
from kullback.integrations.transformers import completion_log_prob, last_hidden
from kullback.train.grpo import GRPOPlan, train_grpo

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

TESTS = ("policy/test_doctor.py", "train/test_checkup.py", "cli/test_doctor.py")
Train = Callable[..., Path]
Holder = budget_trainer._BudgetHolder
ROWS = [{"prompt": f"{a}+{a + 1}="} for a in range(40)]


def longer(completions: Sequence[str], **_: Any) -> list[float]:
    return [len(text) / 6 for text in completions]


def shorter(completions: Sequence[str], **_: Any) -> list[float]:
    return [1 - len(text) / 6 for text in completions]


def like_longer(completions: Sequence[str], **_: Any) -> list[float]:
    return [len(text) / 12 for text in completions]


def alike(completions: Sequence[str], **_: Any) -> list[float]:
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


def told(capsys: pytest.CaptureFixture[str], *paths: Path) -> tuple[int, list[dict[str, Any]]]:
    """The exit status, and the findings in JSON."""
    capsys.readouterr()
    status = main(["doctor", "--json", *map(str, paths)])
    out = capsys.readouterr().out
    return status, [one for findings in json.loads(out)["findings"].values() for one in findings]


def names(findings: list[dict[str, Any]]) -> list[str]:
    assert all(one["cause"] and one["remedy"] and one["evidence"] for one in findings)
    return [one["name"] for one in findings]


def test_a_held_run_is_clean(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(KLBudget(0.02), steps=30)
    assert told(capsys, run) == (0, [])
    assert main(["doctor", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}: nothing found\n"


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_a_budget_out_of_reach(train: Train, capsys: pytest.CaptureFixture[str], unit: Any) -> None:
    budget = KLBudget(6.0, unit=unit, price=5.1e-4)
    status, [found] = told(capsys, train(budget, settings={"learning_rate": 1e-4}))
    assert status == 1
    assert (found["name"], found["severity"]) == ("budget-not-reached", "warning")
    other = "sequence" if unit == "token" else "token"
    assert found["evidence"][f"the same per {other}"] > 0


def test_beta_at_its_ceiling(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    # The pull that lets the price rest is taken away: the price alone has to hold, and cannot.
    monkeypatch.setattr(Holder, "_hold", lambda self, budget: 1.0)
    _, found = told(capsys, train(KLBudget(1e-3, price=0.45, learning_rate_scale=1.0), steps=20))
    assert names(found) == ["over-budget", "beta-at-ceiling"]
    assert found[1]["evidence"]["beta's ceiling"] == pytest.approx(500)


def test_a_budget_that_is_not_held(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(Holder, "_hold", lambda self, budget: 1.0)
    _, found = told(capsys, train(KLBudget(1e-3, learning_rate_scale=1.0)))
    assert names(found) == ["over-budget"]
    assert found[0]["evidence"]["kl/budget"] > 1.2


def test_dropout_in_the_model(
    train: Train, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_dropout = tmp_path / "with-dropout"
    AutoModelForCausalLM.from_pretrained(tiny_model, attention_dropout=0.1).save_pretrained(with_dropout)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(with_dropout)
    _, found = told(capsys, train(None, model=with_dropout, steps=2))
    assert names(found) == ["dropout"]
    assert found[0]["evidence"]["attention_dropout"] == 0.1
    assert found[0]["evidence"]["kl_policy_ref_per_token at step 1"] > 1e-3


def test_a_wrong_reference(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def moved(self: Any, trainer: Any, init: Any = Holder.__init__) -> None:
        with torch.no_grad():
            trainer.ref_model.lm_head.weight.mul_(1.1)
        init(self, trainer)

    monkeypatch.setattr(Holder, "__init__", moved)
    _, found = told(capsys, train(None, steps=2))
    assert names(found) == ["kl-at-start"]


def test_a_reference_replaced_on_the_way(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def stepped(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 8:
            self.reference.load_state_dict(self.policy.state_dict())

    monkeypatch.setattr(Holder, "on_step_end", stepped)
    _, found = told(capsys, train(None, evaluate_every=0))
    assert names(found) == ["reference-moved"]
    assert found[0]["evidence"]["step"] == 9


def test_a_sign_turned(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def measured(self: Any, original: Any = Holder.measured) -> Any:
        return tuple(replace(one, value=-one.value) for one in original(self))

    monkeypatch.setattr(Holder, "measured", measured)
    _, found = told(capsys, train(None, evaluate_every=0))
    assert names(found) == ["negative-kl"]
    assert found[0]["severity"] == "error"


def test_padding_in_the_lengths(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def record(self: Any, inputs: Any, scored: Any, original: Any = Holder.record) -> None:
        original(self, inputs, replace(scored, mask=torch.ones_like(scored.mask)))

    monkeypatch.setattr(Holder, "record", record)
    _, found = told(capsys, train(None, rewards=[shorter], watched=[], evaluate_every=0))
    assert names(found) == ["mask-mismatch"]


def test_another_estimator_in_the_log(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def record(self: Any, inputs: Any, scored: Any, original: Any = Holder.record) -> None:
        original(self, inputs, replace(scored, kl=scored.kl.detach() * 2))

    monkeypatch.setattr(Holder, "record", record)
    _, found = told(capsys, train(None, steps=20, settings={"per_device_train_batch_size": 64}))
    assert names(found) == ["logged-is-not-judged"]
    assert found[0]["evidence"]["median of logged/judged"] == pytest.approx(2, rel=0.25)


def test_an_infinite_kl(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def measured(self: Any, original: Any = Holder.measured) -> Any:
        return tuple(replace(one, value=math.inf) for one in original(self))

    monkeypatch.setattr(Holder, "measured", measured)
    _, found = told(capsys, train(None, steps=2))
    assert names(found) == ["kl-not-finite"]


def test_rewards_that_are_all_alike(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = told(capsys, train(None, rewards=[alike], watched=[]))
    assert names(found) == ["nothing-trains"]
    assert "rewarded alike" in found[0]["cause"]


def test_a_reward_that_is_cheated(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(None, watched=[shorter], steps=40, evaluate_every=20, evaluation_rows=ROWS * 4)
    status, found = told(capsys, run)
    assert status == 1
    assert names(found) == ["reward-hacking"]
    assert main(["doctor", str(run)]) == 1
    said = capsys.readouterr().out
    assert "error reward-hacking: " in said
    assert "evidence: proxy longer 0." in said
    assert "remedy: hold the KL" in said


def test_settings_of_a_run_count_too(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(None, steps=2, settings={"top_p": 0.9})
    assert names(told(capsys, run)[1]) == ["sampling-filter"]
    assert names(told(capsys, run / "config.json")[1]) == ["sampling-filter"]


def repeating(completions: Sequence[str], **_: Any) -> list[float]:
    return [max(map(text.count, text), default=0) / 6 for text in completions]


def test_text_that_degenerates(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = told(capsys, train(None, rewards=[repeating], watched=[], steps=40))
    assert names(found) == ["degeneration"]
    assert found[0]["evidence"].keys() >= {"entropy", "proxy repeating"}


def test_a_policy_that_gets_worse(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    # Advantages of the wrong sign: what is rewarded is unlearned.
    def scored(self: Any, inputs: Any, original: Any = GRPOTrainer._generate_and_score_completions) -> Any:
        made = original(self, inputs)
        made["advantages"] = -made["advantages"]
        return made

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", scored)
    _, found = told(capsys, train(None, steps=20, settings={"per_device_train_batch_size": 64}))
    assert names(found) == ["collapse"]


def test_a_beta_without_bounds(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = told(capsys, train(PPO2017(1e-7), steps=18, evaluate_every=0))
    assert "beta-runs-away" in names(found)
    away = next(one for one in found if one["name"] == "beta-runs-away")
    assert away["evidence"]["last beta"] > 1e4 * away["evidence"]["first beta"]


def test_k1_in_the_log(train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    def record(self: Any, inputs: Any, scored: Any, original: Any = Holder.record) -> None:
        ids, mask = scored.ids, scored.mask
        with torch.no_grad():
            hidden = last_hidden(self.policy, ids, scored.attention)[:, -mask.shape[1] - 1 :]
            ours = completion_log_prob(self.head, hidden, ids, mask, temperature=1.0)
            theirs = completion_log_prob(self.ref_head, scored.ref_hidden, ids, mask, temperature=1.0)
        original(self, inputs, replace(scored, kl=(ours - theirs) * mask))

    monkeypatch.setattr(Holder, "record", record)
    _, found = told(capsys, train(None, evaluate_every=0, settings={"learning_rate": 1e-3}))
    assert [(one["name"], one["severity"]) for one in found] == [("negative-kl", "warning")]


# -- what TRL writes --


class OtherEngine(GRPOTrainer):
    """Completions, and their log-probabilities, from a second copy of the model that nobody sends weights to."""

    def __init__(self, model: Any, *arguments: Any, **words: Any) -> None:
        self.engine = copy.deepcopy(model)
        super().__init__(model, *arguments, **words)
        self.use_vllm = True  # what is logged of an engine is logged with this

    def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **words: Any) -> Any:
        self.use_vllm = False
        completions, _ = super()._generate_single_turn(prompt_ids, *arguments, **words)
        self.use_vllm = True
        log_probs = []
        for prompt, completion in zip(prompt_ids, completions, strict=True):
            ids = torch.tensor([[*prompt, *completion]])
            with torch.no_grad():
                every = self.engine(ids).logits[0].log_softmax(-1)
            log_probs.append([float(every[len(prompt) + t - 1, token]) for t, token in enumerate(completion)])
        return completions, log_probs


class TurnedSign(GRPOTrainer):
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


def test_a_plain_trl_run(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = trl_run(GRPOTrainer, tiny_model, tmp_path / "sound")
    assert told(capsys, sound) == told(capsys, sound / "checkpoint-5") == (0, [])
    turned = trl_run(TurnedSign, tiny_model, tmp_path / "turned")
    assert names(told(capsys, turned)[1]) == ["negative-kl"]
    assert told(capsys, sound, turned)[0] == 1


def test_an_engine_that_nobody_sends_weights_to(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = told(capsys, trl_run(OtherEngine, tiny_model, tmp_path / "run"))
    assert names(found) == ["engine-mismatch"]
    assert found[0]["evidence"]["median |log-probability difference|, nats"] > 0.05


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"beta": 0.04}, []),
        ({"beta": 0.04, "use_bias_correction_kl": False}, ["logged-is-not-trained"]),
        ({"beta": 0.04, "sync_ref_model": True, "top_p": 0.95}, ["reference-moved", "sampling-filter"]),
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, ["engine-mismatch"]),
        ({"beta": -0.1, "learning_rate": 0.0}, ["kl-sign", "nothing-trains"]),
        ({"top_p": 1.0, "top_k": 0, "min_p": None}, []),
    ],
)
def test_settings_in_a_file(
    settings: dict[str, Any], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grpo.json"
    path.write_text(json.dumps(settings))
    status, found = told(capsys, path)
    assert names(found) == expected
    assert status == (1 if expected else 0)


# -- bad input --


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "no such file or directory"),
        ({}, "no run here, expected a config.json"),
        ({"config.json": '{"model_type": "llama"}'}, "expected a run of kullback train grpo or ppo"),
        ({"config.json": "[1]"}, "expected a run of kullback train grpo or ppo"),
        ({"config.json": '{"kind": "supervised"}'}, "expected a run of kullback train grpo or ppo"),
        ({"config.json": '{"kind": "grpo"'}, "not JSON"),
        ({"config.json": '{"kind": "grpo"}'}, "no step was taken yet"),
        ({"config.json": '{"kind": "grpo"}', "metrics.jsonl": '{"step": 1\n'}, "a line that is not JSON"),
        ({"trainer_state.json": '{"log_history": [{"loss": 1.0}]}'}, "expected the log of a policy's training"),
        ({"trainer_state.json": "{"}, "not JSON"),
    ],
)
def test_bad_input_gets_one_line(
    files: dict[str, str] | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if files is not None:
        run.mkdir()
        for name, text in files.items():
            (run / name).write_text(text)
    assert main(["doctor", str(run)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_settings_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grpo.yaml"
    path.write_text("beta: -1e-2\nlearning_rate: 1e-6\ntop_p: 0.9\nmodel_name_or_path: mine\n")
    assert names(told(capsys, path)[1]) == ["kl-sign", "sampling-filter"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"clip": None}, ["nothing-holds"]),
        ({"clip": None, "budget": {"kind": "FixedBeta", "beta": 3.0}}, []),
        ({"clip": None, "budget": {"kind": "FixedBeta", "beta": 0.0}}, ["nothing-holds"]),
        ({"clip": None, "budget": {"kind": "KLBudget", "target": 0.01}}, []),
        ({"settings": {"learning_rate": 0.0, "beta": -1.0}}, ["nothing-trains"]),
    ],
)
def test_a_ppo_config_has_rules_of_its_own(
    changes: dict[str, Any], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"kind": "ppo", "clip": 0.2, "budget": None, "settings": {}} | changes))
    assert names(told(capsys, path)[1]) == expected


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("settings", "beta: 0.04", "not JSON"),
        ("settings", "[]", "expected an object of settings"),
        ("settings.yaml", "beta: [", "not YAML"),
        ("settings.yml", "- 1", "expected an object of settings"),
        ("settings.yaml", "!!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_files_of_no_settings(
    name: str, text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert main(["doctor", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_every_finding_is_explained() -> None:
    root = Path(__file__).parents[2]
    sources = [*(root / "src/kullback/policy").glob("*.py"), *(root / "src/kullback/train/checkup").glob("*.py")]
    calls = [
        node
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"
    ]
    raised = {call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)}
    page = (root / "docs" / "doctor.md").read_text()
    explained = set(re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE))
    assert raised == explained
    tests = "".join((root / "tests" / name).read_text() for name in TESTS)
    assert not {name for name in explained if f'"{name}"' not in tests}


def test_a_run_is_read_without_the_heavy_libraries(tmp_path: Path) -> None:
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
