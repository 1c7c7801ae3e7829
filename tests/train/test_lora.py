"""Adapters of the option `--lora`: its syntax, what is trained, saved and measured, and what is refused."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from kullback.cli import main
from kullback.errors import InputError
from kullback.integrations.transformers import load_tokenizer
from kullback.runs.run_directory import RunDirectory
from kullback.train.evaluation import Evaluation
from kullback.train.lora import parse_lora

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),  # on biases, which change the base model
]

PROMPTS = [{"prompt": f"{a}+{a + 1}=", "completion": str(2 * a + 1)} for a in range(16)]
SETTINGS = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 4,
    "learning_rate": 2e-2,
    "gradient_checkpointing": "false",
    "save_steps": 2,
}


def longer(completions: list[str], **_: Any) -> list[float]:
    return [len(text) / 4 for text in completions]


@pytest.fixture
def train(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a recipe with an adapter in the directory `run`."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    monkeypatch.setitem(sys.modules, "rewards_of_adapters", sys.modules[__name__])

    def run(lora: str, *words: str, recipe: str = "grpo", **settings: Any) -> int:
        data = ["--data", "rows.jsonl"] if recipe == "sft" else ["--prompts", "rows.jsonl"]
        reward = [] if recipe == "sft" else ["--reward", "rewards_of_adapters:longer"]
        drop = ("num_generations", "max_completion_length") if recipe == "sft" else ()
        fields = {key: value for key, value in {**SETTINGS, **settings}.items() if key not in drop}
        sets = [word for key, value in fields.items() for word in ("--set", f"{key}={value}")]
        model = ["--model", str(tiny_model), "--output", "run", "--lora", lora, "--steps", "4"]
        return main(["train", recipe, *model, *data, *reward, *sets, *words])

    return run


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("r=16", {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}),
        ("r=16,alpha=8,target=all-linear", {"r": 16, "lora_alpha": 8, "target_modules": "all-linear"}),
        ("target=q_proj", {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj"]}),
        ("r=4, alpha=0.5", {"r": 4, "lora_alpha": 0.5, "target_modules": "all-linear"}),
        (
            "lora_alpha=1,target_modules=q_proj+v_proj,lora_dropout=0.1,bias=all,use_rslora=true,dora=False",
            {
                "r": 16,
                "lora_alpha": 1,
                "target_modules": ["q_proj", "v_proj"],
                "lora_dropout": 0.1,
                "bias": "all",
                "use_rslora": True,
                "use_dora": False,
            },
        ),
        (
            "target_parameters=mlp.experts.gate_up_proj,modules_to_save=lm_head",
            {
                "r": 16,
                "lora_alpha": 32,
                "target_modules": [],
                "target_parameters": ["mlp.experts.gate_up_proj"],
                "modules_to_save": ["lm_head"],
            },
        ),
    ],
)
def test_settings_are_fields_of_peft(text: str, fields: dict[str, Any]) -> None:
    assert parse_lora(text) == fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank=8", "--lora rank=8: unknown key rank; the nearest is r"),
        ("r=8,alfa=8", "--lora alfa=8: unknown key alfa; the nearest is alpha"),
        ("r=8,targets=q_proj", "the nearest is target"),
        ("r=8,use_dorra=true", "the nearest is use_dora"),
        ("r=8,init_lora_weights=pissa", "unknown key init_lora_weights"),
        ("16", "expected key=value, such as r=16,alpha=32,target=all-linear, got '16'"),
        ("", "expected key=value"),
        ("r=8,target=q_proj,v_proj", "got 'v_proj'; names of modules are separated by +"),
        ("r=8,", "expected key=value"),
        ("r=", "expected an integer of 1 or more, got ''"),
        ("r=0", "expected an integer of 1 or more, got '0'"),
        ("r=1.5", "expected an integer of 1 or more"),
        ("alpha=0", "expected a finite number > 0"),
        ("alpha=nan", "expected a finite number > 0"),
        ("alpha=big", "expected a finite number > 0, got 'big'"),
        ("dropout=1", "expected a number in [0, 1), got '1'"),
        ("dropout=nan", "expected a number in [0, 1)"),
        ("bias=some", "expected one of none, all, lora_only, got 'some'"),
        ("dora=maybe", "expected true or false, got 'maybe'"),
        ("target=q_proj+", "names of modules, separated by +"),
        ("alpha=8,lora_alpha=8", "expected each setting once, got lora_alpha twice"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_lora(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("target=qproj", "LlamaForCausalLM has no module qproj; the nearest is q_proj"),
        ("target=all_linear", "has no module all_linear; the nearest is all-linear"),
        ("target=q_proj+v_prj", "has no module v_prj; the nearest is v_proj"),
        ("modules_to_save=head", "has no module head; the nearest is lm_head"),
        ("target_parameters=down_proj.weigth", "has no parameter down_proj.weigth; the nearest is weight"),
        ("target=lm_head", "adapter"),
    ],
)
def test_modules_that_the_model_lacks_are_refused(
    train: Any, lora: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(lora) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def test_without_peft_one_line_names_the_extra(train: Any, monkeypatch: Any, capsys: Any) -> None:
    def without_peft(name: str, *rest: Any) -> Any:
        return None if name == "peft" else find_spec(name, *rest)

    monkeypatch.setattr("kullback.train.run_checks.find_spec", without_peft)
    assert train("r=4") == 2
    assert capsys.readouterr().err == "kullback: peft is missing: pip install 'kullback[train]'\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "lora", "trained"),
    [
        ("grpo", "r=4", "q_proj.lora_A"),
        ("grpo", "r=2,target=q_proj+v_proj,use_dora=true", "lora_magnitude_vector"),
        ("rloo", "r=2,alpha=8,use_rslora=true,modules_to_save=lm_head+norm", "lm_head"),
        ("rloo", "r=2,target=embed_tokens+down_proj,dropout=0.2", "lora_embedding_A"),
    ],
)
def test_the_adapter_is_trained_saved_and_measured(
    recipe: str, lora: str, trained: str, train: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second_copy(*_: Any) -> None:
        raise AssertionError("a second copy of the model was made")

    monkeypatch.setattr("kullback.integrations.trl.copy_for_reference", second_copy)
    assert train(lora, "--budget", "0.02", recipe=recipe) == 0
    run = RunDirectory(Path("run"))
    assert run.config()["lora"] == parse_lora(lora)
    assert run.metrics()[0]["kl_policy_ref_per_token"] == 0.0
    assert sorted(path.name for path in run.model.glob("*.safetensors")) == ["adapter_model.safetensors"]
    assert any(trained in name for name in load_file(run.model / "adapter_model.safetensors"))
    # The saved adapter on the base model has the KL that the last evaluation of the run has.
    adapted, base = (
        AutoPeftModelForCausalLM.from_pretrained(run.model),
        AutoModelForCausalLM.from_pretrained(tiny_model),
    )
    tokenizer = load_tokenizer(tiny_model)
    evaluation = Evaluation(PROMPTS, [longer], tokenizer, max_new_tokens=4, temperature=1.0)
    row, _ = evaluation.measure(adapted.get_base_model(), base, step=4)
    assert row["kl_policy_ref_per_token"] > 0
    for key, value in run.evaluations()[-1].items():
        assert row[key] == pytest.approx(value, rel=1e-4, abs=1e-7), key
    assert main(["doctor", "run"]) == 0


@pytest.mark.slow
def test_a_model_that_was_not_saved_is_saved_from_the_last_checkpoint(train: Any) -> None:
    import shutil

    assert train("r=4,dora=true", "--budget", "0.02") == 0
    run = RunDirectory(Path("run"))
    adapter, samples = load_file(run.model / "adapter_model.safetensors"), run.samples()
    shutil.rmtree(run.model)
    assert train("r=4,dora=true", "--budget", "0.02", "--resume") == 0
    again = load_file(run.model / "adapter_model.safetensors")
    assert again.keys() == adapter.keys()
    assert all(torch.equal(again[name], weight) for name, weight in adapter.items())
    assert run.samples() == samples


def test_another_adapter_is_not_resumed(train: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("r=4", "--budget", "0.02") == 0
    assert train("r=8", "--budget", "0.02", "--resume") == 2
    assert "the run was started with lora.r 4, got 8; lora.lora_alpha 8, got 16" in capsys.readouterr().err


@pytest.mark.slow
def test_supervised_training_of_an_adapter(train: Any, tiny_model: Path) -> None:
    assert train("r=4", recipe="sft") == 0
    run = RunDirectory(Path("run"))
    losses = [row["train_cross_entropy_per_token"] for row in run.evaluations()]
    assert losses[-1] < losses[0]
    adapted = AutoPeftModelForCausalLM.from_pretrained(run.model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert any(bool(weight.any()) for name, weight in adapted.named_parameters() if "lora_B" in name)
    with adapted.disable_adapter():
        ids = torch.arange(8)[None]
        torch.testing.assert_close(adapted(ids).logits, base(ids).logits)
