"""Comparisons equal brute force in float64 over all windows, however they are run."""

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, Gemma2ForCausalLM
from transformers.utils import logging

import kullback
from kullback.compare import runner
from kullback.compare.corpus import windows
from kullback.compare.results import Comparison
from kullback.errors import InputError
from kullback.integrations.transformers import last_hidden

logging.disable_progress_bar()

CONTEXT, STRIDE = 16, 6


@pytest.fixture(scope="module")
def texts() -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices("0123456789+=", k=generator.randint(2, 45))) for _ in range(12)] + ["7"]


@pytest.fixture(scope="module")
def variant(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a changed copy of the tiny model."""

    def save(name: str, *, scale: float = 0.0, seed: int = 1, padding: int = 0, dtype: Any = torch.float32) -> Path:
        directory = tmp_path_factory.mktemp("variants") / name
        model = AutoModelForCausalLM.from_pretrained(tiny_model)
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += scale * torch.randn_like(parameter)
        if padding:
            model.resize_token_embeddings(model.config.vocab_size + padding, mean_resizing=False)
            with torch.no_grad():
                model.get_output_embeddings().weight[-padding:] = 0.5
        model.to(dtype).save_pretrained(directory)
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(directory)
        return directory

    return save


@pytest.fixture(scope="module")
def near(variant: Callable[..., Path]) -> Path:
    return variant("near", scale=0.01)


@pytest.fixture(scope="module")
def far(variant: Callable[..., Path]) -> Path:
    return variant("far", scale=0.05)


@pytest.fixture(scope="module")
def comparison(tiny_model: Path, near: Path, far: Path, texts: list[str]) -> Comparison:
    return kullback.compare(tiny_model, [near, far], text=texts, context=CONTEXT, stride=STRIDE, floor="bfloat16")


@torch.no_grad()
def brute_force(base: Path, model: Path, texts: list[str], **settings: Any) -> dict[int, list[dict[str, float]]]:
    """The statistics of each counted token of each document, from the logits of one window at a time."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    p, q = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (base, model))
    vocabulary = len(tokenizer)
    context, stride = settings.get("context", CONTEXT), settings.get("stride", STRIDE)
    rows: dict[int, list[dict[str, float]]] = {}
    for number, text in enumerate(text for text in texts if len(text) > 1):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for window in windows(len(ids), context, stride):
            batch = torch.tensor([ids[window.start : window.end]])
            logs = []
            for one in (p, q):
                hidden = last_hidden(one, batch, torch.ones_like(batch)).double()
                logits = hidden @ one.get_output_embeddings().weight.double().T
                logs.append(logits[0, :, :vocabulary].log_softmax(-1))
            for token in range(window.first, window.end):
                log_p, log_q = (table[token - window.start - 1] for table in logs)
                rows.setdefault(number, []).append(statistics(log_p, log_q, ids[token]))
    return rows


def statistics(log_p: Tensor, log_q: Tensor, target: int) -> dict[str, float]:
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    delta = log_q[target].exp() - log_p[target].exp()
    found = {
        "kl": (log_p.exp() * (log_p - log_q)).sum(),
        "reverse_kl": (log_q.exp() * (log_q - log_p)).sum(),
        "js": ((log_p.exp() * (log_p - middle)).sum() + (log_q.exp() * (log_q - middle)).sum()) / 2,
        "entropy_base": -(log_p.exp() * log_p).sum(),
        "entropy": -(log_q.exp() * log_q).sum(),
        "nll_base": -log_p[target],
        "nll": -log_q[target],
        "top1_agreement": float(log_p.argmax() == log_q.argmax()),
        "expected_acceptance": torch.minimum(log_p.exp(), log_q.exp()).sum(),
        "delta_p": delta,
        "squared_delta_p": delta**2,
    }
    return {name: float(value) for name, value in found.items()}


def expected_mean(rows: dict[int, list[dict[str, float]]], column: str) -> float:
    return float(np.mean([row[column] for part in rows.values() for row in part]))


def states(comparison: Comparison) -> list[Any]:
    return [(m.name, m.statistics.state(), m.worst) for m in (*comparison.models, *comparison.floors)]


def test_all_means_equal_brute_force(comparison: Comparison, tiny_model: Path, far: Path, texts: list[str]) -> None:
    rows = brute_force(tiny_model, far, texts)
    result = comparison[str(far)]
    assert result.summary.tokens == sum(map(len, rows.values())) == comparison.config["text"]["counted_tokens"]
    for column, estimate in result.summary.means.items():
        assert estimate.value == pytest.approx(expected_mean(rows, column), abs=1e-6), column
    metrics = result.metrics
    assert metrics["perplexity"].value == pytest.approx(math.exp(expected_mean(rows, "nll")), rel=1e-6)
    assert metrics["rms_delta_p"].value == pytest.approx(math.sqrt(expected_mean(rows, "squared_delta_p")), abs=1e-6)
    assert metrics["js_bits"].value == pytest.approx(expected_mean(rows, "js") / math.log(2), abs=1e-6)


def test_the_interval_is_the_jackknife_over_documents(
    comparison: Comparison, tiny_model: Path, far: Path, texts: list[str]
) -> None:
    rows = list(brute_force(tiny_model, far, texts).values())
    leave_one_out = [
        np.mean([row["kl"] for part in rows[:out] + rows[out + 1 :] for row in part]) for out in range(len(rows))
    ]
    mean = np.mean([row["kl"] for part in rows for row in part])
    variance = (len(rows) - 1) / len(rows) * sum((value - mean) ** 2 for value in leave_one_out)
    assert comparison[str(far)].metrics["kl"].std_error == pytest.approx(math.sqrt(variance), rel=1e-4)


def test_the_order_of_models_follows_their_distance(comparison: Comparison, near: Path, far: Path) -> None:
    pair = comparison.paired()[str(near), str(far)]
    assert pair.difference.value < 0
    assert "nearer" in pair.describe("near", "far")
    assert comparison.above_floor().keys() == {(str(name), "floor (bfloat16)") for name in (near, far)}


def test_the_largest_kl_is_described(comparison: Comparison, tiny_model: Path, far: Path, texts: list[str]) -> None:
    rows = brute_force(tiny_model, far, texts)
    kl, document, index = max((row["kl"], d, i) for d, part in rows.items() for i, row in enumerate(part))
    worst = comparison[str(far)].worst[0]
    assert worst["kl"] == pytest.approx(kl, abs=1e-6)
    assert (worst["document"], worst["position"]) == (document, index + 1)
    text = texts[document]
    assert worst["before"] + worst["token"] + worst["after"] == text[max(0, index - 39) : index + 10]
    assert sorted((prob for _, prob in worst["top_base"]), reverse=True) == [prob for _, prob in worst["top_base"]]


def test_groups_contain_every_token_once(comparison: Comparison, far: Path) -> None:
    summary = comparison[str(far)].summary
    assert set(summary.groups) == {"base confidence", "token class", "tokens of context"}
    for labels in summary.groups.values():
        assert sum(count for count, _ in labels.values()) == summary.tokens
        total = sum(count * mean.value for count, mean in labels.values())
        assert total == pytest.approx(summary.tokens * summary.means["kl"].value)


def test_the_base_has_distance_zero_from_itself(tiny_model: Path, texts: list[str]) -> None:
    result = kullback.compare(tiny_model, tiny_model, text=texts, context=CONTEXT).models[0]
    for name in ("kl", "reverse_kl", "js", "rms_delta_p"):
        assert result.metrics[name].value == 0, name
    assert result.metrics["perplexity_ratio"].value == 1
    assert result.metrics["top1_agreement"].value == result.metrics["expected_acceptance"].value == 1
    assert result.worst == ()


def test_padding_of_the_vocabulary_does_not_take_part(
    tiny_model: Path, variant: Callable[..., Path], texts: list[str]
) -> None:
    padded = variant("padded", padding=5)
    result = kullback.compare(tiny_model, padded, text=texts, context=CONTEXT)
    assert result.models[0].metrics["kl"].value == pytest.approx(0, abs=1e-12)


def test_one_model_at_a_time_gives_the_same_results(
    comparison: Comparison, tiny_model: Path, near: Path, far: Path, texts: list[str], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"context": CONTEXT, "stride": STRIDE, "floor": "bfloat16", "one_at_a_time": True}
    assert states(kullback.compare(tiny_model, [near, far], text=texts, **settings)) == states(comparison)
    stored = kullback.compare(tiny_model, [near, far], text=texts, output=tmp_path / "run", **settings)
    assert states(stored) == states(comparison)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "blocks-0.jsonl",
        "compare.html",
        "config.json",
        "result.json",
        "tokens",
    ]


class KilledError(Exception):
    """The process was killed."""


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_killed_run_continues_with_the_same_results(
    comparison: Comparison,
    tiny_model: Path,
    near: Path,
    far: Path,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    one_at_a_time: bool,
) -> None:
    settings: dict[str, Any] = {"context": CONTEXT, "stride": STRIDE, "floor": "bfloat16"}
    settings |= {"output": tmp_path / "run", "one_at_a_time": one_at_a_time}
    add = runner._Records.add

    def add_and_end(self: Any, block: int, model: int, *results: Any) -> None:
        add(self, block, model, *results)
        if len(self.done) == 5:
            with self.path.open("a") as file:
                file.write('{"block": 3, "model"')
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(runner._Records, "add", add_and_end)
        with pytest.raises(KilledError):
            kullback.compare(tiny_model, [near, far], text=texts, **settings)
    with pytest.raises(InputError, match="already exists with files"):
        kullback.compare(tiny_model, [near, far], text=texts, **settings)
    resumed = kullback.compare(tiny_model, [near, far], text=texts, resume=True, **settings)
    assert states(resumed) == states(comparison)
    with pytest.raises(InputError, match="was started with"):
        kullback.compare(tiny_model, [near, far], text=texts[1:], resume=True, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["a number", "a key", "not JSON", "deep", "no checksum", "a list", "not UTF-8"])
def test_a_damaged_line_is_computed_again(
    damage: str,
    comparison: Comparison,
    tiny_model: Path,
    near: Path,
    far: Path,
    texts: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings: dict[str, Any] = {"context": CONTEXT, "stride": STRIDE, "floor": "bfloat16", "output": tmp_path / "run"}
    kullback.compare(tiny_model, [near, far], text=texts, **settings)
    path = tmp_path / "run" / "blocks-0.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    record = json.loads(first)
    document = next(iter(record["statistics"]["sums"]["documents"].values()))
    document[0] += 10**6
    changed = {
        "a number": json.dumps(record).encode(),
        "a key": first.replace(b'"worst"', b'"wurst"'),
        "not JSON": first[:-5],
        "deep": b"[" * 100_000,
        "no checksum": json.dumps({key: value for key, value in record.items() if key != "sha256"}).encode(),
        "a list": b"[1]",
        "not UTF-8": b"\xff" + first,
    }[damage]
    path.write_bytes(changed + b"\n" + rest)
    resumed = kullback.compare(tiny_model, [near, far], text=texts, resume=True, **settings)
    assert states(resumed) == states(comparison)
    assert capsys.readouterr().err.count("line 1 is damaged; its block is computed again") == 1


def test_damaged_hidden_states_are_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "0-0.bin"
    runner._write_hidden(path, torch.ones(3, 4))
    content = path.read_bytes()
    stored = runner._read_hidden(path)
    assert stored is not None
    assert stored.equal(torch.ones(3, 4))
    for changed in (content[:-1] + b"\x01", content[:40], b""):
        path.write_bytes(changed)
        assert runner._read_hidden(path) is None
        assert "is damaged, and is computed again" in capsys.readouterr().err


@pytest.mark.parametrize("environment", [
    {"RANK": "x"}, {"RANK": "1"}, {"RANK": "-1", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"},
    {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "1.5"},
])  # fmt: skip
def test_impossible_ranks_are_refused(
    environment: dict[str, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="0 <= RANK < WORLD_SIZE in the environment, got RANK="):
        kullback.compare(tiny_model, tiny_model, text=["1+2=3"])


def test_the_options_of_a_comparison_are_named_when_it_is_resumed(tiny_model: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"text": ["1+2=3", "2+2=4"], "output": tmp_path / "run"}
    kullback.compare(tiny_model, tiny_model, context=8, **settings)
    with pytest.raises(InputError, match="was started with --context 8, got 16"):
        kullback.compare(tiny_model, tiny_model, context=16, resume=True, **settings)


def test_no_input_and_no_training_run_is_overwritten(tiny_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_model, run / "model")
    (run / "text").mkdir()
    (run / "text" / "a.txt").write_text("1+2=3")
    settings: dict[str, Any] = {"output": run, "overwrite": True}
    for kind in ("grpo", "compare"):
        (run / "config.json").write_text(json.dumps({"kind": kind}))
        for option, base, model in (("BASE", run / "model", tiny_model), ("MODEL", tiny_model, run / "model")):
            with pytest.raises(InputError, match=rf"{option} .*: expected a path outside of --output"):
                kullback.compare(base, model, text=["1+2=3"], **settings)
        with pytest.raises(InputError, match=r"--text .*: expected a path outside of --output"):
            kullback.compare(tiny_model, tiny_model, text=run / "text", **settings)
    (run / "config.json").write_text('{"kind": "grpo"}')
    with pytest.raises(InputError, match="expected an earlier comparison to replace, found a run of kind grpo"):
        kullback.compare(tiny_model, tiny_model, text=["1+2=3"], **settings)
    assert (run / "model" / "config.json").is_file()
    assert (run / "text" / "a.txt").is_file()


@pytest.mark.parametrize("device", ["meta", "nonsense"])
def test_devices_that_cannot_compute_are_refused(device: str, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=f"--device: expected a device such as cpu or cuda:0, got '{device}'"):
        kullback.compare(tiny_model, tiny_model, text=["1+2=3"], device=device)


@pytest.mark.slow
def test_two_processes_give_the_same_results(
    comparison: Comparison,
    tiny_model: Path,
    near: Path,
    far: Path,
    texts: list[str],
    tmp_path: Path,
    in_two_processes: Callable[..., str],
) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    settings = ["--context", CONTEXT, "--stride", STRIDE, "--floor", "bfloat16", "--output", tmp_path / "run", "--json"]
    output = in_two_processes("compare", tiny_model, near, far, "--text", tmp_path / "texts.jsonl", *settings)
    assert (tmp_path / "run" / "blocks-1.jsonl").stat().st_size
    for found, model in zip(json.loads(output)["models"], comparison.models, strict=True):
        assert found["kl_by_document"] == model.statistics.sums.select("kl").state()
        assert found["metrics"] == {name: estimate.to_dict() for name, estimate in model.metrics.items()}


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["embed_tokens"]], ids=["layers", "embeddings"])
def test_an_adapter_equals_the_merged_model(
    tiny_model: Path, texts: list[str], tmp_path: Path, targets: list[str]
) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=2, target_modules=targets))
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=targets == ["embed_tokens"])
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "merged")
    result = kullback.compare(
        tiny_model, tmp_path / "merged", adapters=[tmp_path / "adapter"], text=texts, context=CONTEXT
    )
    merged, adapter = (model.metrics["kl"].value for model in result.models)
    assert adapter == pytest.approx(merged, rel=1e-3)
    assert merged > 1e-4
    own = kullback.compare(tiny_model, tmp_path / "adapter", text=texts, context=CONTEXT)
    assert own.models[0].metrics["kl"].value == adapter


def test_capped_logits_are_computed_by_the_forward_pass(tiny_model: Path, texts: list[str], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    paths = [tmp_path / name for name in ("a", "b")]
    models = []
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        config = Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=0.5,
            initializer_range=0.5,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        models.append(Gemma2ForCausalLM(config).eval())
        models[-1].save_pretrained(path)
        tokenizer.save_pretrained(path)
    result = kullback.compare(paths[0], paths[1], text=texts, context=64)
    kls = []
    for text in texts[:-1]:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            log_p, log_q = (model(ids).logits[0, :-1].double().log_softmax(-1) for model in models)
        kls += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
    assert result.models[0].metrics["kl"].value == pytest.approx(np.mean(kls), abs=1e-6)
    assert result.models[0].metrics["kl"].value > 0.01


def test_a_bos_token_begins_every_window(tiny_model: Path, far: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bos = tokenizer.eos_token_id
    paths = []
    for path in (tiny_model, far):
        copy = path.with_name(f"{path.name}-bos")
        shutil.copytree(path, copy, dirs_exist_ok=True)
        tokenizer.bos_token = tokenizer.eos_token
        tokenizer.save_pretrained(copy)
        paths.append(copy)
    text = "12+34=46+5=51"
    result = kullback.compare(*paths, text=[text, "1"], context=8, bos="always")
    p, q = (AutoModelForCausalLM.from_pretrained(path).eval() for path in paths)
    kls = []
    for content in (text, "1"):
        ids = tokenizer(content, add_special_tokens=False)["input_ids"]
        for window in windows(len(ids), 8, None, prefix=1):
            row = torch.tensor([[bos, *ids[window.start : window.end]]])
            with torch.no_grad():
                log_p, log_q = (model(row).logits[0].double().log_softmax(-1) for model in (p, q))
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)
            kls += kl[window.first - window.start : window.end - window.start].tolist()
    assert len(kls) == len(text) + 1 == result.models[0].summary.tokens
    assert result.models[0].metrics["kl"].value == pytest.approx(np.mean(kls), abs=1e-6)


def test_a_bfloat16_copy_is_compared_in_its_dtype(
    tiny_model: Path, variant: Callable[..., Path], texts: list[str]
) -> None:
    copy = variant("half", dtype=torch.bfloat16)
    result = kullback.compare(tiny_model, copy, text=texts, context=CONTEXT, floor="bfloat16")
    assert result.models[0].metrics["kl"].value > 0
    assert result.models[0].metrics["kl"].value == result.floors[0].metrics["kl"].value
    assert all(pair.difference.value == 0 for pair in result.above_floor().values())
    widened = kullback.compare(tiny_model, copy, text=texts, context=CONTEXT, dtype="float32")
    assert 0 < widened.models[0].metrics["kl"].value < 0.1


@pytest.fixture
def other_vocabulary(tiny_model: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "other"
    shutil.copytree(tiny_model, directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["3"], vocabulary["4"] = vocabulary["4"], vocabulary["3"]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def test_another_vocabulary_is_refused(tiny_model: Path, other_vocabulary: Path) -> None:
    with pytest.raises(InputError, match=r"2 token ids differ: id \d+ is '3' for .* and '4' for"):
        kullback.compare(tiny_model, other_vocabulary, text=["1+2=3"], context=8)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"context": 64}, "--context: expected at most 32 tokens"),
        ({"context": 8, "stride": 8}, "--stride: expected 1 to 7"),
        ({"bos": "always"}, "--bos always"),
        ({"device": "cuda:99"}, "--device"),
        ({"device": "nowhere"}, "--device"),
        ({"batch_size": 0}, "--batch-size"),
        ({"dtype": "int4"}, "dtype: expected one of auto, float32"),
        ({"text": []}, "text: expected at least one text"),
        ({"text": ["1"]}, "2 tokens or more"),
        ({"text": [3]}, "text: expected a path or a list of texts, got 3 at index 0"),
        ({"text": "absent.txt"}, "no such file"),
        ({"models": []}, "expected a model"),
        ({"adapters": ["BASE"]}, "got a whole model"),
        ({"models": ["absent"]}, "MODEL absent: no such directory"),
        ({"models": ["BASE", "BASE"]}, "expected each model once"),
        ({"against": "absent.json"}, "--against absent.json"),
    ],
)
def test_invalid_settings_are_refused(tiny_model: Path, settings: dict[str, Any], expected: str) -> None:
    arguments: dict[str, Any] = {"models": ["BASE"], "text": ["1+2=3"], **settings}
    for name in ("models", "adapters"):
        arguments[name] = [str(tiny_model) if one == "BASE" else one for one in arguments.get(name, [])]
    with pytest.raises(InputError, match=expected):
        kullback.compare(tiny_model, **arguments)


def test_pickled_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"MODEL .*pytorch_model.bin, a pickle"):
        kullback.compare(tiny_model, tmp_path / "pickled", text=["1+2=3"])


def test_nan_weights_are_named(tiny_model: Path, variant: Callable[..., Path]) -> None:
    broken = variant("broken", scale=math.nan)
    with pytest.raises(InputError, match=r"text 0: expected kl of .*broken and .* to be a number, got nan"):
        kullback.compare(tiny_model, broken, text=["1+2=3"])


def test_earlier_results_are_paired_if_they_are_comparable(
    tiny_model: Path, near: Path, far: Path, texts: list[str], tmp_path: Path, comparison: Comparison
) -> None:
    comparison.save(tmp_path / "result.json")
    settings: dict[str, Any] = {"context": CONTEXT, "stride": STRIDE, "against": tmp_path / "result.json"}
    later = kullback.compare(tiny_model, near, text=texts, **settings)
    pairs = later.paired()
    assert pairs[str(near), f"{near} (earlier)"].difference.value == 0
    expected = comparison.paired()[str(near), str(far)].difference
    assert pairs[str(near), f"{far} (earlier)"].difference == expected
    with pytest.raises(InputError, match=r"the hash of the tokens was .*, is "):
        kullback.compare(tiny_model, near, text=texts[:-2], **settings)
    with pytest.raises(InputError, match=f"the stride was {STRIDE}, is 3"):
        kullback.compare(tiny_model, near, text=texts, **{**settings, "stride": 3})
    with pytest.raises(InputError, match="the hash of the weights of the base was"):
        kullback.compare(far, near, text=texts, **settings)


def test_a_result_is_a_table_of_pandas(comparison: Comparison) -> None:
    frame = comparison.to_frame()
    assert list(frame.columns) == ["model", "metric", "value", "low", "high", "std_error", "unit", "status"]
    assert len(frame) == 3 * len(comparison.models[0].metrics)
    kl = frame[(frame.model == comparison.models[0].name) & (frame.metric == "kl")].iloc[0]
    assert kl.value == comparison.models[0].metrics["kl"].value
