"""Tests of run directories: JSON round trips, interrupted writes, checkpoints and errors."""

import json
import math
from pathlib import Path
from typing import Literal

import pytest

from kullback.errors import InputError
from kullback.runs.run_directory import RunDirectory


def test_rows_are_read_back_and_nan_becomes_none(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "a" / "run")
    run.create({"budget": {"target": 0.05}, "path": Path("x")})
    run.add_metrics({"step": 1, "reward": 0.5, "reward_std": math.nan})
    run.set_samples("before", [{"prompt": "</script>\u2028", "completion": "\ud800"}])
    run.set_samples("after", [])
    assert run.config() == {"budget": {"target": 0.05}, "path": "x"}
    assert run.metrics() == [{"step": 1, "reward": 0.5, "reward_std": None}]
    assert run.samples() == {"before": [{"prompt": "</script>\u2028", "completion": "\ud800"}], "after": []}


def test_completions_of_evaluations_are_stored_by_step_and_do_not_grow_without_limit(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create({})
    run.set_samples("before", [{"completion": "0"}])
    for step in range(10, 1010, 10):
        run.add_samples(step, [{"completion": str(step)}])
        stored = run.samples()
        assert stored["before"] == [{"completion": "0"}]
        assert stored[f"step {step}"] == [{"completion": str(step)}]
        assert len(stored) <= 9
    steps = [int(key.removeprefix("step ")) for key in stored if key != "before"]
    assert len(steps) >= 4
    assert steps == sorted(steps)
    assert min(steps) <= 500


def test_a_resumed_run_keeps_the_completions_up_to_its_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create({})
    run.set_samples("before", [])
    for step in (10, 20, 30):
        run.add_samples(step, [{"completion": str(step)}])
    run.remove_rows_after(20)
    assert list(run.samples()) == ["before", "step 10", "step 20"]
    # A finished run that is trained for longer: the completions after its training are those of that step.
    run.set_samples("after", [{"completion": "25"}])
    run.save_model(25, lambda directory: (directory / "weights").write_text(""))
    run.remove_rows_after(25)
    assert run.samples()["step 25"] == [{"completion": "25"}]
    assert "after" not in run.samples()
    run.set_samples("after", [{"completion": "25"}])
    run.remove_rows_after(20)  # a checkpoint before the end of the training
    assert list(run.samples()) == ["before", "step 10", "step 20"]
    run.remove_rows_after(-1)
    assert list(run.samples()) == ["before"]


@pytest.mark.parametrize("kind", ["training", "comparison"])
@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "llama", "hidden_size": 8}, "a config.json of another program"),  # a model of transformers
        ({"peft_type": "LORA"}, "a config.json of another program"),
        ([1], "a config.json of another program"),
        ({"kind": "ppo", "steps": 3}, "training"),
        ({"budget": None, "rewards": ["good"]}, "training"),  # a run of an earlier version
        ({"kind": "compare", "settings": {}}, "comparison"),
        ({"kind": "compare-file"}, "comparison"),
    ],
)
def test_only_a_run_of_the_same_kind_is_overwritten(
    config: object, found: str, kind: Literal["training", "comparison"], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "output")
    run.path.mkdir()
    (run.path / "config.json").write_text(json.dumps(config))
    (run.path / "model.safetensors").write_text("weights")
    if found == kind:
        run.check_output(resume=False, overwrite=True, kind=kind)
        return
    expected = {"training": "a training run", "comparison": "an earlier comparison"}[kind]
    message = f"expected {expected} to replace, found {found if found.startswith('a ') else 'a run of kind '}"
    with pytest.raises(InputError, match=message):
        run.check_output(resume=False, overwrite=True, kind=kind)
    assert json.loads((run.path / "config.json").read_text()) == config


@pytest.mark.parametrize(("kind", "record"), [("training", "metrics.jsonl"), ("comparison", "parts-0.jsonl")])
def test_a_run_with_a_damaged_configuration_can_be_overwritten(
    kind: Literal["training", "comparison"], record: str, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "output")
    run.path.mkdir()
    (run.path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"to replace, found a damaged config\.json"):
        run.check_output(resume=False, overwrite=True, kind=kind)
    (run.path / "data.jsonl").write_text("{}\n")  # a file that no run writes
    with pytest.raises(InputError, match="a damaged config"):
        run.check_output(resume=False, overwrite=True, kind=kind)
    (run.path / record).write_text('{"step": 1}\n')
    run.check_output(resume=False, overwrite=True, kind=kind)
    run.checkpoints.mkdir()
    (run.checkpoints / "own.txt").write_text("mine")
    with pytest.raises(InputError, match="expected only files of the run"):
        run.check_output(resume=False, overwrite=True, kind=kind)


def test_an_incomplete_last_line_is_skipped_and_later_steps_are_deleted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(1, 6):
        run.add_metrics({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5]
    run.remove_rows_after(3)
    run.add_metrics({"step": 4})
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_the_last_complete_checkpoint_is_found(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.last_checkpoint() is None
    for step in (9, 10, 200):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    for step in (9, 10):  # the process stopped while it wrote checkpoint 200
        (run.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert run.last_checkpoint() == run.checkpoints / "checkpoint-10"


def test_a_directory_without_a_run_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run directory"):
        RunDirectory(tmp_path).config()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        RunDirectory(tmp_path).config()


def test_a_start_that_was_killed_does_not_block_the_next_start(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    (run.path / ".lock").write_text("{}")
    (run.path / ".model.abc").mkdir()
    with run.open_for_training({"seed": 1}):
        run.create({"seed": 1})
        run.add_metrics({"step": 1, "seconds": 1.0})
    assert sorted(path.name for path in run.path.iterdir()) == ["config.json", "metrics.jsonl"]


def test_the_model_is_replaced_at_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.save_model(3, lambda directory: (directory / "a").write_text("3"))  # pyright: ignore[reportArgumentType]
    assert run.is_finished(3)
    assert not run.is_finished(4)

    def fail(directory: Path) -> None:
        (directory / "a").write_text("4")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run.save_model(4, fail)
    assert run.model_step() == 3
    assert (run.model / "a").read_text() == "3"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    run.save_model(5, lambda directory: (directory / "b").write_text("5"))  # pyright: ignore[reportArgumentType]
    assert sorted(path.name for path in run.model.iterdir()) == ["b", "training.json"]


def save(run: RunDirectory, step: int, *names: str) -> None:
    def write(directory: Path) -> None:
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(str(step))

    run.save_model(step, write)


def test_files_that_others_added_to_the_model_are_kept(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    save(run, 3, "a", "adapter/b")
    (run.model / "card.md").write_text("mine")
    (run.model / "adapter" / "own.gguf").write_text("mine")
    save(run, 5, "c")
    names = {path.relative_to(run.model).as_posix() for path in run.model.rglob("*") if path.is_file()}
    assert names == {"c", "training.json", "card.md", "adapter/own.gguf"}
    save(run, 6, "c", "card.md")
    assert (run.model / "card.md").read_text() == "6"


@pytest.mark.parametrize(
    "name", ["model/own.txt", "model/sub/own.txt", "checkpoints/own.txt", "checkpoints/sub/own.txt"]
)
def test_files_of_others_are_not_deleted_by_overwrite(name: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create({"kind": "sft"})
    save(run, 3, "a")
    (run.checkpoints / "checkpoint-3").mkdir(parents=True)
    (run.checkpoints / "checkpoint-3" / "optimizer.pt").write_text("")
    (run.checkpoints / "README.md").write_text("written by TRL")
    (run.path / "notes.txt").write_text("kept")
    run.check_output(resume=False, overwrite=True)
    own = run.path / name
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text("mine")
    with pytest.raises(InputError, match=r"found .*(own\.txt|sub), which would be deleted"):
        run.check_output(resume=False, overwrite=True)
    assert own.read_text() == "mine"


def test_a_line_names_fewer_steps_than_a_run_has_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    run.create({"kind": "sft", "steps": 8})
    save(run, 8, "a")
    assert run.is_finished(8)
    assert not run.is_finished(9)
    assert capsys.readouterr().err == ""
    assert run.is_finished(2)
    assert "has taken 8 steps, more than 2; nothing is trained" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"before', "[1]", "\x00", '{"before": 3}', '{"after": [1]}', '{"x": {"a": []}}'])
def test_damaged_samples_do_not_end_a_run(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    for name, read, write in (
        ("samples.json", run.samples, run.set_samples),
        ("pictures.json", run.pictures, run.set_pictures),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"{name}: "):
            read()
        write("after", [{"prompt": "1+1="}])
        assert read() == {"after": [{"prompt": "1+1="}]}
        assert "the file is replaced" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"step": "6"}', b'{"step": NaN}', b'{"step": []}', b'{"step": tru\xff']
)
def test_a_damaged_record_of_the_steps_of_a_model_is_refused(content: bytes, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.save_model(3, lambda directory: None)
    (run.model / "training.json").write_bytes(content)
    for call in (run.model_step, lambda: run.is_finished(3)):
        with pytest.raises(InputError, match=r"training\.json: expected an object.*; remove this file"):
            call()
    (run.model / "training.json").unlink()
    run.add_metrics({"step": 4})
    assert run.model_step() == 4


def save_weights(directory: Path, *names: str) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for name in names:
        (directory / name).write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")


def test_a_run_whose_model_has_lost_weights_is_not_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path)
    run.save_model(3, lambda directory: save_weights(directory, "a-1.safetensors", "a-2.safetensors"))
    (run.model / "README.md").write_text("of a user")
    assert run.is_finished(3)
    assert capsys.readouterr().err == ""
    weights = (run.model / "a-2.safetensors").read_bytes()
    (run.model / "a-2.safetensors").write_bytes(weights[:-1])
    assert not run.is_finished(3)
    assert "a-2.safetensors is truncated; it is saved again" in capsys.readouterr().err
    (run.model / "a-2.safetensors").unlink()
    assert not run.is_finished(3)
    assert "a-2.safetensors is missing; it is saved again" in capsys.readouterr().err
    for record in ({"step": 3}, {"step": 3, "weights": 1}, {"step": 3, "weights": [1]}):  # of an earlier version
        (run.model / "training.json").write_text(json.dumps(record))
        assert run.is_finished(3)


def test_a_model_without_checkpoints_is_not_replaced_by_a_resumption(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.checkpoint_to_resume() is None
    run.save_model(3, lambda directory: None)
    with pytest.raises(InputError, match="expected a checkpoint to continue from, found none"):
        run.checkpoint_to_resume()


@pytest.mark.parametrize("row", [{}, {"seconds": None}, {"seconds": "x"}, {"seconds": [1]}, {"seconds": 10**400}])
def test_rows_without_a_duration_are_skipped(row: dict[str, object], tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.elapsed_seconds() == 0.0
    for metrics in ({"step": 1, "seconds": 2.5}, {"step": 2, **row}):
        run.add_metrics(metrics)
    assert run.elapsed_seconds() == 2.5


@pytest.mark.parametrize("content", ["[]", "3", '"x"', "null"])
def test_a_configuration_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    run = RunDirectory(tmp_path)
    with pytest.raises(InputError, match="expected a JSON object"):
        run.config()
    with pytest.raises(InputError, match="expected a JSON object"):
        run.check_can_start({"kind": "grpo"}, resume=True)


def test_a_controller_is_named_in_one_phrase_when_a_resumed_run_differs(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    budget = {"kind": "KLBudget", "target": 0.05, "unit": "token", "price_min": 0.0005, "price_max": 0.5}
    run.create({"kind": "grpo", "budget": budget})
    with pytest.raises(InputError) as raised:
        run.check_can_start({"kind": "grpo", "budget": None}, resume=True)
    assert 'budget KLBudget(target=0.05, unit="token"), got not set' in str(raised.value)
