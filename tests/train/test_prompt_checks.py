"""Prompts and examples that the tokenizer or the model of a run cannot use are refused, and name the row."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState

from kullback.cli import main
from kullback.errors import InputError
from kullback.runs.interrupts import Interrupts
from kullback.runs.run_directory import RunDirectory
from kullback.train.trainer_callbacks import require_all_steps

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

SHORT = {"prompt": "1+2=", "completion": "3"}
LONG = {"prompt": "+".join("123456789123456789") + "=", "completion": "90"}  # 36 tokens, for 32 positions
CHAT = {"prompt": [{"role": "user", "content": "1+2="}], "completion": [{"role": "assistant", "content": "3"}]}
BATCH = ["--set", "per_device_train_batch_size=2", "--set", "gradient_checkpointing=false"]


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs a recipe on rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sizes.py").write_text("def size(completions, **_):\n    return [float(len(x)) for x in completions]\n")

    def run_recipe(recipe: str, rows: list[dict[str, Any]], *words: str, model: Path = tiny_model) -> int:
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        common = ["train", recipe, "--model", str(model), "--output", "run", "--steps", "1", *BATCH]
        if recipe == "distill":
            common += ["--teacher", str(model), "--prompts", "rows.jsonl", "--set", "max_completion_length=3"]
        elif recipe in ("grpo", "rloo"):
            common += ["--prompts", "rows.jsonl", "--reward", "sizes:size", "--set", "num_generations=2"]
            common += ["--set", "max_completion_length=3"]
        else:
            common += ["--data", "rows.jsonl"]
        return main([*common, *words])

    return run_recipe


@pytest.mark.parametrize(
    ("recipe", "rows", "words", "message"),
    [
        ("grpo", [SHORT, SHORT, LONG], (), "--prompts, row 3: the prompt has 36 tokens, and a completion up to 3"),
        ("grpo", [SHORT] * 2, ("--set", "max_completion_length=40"), "--prompts, row 1: the prompt has 4 tokens"),
        ("grpo", [CHAT] * 2, (), "no chat template"),
        ("grpo", [{**SHORT, "id": 10**40, "n": 1}] * 2, (), 'the column "id" cannot be stored'),
        ("grpo", [{**SHORT, "x": {"a": [1]}}, {**SHORT, "x": {"a": ["b"]}}], (), 'the column "x" cannot be stored'),
        (
            "grpo",
            [SHORT],
            ("--set", "steps_per_generation=2"),
            "--prompts: expected at least 2 prompts, as many as a generation takes",
        ),
        ("sft", [SHORT], ("--set", "dataloader_drop_last=true"), "--data: expected at least 2 examples, a batch"),
        ("sft", [CHAT] * 2, (), "no chat template"),
        ("sft", [SHORT, SHORT, LONG], (), "--data, row 3: the example has 39 tokens, but the model has 32 positions"),
        ("sft", [SHORT] * 4, ("--set", "max_length=3"), "none of the 4 examples has a token of its completion"),
        ("sft", [SHORT] * 4, ("--set", "max_length=1"), "none of the 4 examples has a token of its completion"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    recipe: str,
    rows: list[dict[str, Any]],
    words: tuple[str, ...],
    message: str,
    run: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(recipe, rows, *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("run").exists()


def test_held_out_examples_without_a_token_are_refused(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("held-out.jsonl").write_text(json.dumps({**SHORT, "prompt": "1234567="}) + "\n")
    assert run("sft", [SHORT] * 2, "--evaluate", "held-out.jsonl", "--set", "max_length=6") == 2
    assert "--evaluate: none of the 1 examples" in capsys.readouterr().err


def test_examples_that_are_not_used_are_counted(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", [SHORT, SHORT, LONG], "--set", "max_length=30") == 0
    assert "--data: 1 of 3 examples have no token of their completion within max_length=30" in capsys.readouterr().err


def with_chat_template(model: Path, target: Path, template: str) -> Path:
    target.mkdir()
    for path in model.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / "chat_template.jinja").write_text(template)
    return target


TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize("recipe", ["grpo", "sft"])
def test_messages_are_used_with_a_chat_template(recipe: str, run: Any, tiny_model: Path, tmp_path: Path) -> None:
    model = with_chat_template(tiny_model, tmp_path / "chat", TEMPLATE)
    rows = [{"messages": CHAT["prompt"]}] if recipe == "grpo" else [{"messages": CHAT["prompt"] + CHAT["completion"]}]
    assert run(recipe, rows * 4, model=model) == 0


def test_a_prompt_that_the_chat_template_rejects_is_named(
    run: Any, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    model = with_chat_template(tiny_model, tmp_path / "chat", template)
    system = {"prompt": [{"role": "system", "content": "1"}, {"role": "user", "content": "2"}]}
    assert run("grpo", [{"prompt": CHAT["prompt"]}, system], model=model) == 2
    error = capsys.readouterr().err
    assert "--prompts, row 2: the chat template rejects the prompt: no system" in error
    assert error.count("\n") == 1


def test_a_text_is_learned_completely(run: Any) -> None:
    """The loss of a text counts all of its tokens but the first, which no token precedes."""
    assert run("sft", [{"text": "1+2=3"}] * 2) == 0
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = RunDirectory(Path("run")).config()
    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(config["model"])
    ids = torch.tensor([[*tokenizer("1+2=3")["input_ids"], tokenizer.eos_token_id]])
    logits = model(ids).logits[0, :-1].detach().log_softmax(-1)
    expected = -logits.gather(1, ids[0, 1:, None]).mean()
    assert RunDirectory(Path("run")).evaluations()[0]["train_cross_entropy_per_token"] == pytest.approx(
        float(expected), rel=1e-5
    )


def test_training_that_ends_early_without_an_error_is_refused() -> None:
    class Trainer:
        state = TrainerState(global_step=2)

    interrupts = Interrupts()
    require_all_steps(Trainer(), 2, interrupts)
    with pytest.raises(InputError, match="step 2: Trainer ended before step 3, without an error"):
        require_all_steps(Trainer(), 3, interrupts)
    interrupts.requested = True
    require_all_steps(Trainer(), 3, interrupts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words"), [("grpo", ()), ("rloo", ()), ("distill", ()), ("distill", ("--off-policy",))]
)
def test_arguments_of_the_chat_template_are_used_wherever_prompts_are_encoded(
    recipe: str, words: tuple[str, ...], run: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """In training, in the checks and in the evaluations: the template of this model fails without them."""
    template = "{% if x is not defined %}{{ raise_exception('x is missing') }}{% endif %}{{ x }}" + TEMPLATE
    model = with_chat_template(tiny_model, tmp_path / "chat", template)
    settings = ("--set", 'chat_template_kwargs={"x": 7}')
    assert run(recipe, [CHAT] * 4, *words, *settings, model=model) == 0
