"""Logs of other programs, written by these programs: the same numbers from the command line and from opened files."""

import csv
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from kullback.cli import main
from kullback.errors import InputError
from kullback.explore.explorer import explorer_page
from kullback.explore.run_logs import RunLog, log_files
from kullback.runs.metrics import METRICS, may_be_missing
from kullback.runs.run_directory import RunDirectory

STATIC = Path(__file__).parents[2] / "src" / "kullback" / "explore" / "static"
needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")


def refreshed(path: Path) -> RunLog:
    log = RunLog(path)
    log.refresh()
    assert log.problems == []
    return log


@pytest.fixture(scope="module")
def sb3(tmp_path_factory) -> Path:
    """The logs of a run of PPO of stable-baselines3: progress.csv and monitor.csv."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.logger import configure

    path = tmp_path_factory.mktemp("sb3")
    environment = make_vec_env("CartPole-v1", n_envs=1, seed=0, monitor_dir=str(path))
    model = PPO("MlpPolicy", environment, n_steps=64, batch_size=32, n_epochs=2, seed=0, device="cpu")
    model.set_logger(configure(str(path), ["csv"]))
    model.learn(512)
    environment.close()
    model.logger.close()
    return path


def write_trainer_state(path: Path) -> Path:
    """A trainer_state.json of transformers with the metrics of TRL's PPO."""
    from transformers import TrainerState

    state = TrainerState(global_step=3)
    for step in (1, 2, 3):
        values = {"step": step, "loss": 1 / step, "objective/kl": 0.1 * step, "objective/scores": 0.5}
        state.log_history.append(values | ({"eval_reward": 2.0} if step == 2 else {}))
    state.log_history.append({"step": 3, "eval_reward": float(3)})
    directory = path / "checkpoint-3"
    directory.mkdir(parents=True)
    state.save_to_json(str(directory / "trainer_state.json"))
    older = path / "checkpoint-1"
    older.mkdir()
    (older / "trainer_state.json").write_text('{"log_history": [{"step": 1, "loss": 9.0}]}')
    return path


def write_wandb(path: Path) -> Path:
    """Rows of Weights & Biases as its export API returns them, with a missing and a non-finite value."""
    rows = [
        {"_step": 0, "_runtime": 1.5, "_timestamp": 1.7e9, "objective/kl": 0.0, "objective/entropy": 12.0},
        {"_step": 1, "_runtime": 3.0, "_timestamp": 1.7e9, "objective/kl": "NaN", "train": {"reward": 0.25}},
        {"_step": 2, "_runtime": 4.5, "_timestamp": 1.7e9, "objective/kl": 0.5, "objective/entropy": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_progress_and_monitor_files_of_stable_baselines3(sb3):
    log = refreshed(sb3)
    with (sb3 / "progress.csv").open() as file:
        progress = [row for row in csv.DictReader(file) if row["train/approx_kl"]]
    last = progress[-1]
    step = float(last["time/total_timesteps"])
    assert log.metrics.last("train/approx_kl") == (step, float(last["train/approx_kl"]))
    assert log.metrics.last("rollout/ep_rew_mean") == (step, float(last["rollout/ep_rew_mean"]))
    episodes = np.genfromtxt(sb3 / "0.monitor.csv", delimiter=",", skip_header=2)
    assert log.metrics.last("rewards/return") == (episodes[:, 1].sum(), episodes[-1, 0])
    assert log.metrics.last("episode_length") == (episodes[:, 1].sum(), episodes[-1, 1])
    with pytest.raises(InputError, match="expected a run directory"):
        RunLog(sb3.parent / "nothing")


def test_a_csv_file_whose_header_changes_is_read_again(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_text("time/total_timesteps,loss\n1,0.5\n")
    log = refreshed(path)
    path.write_text("time/total_timesteps,loss,reward\n1,0.5,\n2,0.25,1.0\n")  # as stable-baselines3 adds a column
    log.refresh()
    assert log.metrics.column("loss").tolist() == [0.5, 0.25]
    assert log.metrics.last("reward") == (2.0, 1.0)
    with path.open("a") as file:
        file.write("3,0.125\n4,0.1,2.0\n")
    log.refresh()
    assert log.problems == [f"{path}: line 4: expected 3 cells, got 2"]
    assert log.metrics.last("loss") == (4.0, 0.1)


def test_the_newest_trainer_state_is_read_and_read_again(tmp_path):
    path = write_trainer_state(tmp_path / "trl")
    log = refreshed(path)
    assert log.metrics.column("objective/kl").tolist() == pytest.approx([0.1, 0.2, 0.3])
    np.testing.assert_array_equal(log.metrics.column("eval_reward"), [np.nan, 2.0, 3.0])
    state = path / "checkpoint-3" / "trainer_state.json"
    content = json.loads(state.read_text())
    content["log_history"].append({"step": 4, "loss": 0.1})
    state.write_text(json.dumps(content))
    log.refresh()
    assert log.metrics.last("loss") == (4.0, 0.1)
    assert log.metrics.last("objective/kl") == (3.0, pytest.approx(0.3))


def test_rows_of_weights_and_biases(tmp_path):
    log = refreshed(write_wandb(tmp_path / "history.jsonl"))
    assert log.metrics.steps.tolist() == [0, 1, 2]
    assert log.metrics.last("objective/kl") == (2.0, 0.5)
    assert log.metrics.not_finite("objective/kl") == [1.0]
    assert log.metrics.not_finite("objective/entropy") == []  # null is a value that was not logged
    assert log.metrics.last("train/reward") == (1.0, 0.25)
    assert log.metrics.last("seconds") == (2.0, 4.5)


def test_event_files_of_tensorboard_grow(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "tb"))
    for step in range(5):
        writer.add_scalar("train/kl", 0.1 * step, step)
        writer.add_scalar("train/reward", float(step), step)
    writer.add_text("note", "text is omitted", 1)
    writer.flush()
    log = refreshed(tmp_path / "tb")
    assert log.metrics.column("train/kl").tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    writer.add_scalar("train/kl", 7.0, 5)
    writer.close()
    log.refresh()
    assert log.metrics.last("train/kl") == (5.0, 7.0)
    assert log.metrics.last("train/reward") == (4.0, 4.0)


def test_a_directory_of_logs_is_shown_by_the_command(sb3, tmp_path, capsys):
    logs = tmp_path / "logs"
    shutil.copytree(sb3, logs / "sb3")
    write_trainer_state(logs / "trl")
    (logs / "other").mkdir()
    output = tmp_path / "page.html"
    assert main(["explore", str(logs), "--output", str(output)]) == 0
    data = json.loads(output.read_text().split('id="page">')[1].split("</script>")[0])
    assert [run["name"] for run in data["runs"]["runs"]] == ["sb3", "trl"]


@pytest.mark.parametrize(
    ("name", "content", "problem", "last"),
    [
        (
            "bad.jsonl",
            '{"_step": 1, "loss": 2.0}\nnot json\n{"_step": 3, "loss": 4.0}\n',
            "line 2: expected a JSON object, got a line that is not JSON",
            [3.0, 4.0],
        ),
        (
            "progress.csv",
            "time/total_timesteps,loss\n1,2.0\n2,3,4\n3,4.0\n",
            "line 3: expected 2 cells, got 3",
            [3.0, 4.0],
        ),
    ],
)
def test_the_command_shows_the_other_rows_of_a_damaged_log(name, content, problem, last, tmp_path, capsys):
    path, output = tmp_path / name, tmp_path / "page.html"
    path.write_text(content)
    assert main(["explore", str(path), "--output", str(output)]) == 0
    assert capsys.readouterr().err == f"kullback: {path}: {problem}\n"
    data = json.loads(output.read_text().split('id="page">')[1].split("</script>")[0])
    (run,) = data["runs"]["runs"]
    assert run["problems"] == [f"{path}: {problem}"]
    assert data["runs"]["problems"] == []
    assert run["metrics"]["keys"]["loss"]["last"] == last
    path.write_text("not json\n" if name == "bad.jsonl" else "a,b\n1\n")
    assert main(["explore", str(path), "--output", str(output)]) == 2
    assert f"{path}: line " in capsys.readouterr().err


@pytest.mark.parametrize("content", [random.Random(0).randbytes(400), b"\0" * 400, b"step,kl\n" * 50])
def test_a_file_that_is_no_event_file_of_tensorboard_is_named(content, tmp_path, capsys):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    path = tmp_path / "tb" / "events.out.tfevents.1.host"
    path.parent.mkdir()
    path.write_bytes(content)
    assert main(["explore", str(path.parent), "--output", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err == f"kullback: {path}: expected an event file of TensorBoard, got other content\n"


def test_the_keys_under_which_null_is_no_value_are_the_same_in_the_browser():
    source = (STATIC / "read_run_files.js").read_text(encoding="utf-8")
    listed = source.split("const MISSING = new Set(")[1].split(")")[0]
    names = set(json.loads(listed))
    keys = {metric.key for metric in METRICS} | names
    assert {key for key in keys if may_be_missing(key) and not key.startswith("rewards/")} == names


def values_in_page(page) -> dict[str, tuple[float, float]]:
    """The last step and value of every series of the page."""
    for fold in page.locator("#runs details.fold:not([open]) > summary").all():
        fold.click()
    page.wait_for_selector("#runs svg[role=slider]:not([viewBox])", state="detached")
    found = page.locator("#runs .series").evaluate_all(
        "all => all.map((g) => [g.closest('figure').id + ' ' + g.dataset.name, g.dataset.lastX, g.dataset.lastValue])"
    )
    return {name: (float(x), float(value)) for name, x, value in found if value is not None}


@needs_chromium
@pytest.mark.parametrize("kind", ["sb3", "trainer state", "wandb", "tensorboard", "kullback"])
def test_an_opened_log_has_the_charts_of_the_command_line(browser, sb3, tmp_path, kind):
    source = tmp_path / "log"
    if kind == "sb3":
        shutil.copytree(sb3, source)
    elif kind == "trainer state":
        write_trainer_state(source)
    elif kind == "wandb":
        source.mkdir()
        write_wandb(source / "history.jsonl")
    elif kind == "tensorboard":
        pytest.importorskip("tensorboard", reason="tensorboard is not installed")
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(source)) as writer:
            for step in range(1500):
                writer.add_scalar("train/kl_policy_ref_per_token", 0.001 * step, step)
                writer.add_scalar("train/reward", np.sin(step), step)
    else:
        run = RunDirectory(source)
        run.create({"kind": "grpo", "budget": {"target": 0.05, "unit": "token"}, "rewards": ["good"]})
        for step in range(1, 2001):
            run.add_metrics({"step": step, "kl_policy_ref_per_token": 0.01, "rewards/good": step / 7, "loss": None})
        run.add_evaluation({"step": 2000, "kl_policy_ref_per_token": 0.02, "rewards/good": 0.1})
    output = tmp_path / "page.html"
    output.write_text(explorer_page({"log": refreshed(source)}, live=False), encoding="utf-8")
    page = browser.new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(f"{output.as_uri()}#runs")
    page.wait_for_selector("#runs .chart svg[viewBox]")
    from_python = values_in_page(page)
    table = page.locator("#runs .outcome").all_inner_texts()
    page.locator(".opener > summary").click()
    page.set_input_files("#run-folder", source)
    page.wait_for_selector("#runs >> text=Opened: log.")
    from_files = values_in_page(page)
    assert len(from_python) >= 2
    assert from_files.keys() == from_python.keys()
    for name, pair in from_python.items():
        assert from_files[name] == pytest.approx(pair, rel=1e-9), name
    assert page.locator("#runs .outcome").all_inner_texts() == table
    page.close()
    assert messages == []


def test_the_kind_of_a_directory_is_found_by_its_files(tmp_path):
    for name in ("progress.csv", "notes.txt", "x.jsonl"):
        (tmp_path / name).write_text("")
    assert [path.name for path in log_files(tmp_path)] == ["progress.csv"]
    assert log_files(tmp_path / "notes.txt") == []


def test_a_damaged_event_file_is_named_and_an_unfinished_one_is_read_on(tmp_path):
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer", reason="tensorboard is not installed")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    events = writer.EventFileWriter(str(tmp_path / "tb"))
    for step in range(40):
        value = Summary.Value(tag="train/loss", tensor=TensorProto(dtype=1, float_val=[1 / (step + 1)]))
        events.add_event(Event(wall_time=step, step=step, summary=Summary(value=[value])))
    events.close()
    (path,) = (tmp_path / "tb").iterdir()
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:cut])
        log = RunLog(path.parent)
        log.refresh()
        assert 10 < log.metrics.count < 40
        assert log.problems == []
        path.write_bytes(whole)
        log.refresh()
        assert log.metrics.count == 40
    first = 16 + int.from_bytes(whole[:8], "little")  # the record of the version
    for place in (first, first + 9, first + 30, len(whole) - 5):  # a length, its checksum, and events
        damaged = bytearray(whole)
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        log = RunLog(path.parent)
        log.refresh()
        assert log.metrics.count < 40
        assert log.problems == [f"{path}: record {log.metrics.count + 2} is damaged; the later records are left out"]
