"""Models and data sets by their names on the hub, from a cache on disk as the hub's client writes it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from kullback.cli import main
from kullback.errors import InputError
from kullback.integrations.hub import find_model, hub_source, is_hub_dataset
from kullback.runs.run_directory import RunDirectory
from kullback.train.prompts import read_examples, read_prompts

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
OTHER_COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: train
    path: socratic/train-*
---
# Sums
"""


def add_to_cache(cache: Path, kind: str, name: str, files: dict[str, bytes], commit: str = COMMIT) -> Path:
    """Store files in the layout of the hub's cache: blobs, links to them in a snapshot, and the branch in refs."""
    repository = cache / f"{kind}s--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir(exist_ok=True)
    for path, content in files.items():
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = repository / "snapshots" / commit / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return repository / "snapshots" / commit


def parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def sums(split: str, count: int) -> list[dict[str, Any]]:
    return [{"question": f"{a}+{a}=", "answer": f"{2 * a}", "split": split} for a in range(count)]


@pytest.fixture(scope="module")
def home(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory HF_HOME, whose cache has a model and data sets."""
    home = tmp_path_factory.mktemp("huggingface")
    model = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    add_to_cache(home / "hub", "model", "acme/tiny-0.1B", model)
    add_to_cache(home / "hub", "model", "acme/partial", {"config.json": model["config.json"]})
    files = {
        "README.md": CARD.encode(),
        "main/train-00000-of-00001.parquet": parquet(sums("train", 24)),
        "main/test-00000-of-00001.parquet": parquet(sums("test", 5)),
    }
    # As after `load_dataset("acme/sums", "main")`: the files of the other configuration are not there.
    add_to_cache(home / "hub", "dataset", "acme/sums", files)
    chats = [{"messages": [{"role": "user", "content": f"{a}?"}, {"role": "assistant", "content": "!"}]} for a in "12"]
    lines = "".join(json.dumps(row) + "\n" for row in chats).encode()
    add_to_cache(home / "hub", "dataset", "acme/chats", {"data/train.jsonl": lines, "data/test.jsonl": lines})
    add_to_cache(home / "hub", "dataset", "acme/table", {"rows.csv": b"prompt,answer\n1+1=,two\n"})
    add_to_cache(home / "hub", "model", "old-name", model)
    add_to_cache(home / "hub", "dataset", "old-sums", {"rows.csv": b"prompt\n1+1=\n"})
    nested = "---\nconfigs:\n- config_name: a\n  data_dir: a\n- config_name: b\n  data_files: b/**/*.csv\n---\n"
    rows = {name: b"prompt\n" + name.encode() + b"\n" for name in ("a/x.csv", "b/y/z.csv")}
    add_to_cache(home / "hub", "dataset", "acme/nested", {"README.md": nested.encode(), **rows})
    add_to_cache(home / "hub", "dataset", "acme/empty", {".gitattributes": b"", "README.md": b"# Empty\n"})
    return home


@pytest.fixture
def offline(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings that HF_HOME and HF_HUB_OFFLINE=1 give, which the hub's client reads when it is imported."""
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("offline")
def test_a_cached_model_is_found_by_its_name(home: Path) -> None:
    directory = find_model("acme/tiny-0.1B")
    assert directory == home / "hub" / "models--acme--tiny-0.1B" / "snapshots" / COMMIT
    assert hub_source(directory) == ("acme/tiny-0.1B", COMMIT)


@pytest.mark.usefixtures("offline")
def test_cached_names_without_an_organisation_are_found() -> None:
    assert hub_source(find_model("old-name")) == ("old-name", COMMIT)
    assert read_prompts("old-sums") == [{"prompt": "1+1="}]


@pytest.mark.usefixtures("offline")
def test_a_local_directory_takes_precedence(tiny_model: Path) -> None:
    Path("acme").mkdir()
    Path("acme/tiny-0.1B").symlink_to(tiny_model)
    assert find_model("acme/tiny-0.1B") == Path("acme/tiny-0.1B")
    assert hub_source(Path("acme/tiny-0.1B")) is None
    Path("acme/sums").write_text('{"prompt": "local"}\n')
    assert not is_hub_dataset("acme/sums")
    assert read_prompts("acme/sums") == [{"prompt": "local"}]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acme/absent", "--model acme/absent: expected a local path or a model of the Hugging Face hub"),
        ("acme/absent", "HF_HUB_OFFLINE is set; run `hf download acme/absent` with access to the network"),
        ("acme/partial", "--model acme/partial: expected *.safetensors, found no weights"),
        ("acme/partial", "is incomplete, run `hf download acme/partial`"),
        ("absent", "--model absent: no such directory; expected a local transformers directory, or a model of the"),
        ("some/deep/absent", "no such directory"),
        ("./absent/model", "no such directory"),
        ("acme/", "no such directory"),
        ("acme/model.safetensors", "no such directory"),
        (
            "openai:http://host/v1#name",
            "--model: expected a model on this machine or of the hub, whose weights are read",
        ),
    ],
)
def test_a_model_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        find_model(name)
    assert message in str(error.value)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "count", "split"),
    [
        ("acme/sums:main", 24, "train"),
        ("acme/sums:main:test", 5, "test"),
        ("acme/sums:main:test[:2]", 2, "test"),
        ("acme/sums:main:test+train", 29, "test"),
    ],
)
def test_a_cached_data_set_is_read(name: str, count: int, split: str) -> None:
    rows = read_prompts(name, column="question")
    assert len(rows) == count
    assert rows[0] == {"prompt": "0+0=", "answer": "0", "split": split}


@pytest.mark.usefixtures("offline")
def test_data_sets_without_configurations_are_read() -> None:
    assert read_prompts("acme/table") == [{"prompt": "1+1=", "answer": "two"}]
    assert read_prompts("acme/table::train") == [{"prompt": "1+1=", "answer": "two"}]
    assert read_prompts("acme/nested:a") == [{"prompt": "a/x.csv"}]
    assert read_prompts("acme/nested:b") == [{"prompt": "b/y/z.csv"}]
    rows = read_examples("acme/chats")
    assert rows[0]["prompt"] == [{"role": "user", "content": "1?"}]
    assert rows[1]["completion"] == [{"role": "assistant", "content": "!"}]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        (
            "acme/absent:main",
            "prompt",
            "a dataset of the Hugging Face hub; the path does not exist, and acme/absent is",
        ),
        ("acme/absent:main", "prompt", "run `hf download acme/absent --repo-type dataset` with access"),
        (
            "acme/sums",
            "prompt",
            "expected a configuration of acme/sums, got none; it has main, socratic, as in acme/sums:main",
        ),
        ("acme/sums:mian", "prompt", "got mian; it has main, socratic, as in acme/sums:main"),
        ("acme/sums:socratic", "question", "acme/sums:socratic: expected socratic/train-* in the snapshot"),
        ("acme/sums:socratic", "question", "run `hf download acme/sums --repo-type dataset`"),
        ("acme/sums:main:tset", "prompt", "expected a split of acme/sums:main, got tset; it has"),
        ("acme/sums:main:test[:x]", "prompt", "acme/sums:main:test[:x]: "),
        (
            "acme/sums:main",
            "prompt",
            "row 1: expected the column \"prompt\", got 'question', 'answer', 'split'; name the col",
        ),
        ("acme/sums:main", "questoin", "row 1: expected the column \"questoin\", got 'question'"),
        ("acme/sums:main", "questoin", 'did you mean "question"?'),
        ("acme/chats", "prompt", 'row 1: expected "messages" that end with a message of the user'),
        ("acme/empty", "prompt", "acme/empty: expected data files in the snapshot"),
        ("absent.jsonl", "prompt", "no such file; expected a file, or a data set"),
        ("data/absent.jsonl", "prompt", "no such file"),
        ("data/absent.parquet", "prompt", "no such file"),
    ],
)
def test_rows_that_are_not_there_are_refused_in_one_line(name: str, column: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        read_prompts(name, column=column)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("offline")
def test_the_newest_snapshot_is_used(home: Path, tiny_model: Path) -> None:
    add_to_cache(home / "hub", "dataset", "acme/updated", {"rows.csv": b"prompt\nold\n"})
    add_to_cache(home / "hub", "dataset", "acme/updated", {"rows.csv": b"prompt\nnew\n"}, OTHER_COMMIT)
    assert read_prompts("acme/updated") == [{"prompt": "new"}]


def test_names_and_paths_are_distinguished() -> None:
    assert [is_hub_dataset(name) for name in ("openai/gsm8k", "openai/gsm8k:main:test", "a.b/c-d_e:x")] == [True] * 3
    files = ("prompts.jsonl", "data/prompts.jsonl", "data/rows.csv", "/data/rows", "./data/rows", "a/b/c", "C:/x", "")
    assert not any(is_hub_dataset(name) for name in files)


def train(home: Path, directory: Path, *words: str, offline: bool = True) -> subprocess.CompletedProcess[str]:
    (directory / "by_length.py").write_text(
        "def correct(completions, answer, **_):\n"
        "    return [float(text == right) + len(text) for text, right in zip(completions, answer)]\n"
    )
    settings = ("per_device_train_batch_size=8", "num_generations=4", "max_completion_length=3")
    sets = [word for setting in (*settings, "gradient_checkpointing=false") for word in ("--set", setting)]
    given = ["--reward", "by_length:correct", "--steps", "2", "--output", "run", *sets]
    environment = {**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"} if offline else {"HF_ENDPOINT": "http://127.0.0.1:9"}  # no server
    return subprocess.run(
        [sys.executable, "-m", "kullback", "train", "grpo", *given, *words],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_a_run_with_names_of_the_hub_and_an_adapter(home: Path, tmp_path: Path, capsys: Any) -> None:
    names = ["--model", "acme/tiny-0.1B", "--prompts", "acme/sums:main", "--evaluate", "acme/sums:main:test"]
    options = ["--prompt-column", "question", "--budget", "0.05", "--lora", "r=4"]
    done = train(home, tmp_path, *names, *options, offline=False)  # a network is not needed, nor is it tried for long
    assert done.returncode == 0, done.stderr
    run = RunDirectory(tmp_path / "run")
    config = run.config()
    assert config.items() >= {"model": "acme/tiny-0.1B", "model_revision": COMMIT, "prompts": "acme/sums:main"}.items()
    assert run.evaluations()[-1]["count"] == 5
    adapter = json.loads((run.model / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("acme/tiny-0.1B", COMMIT)
    assert main(["doctor", str(tmp_path / "run")]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_without_a_network_one_line_describes_what_is_absent(home: Path, tmp_path: Path) -> None:
    for words, kind in (
        (["--model", "acme/absent", "--prompts", "acme/sums:main"], "--model acme/absent"),
        (["--model", "acme/tiny-0.1B", "--prompts", "acme/absent:main"], "--prompts acme/absent:main"),
    ):
        done = train(home, tmp_path, *words, offline=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"kullback: {kind}: expected a local path or a ")
        assert done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "run").exists()
