"""Settings and options that are invalid are refused in one line, as far as possible without an import of a library."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kullback.cli import main
from kullback.errors import InputError
from kullback.train.trl_fields import check_settings, field_types, options_instead, require_valid_values

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

ROW = '{"prompt": "1+2=", "completion": "3"}\n'
REWARD = "def longer(completions, **_):\n    return [len(text) / 4 for text in completions]\n"


@pytest.fixture
def words(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A short valid command of each recipe, in a new working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "by_length.py").write_text(REWARD)
    Path("rows.jsonl").write_text(ROW * 8)
    model = ["--model", str(tiny_model), "--output", "run", "--steps", "1"]
    batch = ["--set", "per_device_train_batch_size=2", "--set", "gradient_checkpointing=false"]
    generations = ["--set", "num_generations=2", "--set", "max_completion_length=2"]
    return {
        "grpo": [*model, "--prompts", "rows.jsonl", "--reward", "by_length:longer", *batch, *generations],
        "sft": [*model, "--data", "rows.jsonl", *batch],
        "distill": [*model, "--teacher", str(tiny_model), "--prompts", "rows.jsonl", *batch, *generations[2:]],
        "ppo": [
            "--env",
            "CartPole-v1",
            "--output",
            "run",
            "--steps",
            "64",
            "--set",
            "n_steps=32",
            "--set",
            "batch_size=16",
        ],
        "vae": ["--output", "run", "--steps", "2", "--hidden", "4"],
        "bottleneck": ["--output", "run", "--steps", "2", "--hidden", "4", "--budgets", "1"],
    }


def refusal(recipe: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line of a command that is refused."""
    capsys.readouterr()
    assert main(["train", recipe, *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("kullback: ")
    assert len(captured.err) < 700
    assert not Path("run").exists()
    return captured.err


@pytest.mark.parametrize("name", ["GRPOConfig", "RLOOConfig", "SFTConfig"])
def test_the_fields_are_those_of_the_configuration(name: str) -> None:
    import trl

    fields = {field.name for field in dataclasses.fields(getattr(trl, name)) if field.init}
    assert set(field_types(name)) == fields
    # Fields of later versions of TRL may be absent here, but each must have been a field.
    assert set(options_instead(name)) <= fields


# Values that a user may try, and a part of the message. All are refused before TRL is imported.
EARLY = {
    "learning_rate=-1": "in [0, inf)",
    "learning_rate=nan": "got nan",
    "learning_rate=inf": "in [0, inf)",
    "learning_rate=fast": "expected a number, got 'fast'",
    "learning_rate=true": "expected a number, got 'true'",
    "learning_rate=": "expected a number, got ''",
    "temperature=0": "in (0, inf)",
    "temperature=-0.5": "in (0, inf)",
    "max_completion_length=0": "in [1, inf)",
    "max_completion_length=2.5": "expected an integer",
    "num_generations=1": "in [2, inf)",
    "num_iterations=0": "in [1, inf)",
    "gradient_accumulation_steps=0": "in [1, inf)",
    "per_device_train_batch_size=-8": "in [1, inf)",
    "adam_beta2=1": "in [0, 1)",
    "top_p=0": "in (0, 1]",
    "weight_decay=-0.1": "in [0, inf)",
    "warmup_steps=nan": "got nan",
    "bf16=maybe": "expected true or false",
    "use_vllm=perhaps": "expected true or false",
    "use_vllm=true": "the package vllm, which is not installed",
    "report_to=wandb": "the package wandb, which is not installed",
    "beta=0.1": "see --budget",
    "seed=1": "see --seed",
    "max_steps=3": "see --steps",
    "num_train_epochs=3": "see --steps",
    "logging_steps=5": "every step is logged",
    "output_dir=x": "see --output",
    "resume_from_checkpoint=x": "see --resume",
    "eval_strategy=steps": "see --evaluate-every",
    "save_only_model=true": "--resume requires",
    "model_init_kwargs={}": "see --model",
    "learning-rate=1": "the nearest is learning_rate",
    "LEARNING_RATE=1": "GRPOConfig has no LEARNING_RATE",
    "lr=1": "GRPOConfig has no lr; the nearest is ",
    "learning_rate": "expected key=value",
    "=": "expected key=value",
}


@pytest.mark.parametrize(("word", "message"), EARLY.items())
def test_an_invalid_setting_is_refused_early(word: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_settings([word], "GRPOConfig")
    assert message in str(caught.value)
    assert str(caught.value).startswith("--set ")


@pytest.mark.parametrize(
    "word",
    ["learning_rate=1e-5", "delta=none", "bf16=False", "report_to=none", "reward_weights=[1, 2]", "loss_type=grpo",
     "max_completion_length=4", "save_steps=0.5", "top_k=0", 'lr_scheduler_kwargs={"a": 1}'],
)  # fmt: skip
def test_a_valid_setting_is_not_refused(word: str) -> None:
    check_settings([word], "GRPOConfig")


def test_packing_is_refused_and_not_ignored() -> None:
    with pytest.raises(InputError, match="packing cannot be set"):
        check_settings(["packing=true"], "SFTConfig")


def test_the_values_of_a_plan_are_checked_too() -> None:
    with pytest.raises(InputError, match=r"temperature=0\.0"):
        require_valid_values({"temperature": 0.0})


# Settings that only the library can refuse.
LATE = {
    "loss_type=foo": "foo",
    "optim=foo": "--set optim=foo: expected one of",
    "hub_strategy=foo": "--set hub_strategy=foo: expected one of",
    "sync_ref_model=true": "the reference of the KL does not change",
    "lr_scheduler_type=foo": "foo",
    "lr_scheduler_type=true": "true",
    "save_strategy=false": "false",
    "scale_rewards=foo": "foo",
    "generation_batch_size=3": "",
    "num_generations=3": "",
    "report_to=true": "",
    "deepspeed=nope.json": "",
    "lr_scheduler_type=cosine_with_min_lr": "",
    'lr_scheduler_kwargs={"nope": 1}': "nope",
    "lr_scheduler_kwargs={1": "not JSON",
    "reward_weights=[1, 2]": "one finite number for each --reward",
    "reward_weights=[NaN]": "one finite number for each --reward",
    "importance_sampling_level=foo": "foo",
    "cache_implementation=foo": "foo",
}


@pytest.mark.parametrize(("word", "message"), LATE.items())
def test_a_setting_that_the_library_refuses_gives_one_line(
    word: str, message: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal("grpo", [*words["grpo"], "--set", word], capsys)


@pytest.mark.parametrize(
    ("word", "message"),
    {"eos_token=nope": "eos_token", "padding_free=true": "padding_free", "loss_type=foo": "nll"}.items(),
)
def test_a_setting_of_sft_that_the_library_refuses_gives_one_line(
    word: str, message: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal("sft", [*words["sft"], "--set", word], capsys)


def test_an_error_without_a_number_of_the_system_is_an_error_of_the_library() -> None:
    from kullback.runs.library_errors import library_errors

    with pytest.raises(InputError, match="SFTTrainer: OSError: no connection"), library_errors("SFTTrainer"):
        raise OSError("no connection")
    with pytest.raises(OSError, match="No space left") as caught, library_errors("SFTTrainer"):
        raise OSError(28, "No space left on device")
    assert not isinstance(caught.value, InputError)


def test_weights_of_rewards_can_be_set(words: dict[str, list[str]]) -> None:
    from kullback.runs.run_directory import RunDirectory

    assert main(["train", "grpo", *words["grpo"], "--set", "reward_weights=[0.5]"]) == 0
    row = RunDirectory(Path("run")).metrics()[0]
    assert row["reward"] == pytest.approx(0.5 * row["rewards/longer"], rel=1e-6)


@pytest.mark.parametrize("value", ["[1,-1]", "[0]", "[0, 0]", "x", "[nan, 1]", "3", "[[1], [2]]"])
def test_an_interval_of_rewards_has_two_increasing_ends(value: str) -> None:
    check_settings(["reward_clip_range=[-1, 1]", "learning_rate=1e-5"], "RLOOConfig")
    with pytest.raises(InputError, match=r"expected an interval \[low, high\] with low < high"):
        check_settings([f"reward_clip_range={value}"], "RLOOConfig")


ALL = ["grpo", "distill", "sft", "ppo", "vae", "bottleneck"]
OPTIONS = {
    ("--seed", "-1"): "--seed: expected an integer from 0",
    ("--seed", str(2**32)): "--seed: expected an integer from 0",
    ("--seed", "1.5"): "--seed",
    ("--steps", "0"): "--steps: expected 1 or more, got 0",
    ("--steps", "-3"): "--steps: expected 1 or more, got -3",
    ("--steps", "1e3"): "--steps",
    ("--evaluate-every", "-1"): "--evaluate-every: expected",
    ("--nope", "1"): "has no option --nope",
}


@pytest.mark.parametrize("recipe", ALL)
@pytest.mark.parametrize(("option", "message"), OPTIONS.items())
def test_an_invalid_option_is_refused(
    recipe: str,
    option: tuple[str, str],
    message: str,
    words: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refusal(recipe, [*words[recipe], *option], capsys)


@pytest.mark.parametrize("recipe", ["grpo", "ppo", "vae"])
@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1", "1e-300", "5e-324", "much"])
def test_an_invalid_budget_is_refused(
    recipe: str, value: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "budget" in refusal(recipe, [*words[recipe], "--budget", value], capsys)


@pytest.mark.parametrize(
    ("word", "message"),
    {
        "learning_rate=-1": "expected a number >= 0",
        "learning_rate=nan": "expected a value like",
        "batch_size=7": "expected a divisor",
        "n_steps=0": "expected 1 or more",
        "gamma=2": "from 0 to 1",
        "net_arch=[]x": "expected a value like [64, 64]",
        "net_arch=[0]": "expected a value like [64, 64]",
        'net_arch={"pi": [4]}': "expected a value like [64, 64]",
        "activation_fn=Nope": "Nope",
        "device=tpu": "device",
        "policy_kwargs={": "not JSON",
        "policy_kwargs=[1]": "expected an object",
        'policy_kwargs={"net_arc": [1]}': "policy_kwargs has no net_arc; the nearest is net_arch",
        "policy_kwargs.activation=ReLU": "the nearest is activation_fn",
        "clip_range=0.1": "see --clip",
        "nsteps=3": "the nearest is n_steps",
        "use_sde=maybe": "expected a value like false",
    }.items(),
)
def test_an_invalid_setting_of_ppo_is_refused(
    word: str, message: str, words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal("ppo", [*words["ppo"], "--set", word], capsys)


def test_policy_kwargs_reach_the_policy(words: dict[str, list[str]]) -> None:
    from kullback.runs.run_directory import RunDirectory

    given = ["--set", 'policy_kwargs={"net_arch": {"pi": [5], "vf": [7]}, "activation_fn": "ReLU"}']
    assert main(["train", "ppo", *words["ppo"], *given, "--set", "policy_kwargs.ortho_init=false"]) == 0
    from safetensors.torch import load_file

    weights = load_file("run/model/model.safetensors")
    assert weights["mlp_extractor.policy_net.0.weight"].shape == (5, 4)
    assert weights["mlp_extractor.value_net.0.weight"].shape == (7, 4)
    assert RunDirectory(Path("run")).config()["settings"]["ortho_init"] is False
    # The saved policy is the reference of another run, which has the same architecture.
    tuned = ["--output", "tuned", "--reference", "run", "--budget", "0.05"]
    assert main(["train", "ppo", *words["ppo"], *tuned]) == 0


HEAVY = ("torch", "transformers", "trl", "datasets", "stable_baselines3", "gymnasium", "sklearn")
WITHOUT_LIBRARIES: dict[str, list[tuple[str, ...]]] = {
    "grpo": [
        ("--set", "learning_rat=1"), ("--set", "temperature=0"), ("--seed", "-1"), ("--steps", "0"), ("--budget", "0"),
        ("--model", "nope"), ("--prompts", "nope.jsonl"), ("--evaluate", "nope.jsonl"), ("--reward", "nope:nope"),
        ("--output", "."), ("--resume",), ("--evaluate-every", "-1"),
    ],
    "distill": [
        ("--set", "learning_rat=1"), ("--set", "temperature=0"), ("--teacher", "nope"), ("--teacher", ""),
        ("--weight", "2"), ("--prompts", "nope.jsonl"), ("--completion-column", "x"), ("--output", "."),
    ],
    "sft": [("--set", "learning_rat=1"), ("--data", "nope.jsonl"), ("--max-examples", "0"), ("--output", ".")],
    "ppo": [("--set", "n_step=1"), ("--set", "batch_size=7"), ("--clip", "-1"), ("--reference", "nope"), ("--resume",)],
    "vae": [("--data", "nope.npy"), ("--budget", "-1"), ("--latents", "0"), ("--output", "."), ("--free-bits", "-1")],
    "bottleneck": [("--budgets", "nan"), ("--batch-size", "1"), ("--learning-rate", "2")],
}  # fmt: skip


@pytest.mark.parametrize("recipe", WITHOUT_LIBRARIES)
def test_arguments_are_checked_before_libraries_are_imported(recipe: str, words: dict[str, list[str]]) -> None:
    commands = [["train", recipe, *words[recipe], *extra] for extra in WITHOUT_LIBRARIES[recipe]]
    code = (
        "import sys\nfrom kullback.cli import main\n"
        f"for words in {commands!r}:\n    assert main(words) == 2, words\n"
        f"    found = [name for name in {HEAVY!r} if name in sys.modules]\n    assert not found, (words, found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(commands), done.stderr


def test_a_resumption_names_the_settings_that_differ(
    words: dict[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "sft", *words["sft"], "--set", "learning_rate=0.1"]) == 0
    capsys.readouterr()
    changed: list[Any] = [*words["sft"], "--resume", "--set", "learning_rate=0.2", "--set", "weight_decay=0.1"]
    assert main(["train", "sft", *changed, "--seed", "3"]) == 2
    error = capsys.readouterr().err
    assert (
        "started with seed 0, got 3; --set learning_rate 0.1, got 0.2; --set weight_decay not set, got 0.1; resume"
        in error
    )
    assert "{" not in error
    assert "per_device" not in error
    assert main(["train", "grpo", *words["grpo"], "--resume"]) == 2
    assert "expected a run of kind grpo, got a run of kind sft" in capsys.readouterr().err
