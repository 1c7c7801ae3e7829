"""Random inputs for every `kullback` command: python tests/fuzz_commands.py [--cases 2000] [--seed 0] [--first 0].

Each case is a command line with the files that it reads, generated from the seed and the number of the case. It is run
in this process. A case fails if an exception reaches the caller, the exit status is not 0, 1, 2 or 130, status 2 comes
without exactly one line on standard error, the output of --json is not one JSON object, a KL is negative or nan, a
value lies outside of its own interval, or a training command with invalid options writes a row of metrics.
"""

import argparse
import contextlib
import io
import json
import math
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from kullback.cli import main
from kullback.cli.distribution_syntax import family_named, family_names, parameter_names
from kullback.runs.run_directory import RunDirectory

STATUSES = {0, 1, 2, 130}
LIMIT_S = 120.0
SHOW = "--show" in sys.argv  # print every case and its output
_NUMBERS = "0 1 -1 0.5 .3 2 3 10 1e-8 1e6 1e-300 1e300 5e-324 1.7e308 1e999 nan inf -inf 1/3 -0.0 0,5 1_0 x"
NUMBERS = _NUMBERS.split()
SIZES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.25, 0.75, 1.0, 0.0]


class Case(NamedTuple):
    """A command line, the content of standard input, and whether its options are invalid, so that it must fail."""

    words: list[str]
    stdin: bytes = b""
    must_fail: bool = False


# Values.


def probabilities(random: Random, count: int | None = None) -> list[float]:
    count = count or random.choice([1, 2, 2, 3, 4, 7])
    weights = [random.choice([0.0, 1.0, random.random(), 10.0 ** random.uniform(-12, 0)]) for _ in range(count)]
    total = math.fsum(weights)
    return [weight / total for weight in weights] if total else [1.0] + [0.0] * (count - 1)


def vector(random: Random) -> str:
    values = [f"{value!r}" for value in probabilities(random, random.choice([2, 3]))]
    if random.random() < 0.4:
        values = [random.choice([*NUMBERS, *map(str, SIZES)]) for _ in range(random.randint(1, 4))]
    separator = random.choice([",", ",", ", ", ";", " ", "\t", "\n"])
    text = separator.join(values)
    return (
        random.choice(["{}", "{}", "{}", "[{}]", "({})", "[[{}]]", "{}{{", '{{"a": {}}}'])
        .format(text)
        .replace("{", "{")
    )


def argument(random: Random) -> str:
    value = random.choice([*NUMBERS, "1", "2", "0.5", "3"])
    if random.random() < 0.1:
        return f"[{', '.join(random.choice(NUMBERS) for _ in range(random.randint(0, 3)))}]"
    return value


def family(random: Random) -> str:
    name = random.choice(FAMILIES)
    names = parameter_names(family_named(name))
    if random.random() < 0.6:
        values = [random.choice(["0.5", "1", "2", "3", "0.25", "1e-8", "1e6", "1e300", "1e-300"]) for _ in names]
    else:
        values = [argument(random) for _ in range(max(0, len(names) + random.choice([0, 0, 0, -1, 1])))]
    if name in ("categorical", "one_hot_categorical", "dirichlet") and random.random() < 0.8:
        values = [str(probabilities(random))]
    if random.random() < 0.3:
        values = [f"{name}={value}" for name, value in zip(names, values, strict=False)]
    text = f"{name}({', '.join(values)})"
    if random.random() < 0.05:
        text = f"mixture({argument(random)}*{text} + 0.5*normal({argument(random)}, 1))"
    return mutate(random, text) if random.random() < 0.1 else text


def simple_family(random: Random) -> str:
    """A family with ordinary parameters, mostly."""
    loc, scale = random.choice([0, 1, -3, 1e6]), random.choice([1, 2, 0.1, 1e-3, 1e3])
    return random.choice(
        [
            f"normal({loc}, {scale})",
            f"laplace({loc}, {scale})",
            f"gamma({scale}, 1)",
            f"exponential({scale})",
            f"poisson({scale})",
            f"student_t(5, {loc}, {scale})",
            f"mixture(0.5*normal({loc},{scale}) + 0.5*normal(20,2))",
            "beta(0.5, 3)",
            "bernoulli(0.3)",
            "binomial(10, 0.3)",
            f"uniform({loc}, {loc + scale})",
        ]
    )


def mutate(random: Random, text: str) -> str:
    """The text with a few characters removed, replaced or repeated."""
    characters = list(text)
    for _ in range(random.randint(1, 3)):
        if not characters:
            break
        index = random.randrange(len(characters))
        action = random.random()
        if action < 0.4:
            del characters[index]
        elif action < 0.8:
            characters[index] = random.choice("()[]{},;=*+-.0123456789eEnan \t\n\"'\\/:αé\x00\x1b\udcff")
        else:
            characters[index:index] = characters[index : index + 5] * random.choice([1, 3, 500])
    return "".join(characters)


# Files of numbers.


def table_file(random: Random, directory: Path) -> str:
    """The path of a file of numbers in a random format, sometimes damaged, sometimes with a name after the path."""
    rows = [probabilities(random, 3) for _ in range(random.choice([1, 1, 2, 3]))]
    if random.random() < 0.15:
        rows = [[random.choice([0.5, -1.0, math.nan, math.inf, 1e300, 5.0, 2.0**60]) for _ in row] for row in rows]
    suffix = random.choice(
        [*[".csv", ".CSV", ".tsv", ".txt", ".json", ".jsonl", ".npy", ".npz", ".parquet"] * 3, ".xls", ""]
    )
    path = directory / f"table{suffix}"
    content = table_content(random, suffix.lower(), rows)
    if random.random() < 0.2:
        content = damage(random, content)
    path.write_bytes(content)
    return str(path) + random.choice([*[""] * 8, ":a", ":0", ":b b", ":"])


def table_content(random: Random, suffix: str, rows: list[list[float]]) -> bytes:
    if suffix == ".npy":
        file = io.BytesIO()
        kinds = ["f8", "f4", "f2", ">f8", "i8", "c16", "U3", "?", "M8[s]", "O"]
        np.save(file, np.nan_to_num(np.array(rows)).astype(random.choice(kinds)), allow_pickle=True)
        return file.getvalue()
    if suffix == ".npz":
        file = io.BytesIO()
        np.savez(file, **{name: np.array(rows) for name in random.choice([["a"], ["a", "b"], []])})
        return file.getvalue()
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        file = io.BytesIO()
        columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate("abc")}
        if random.random() < 0.5:
            columns[random.choice(["word", "index"])] = [random.choice(["x", "y", None]) for _ in rows]
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
        return file.getvalue()
    if suffix.startswith(".json"):
        values = random.choice(
            [
                rows,
                rows[0],
                dict(zip("abc", rows[0], strict=False)),
                [dict(zip("abc", row, strict=False)) for row in rows],
                {"a": rows, "b b": rows[0]},
                [{"w": "x", "a": row[0]} for row in rows],
                {"a": {"x": 0.5, "y": None}},
                [[rows]],
                "text",
                None,
                [True],
                10**400,
                [10**400],
            ]
        )
        text = (
            "\n".join(map(json.dumps, values))
            if suffix == ".jsonl" and isinstance(values, list)
            else json.dumps(values)
        )
        return text.encode()
    delimiter = {".tsv": "\t", ".txt": " "}.get(suffix, random.choice([",", ";"]))
    cells = [[f"{value!r}" for value in row] for row in rows]
    if random.random() < 0.2:
        cells = [[cell.replace(".", ",") for cell in row] for row in cells]
    if random.random() < 0.3:
        cells = [[f'"{cell}"' for cell in row] for row in cells]
    if random.random() < 0.3:
        cells = [[random.choice(["x", "y", "b b", "", str(index)]), *row] for index, row in enumerate(cells)]
    if random.random() < 0.3:
        cells.insert(0, [random.choice(["a", "", "index", "b b", "0", '"a;b"']) for _ in cells[0]])
    if random.random() < 0.3:
        cells = [[cell] for cell in cells[0]]
    text = random.choice(["\n", "\r\n", "\r"]).join(delimiter.join(row) for row in cells)
    return text.encode(random.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))


def damage(random: Random, content: bytes) -> bytes:
    """The content with bytes removed, replaced or added."""
    kind = random.random()
    index = random.randrange(len(content) + 1)
    if kind < 0.3:
        return content[:index]
    if kind < 0.6:
        return content[:index] + random.randbytes(random.randint(1, 8)) + content[index + 1 :]
    if kind < 0.7:
        return b""
    if kind < 0.8:
        return content * 3
    if kind < 0.9:
        return b"[" * 50_000
    return random.randbytes(random.randint(1, 300))


# Run directories.


def run_directory(random: Random, directory: Path) -> str:
    """The path of a run directory of a random trainer, damaged in most cases."""
    kind = random.choice(["grpo", "grpo", "grpo", "ppo", "ppo", "sft", "vae", "bottleneck"])
    run = RunDirectory(directory / "run")
    config: dict[str, Any] = {"kind": kind, "steps": 20, "rewards": ["good"], "watched": ["true"], "settings": {}}
    if random.random() < 0.8:
        config["budget"] = {"target": 0.05, "unit": "token"}
    if kind == "ppo":
        config |= {"budget": {"target": 0.01, "unit": "step", "constrain": "old-policy", "states": "visited"}}
    run.create(config)
    for step in range(1, random.choice([1, 2, 12, 12, 12])):
        noise = random.random()
        run.add_metrics(
            {
                "step": step,
                "kl_policy_ref_per_token": 0.01 * step,
                "kl_policy_ref_per_token_std_error": 0.001,
                "kl_old_policy_per_step": 0.01,
                "beta": noise,
                "reward": noise,
                "rewards/good": noise,
                "entropy": 1 - noise,
                "seconds": step,
            }
        )
    for step in (0, 11):
        run.add_evaluation(
            {"step": step, "kl_policy_ref_per_token": 0.01 * step, "rewards/good": 0.5, "rewards/true": 0.4}
        )
    run.set_samples("after", [{"prompt": "a", "completion": "b", "rewards": {"good": 1.0}}])
    for _ in range(random.choice([0, 1, 1, 2, 3])):
        damage_run(random, run.path)
    return str(random.choice([*[run.path] * 8, directory, run.path / "config.json", run.path / "absent"]))


def damage_run(random: Random, path: Path) -> None:
    file = path / random.choice(["config.json", "metrics.jsonl", "evaluations.jsonl", "samples.json"])
    if not file.is_file():
        return
    action = random.random()
    content = file.read_bytes()
    if action < 0.1:
        file.unlink()
    elif action < 0.15:
        file.unlink()
        file.mkdir()
    elif action < 0.3:
        file.write_bytes(damage(random, content))
    elif action < 0.4:
        file.write_bytes(content + random.choice([b"{}\n", b"7\n", b"null\n", b"[]\n", b'{"step": null}\n', b"{\n"]))
    else:
        lines = (
            content.decode(errors="replace").splitlines()
            if file.suffix == ".jsonl"
            else [content.decode(errors="replace")]
        )
        with contextlib.suppress(ValueError, RecursionError, IndexError):
            index = random.randrange(len(lines))
            row = json.loads(lines[index])
            if isinstance(row, dict) and row:
                key = random.choice(list(row))
                values = [None, True, "x", "", -1, 0, 1e308, math.nan, math.inf, [], {}, [1], {"a": 1}, 10**30]
                if random.random() < 0.2:
                    del row[key]
                else:
                    row[key] = random.choice(values)
            lines[index] = json.dumps(row)
            file.write_text("\n".join(lines) + "\n")


# Commands.


def measure_case(random: Random, directory: Path) -> Case:
    words, stdin = ["measure"], b""
    form = random.random()
    if form < 0.45:
        words += (
            [family(random), family(random)]
            if random.random() < 0.5
            else [simple_family(random), simple_family(random)]
        )
    else:
        for side in "pq":
            (directory / side).mkdir()
            choice = random.random()
            if choice < 0.4:
                words.append(vector(random))
            elif choice < 0.75:
                words.append(table_file(random, directory / side))
            elif choice < 0.8:
                words.append(f"bytes:{table_file(random, directory / side)}")
            elif choice < 0.87:
                words.append("-")
                stdin = table_content(
                    random, random.choice([".csv", ".json", ".npy", ".npz"]), [probabilities(random, 3)]
                )
                stdin = damage(random, stdin) if random.random() < 0.3 else stdin
            else:
                junk = [
                    "",
                    " ",
                    "norml",
                    "normal",
                    "x.csv",
                    "x.foo",
                    "/",
                    ".",
                    "nan",
                    "~",
                    "'",
                    "a:b",
                    "-x",
                    "--",
                    "\x00",
                ]
                words.append(random.choice([*junk, family(random), mutate(random, vector(random))]))
    for option in ("--bits", "--reverse"):
        if random.random() < 0.2:
            words.append(option)
    if random.random() < (0.05 if form < 0.45 else 0.6):
        words.append(random.choice(["--normalize", "--normalize", "--normalize", "--counts", "--logits"]))
    if random.random() < (0.02 if form < 0.45 else 0.15):
        words.append("--terms")
    if random.random() < 0.03:
        words.append(random.choice(["--lis", "--bitz", "--count", "-j"]))
    if random.random() < 0.1:
        words += ["--error", random.choice(NUMBERS)]
    if random.random() < 0.6:
        words.append("--json")
    return Case(words, stdin)


def fit_case(random: Random, directory: Path) -> Case:
    target = random.choice(
        [simple_family(random), simple_family(random), family(random), table_file(random, directory)]
    )
    words = [
        "fit",
        target,
        random.choice(["normal", "normal", "gamma", "laplace", "poisson", "bernoulli", *FAMILIES, "nrmal"]),
    ]
    if random.random() < 0.4:
        words += ["--direction", random.choice(["forward", "reverse", "reverse", "sideways"])]
    if random.random() < 0.2:
        words += ["--start", random.choice([simple_family(random), family(random), vector(random)])]
    if random.random() < 0.2:
        words += ["--fixed", f"{random.choice(['loc', 'scale', 'rate', 'x', ''])}={random.choice(NUMBERS)}"]
    if random.random() < 0.1:
        words += ["--components", random.choice(["1", "2", "0", "-1", "x", "1.5"])]
    words += [option for option in ("--path", "--json") if random.random() < 0.4]
    return Case(words)


def doctor_case(random: Random, directory: Path) -> Case:
    words = ["doctor"]
    for number in range(random.choice([1, 1, 1, 2])):
        (directory / str(number)).mkdir()
        if random.random() < 0.15:
            settings = directory / str(number) / random.choice(["settings.json", "settings.yaml", "settings.txt"])
            text = random.choice(
                ['{"beta": 0.1}', "beta: 0.1", "[]", "{", "", "beta: [", "!!python/object:os.system {}"]
            )
            settings.write_text(text)
            words.append(str(settings))
        else:
            words.append(run_directory(random, directory / str(number)))
    return Case([*words, *(["--json"] if random.random() < 0.6 else [])])


def explore_case(random: Random, directory: Path) -> Case:
    words = ["explore", "--no-browser"]
    for number in range(random.choice([1, 1, 2])):
        (directory / str(number)).mkdir()
        words.append(run_directory(random, directory / str(number)))
    if random.random() < 0.1:
        return Case([*words, "--port", random.choice(["x", "-1", "70000", "1e3", ""])], must_fail=True)
    page = random.choice([*[directory / "page.html"] * 8, directory, directory / "no" / "page.html"])
    return Case([*words, "--output", str(page)])


def train_case(random: Random, directory: Path) -> Case:
    """A training command with at least one invalid option."""
    recipe = random.choice(["grpo", "distill", "ppo", "sft", "vae", "bottleneck", "demo"])
    output = ["--output", str(directory / "run")]
    bad_number = random.choice(["nan", "inf", "-1", "x", "", "1e999", "-inf"])
    bad_count = random.choice(["-1", "x", "1.5", "", "nan", "0"])
    junk = directory / random.choice(["junk.jsonl", "junk.csv", "junk.txt"])
    junk.write_bytes(damage(random, b'{"prompt": "a", "completion": "b"}\n{"prompt": 7}\n'))
    absent = str(directory / "absent")
    if recipe in ("grpo", "sft"):
        files = ["--prompts" if recipe == "grpo" else "--data", random.choice([str(junk), absent, str(directory)])]
        reward = (
            ["--reward", random.choice(["x", "x:y", ":", "os:", "math:pi", "os:absent", "json:loads"])]
            if recipe == "grpo"
            else []
        )
        model = ["--model", random.choice([absent, str(directory), str(junk)])]
        words = [*model, *files, *reward, "--steps", random.choice(["1", bad_count]), *output]
        if random.random() < 0.3:
            words += ["--set", random.choice(["x", "=", "learning_rate=nan", "a=b", "=1", "learning_rate"])]
    elif recipe == "distill":
        model = random.choice([absent, str(directory), str(junk), ""])
        words = ["--model", model, "--teacher", random.choice([absent, model]), "--prompts", str(junk), *output]
        words += ["--steps", random.choice(["1", bad_count])]
        extra = [["--divergence", "x"], ["--weight", bad_number], ["--completion-column", ""], ["--off-policy"], []]
        words += random.choice(extra)
    elif recipe == "ppo":
        words = [
            "--env",
            random.choice(["Absent-v0", "", "x y", "CartPole-v99"]),
            "--steps",
            random.choice(["1", bad_count]),
            *output,
        ]
        words += random.choice(
            [[], ["--budget", bad_number], ["--clip", "x"], ["--controller", "Ziegler2019"], ["--beta", "1"]]
        )
    elif recipe == "vae":
        bad = [["--budget", bad_number], ["--beta", bad_number], ["--budget", "1", "--beta", "1"], ["--anneal", "x"]]
        bad += [["--data", absent], ["--data", str(junk)], ["--free-bits", bad_number], ["--likelihood", "x"]]
        words = [*output, "--steps", "1", *random.choice(bad)]
    elif recipe == "bottleneck":
        words = [*output, "--steps", "1", "--budgets", bad_number, random.choice(["1", "x"])]
    else:
        words = [*output, random.choice(["--budget", "--steps", "--reference-steps"]), random.choice(["x", "", "nan"])]
    if random.random() < 0.2:
        words += [random.choice(["--learning-rat", "--sead", "--jsn", "--overwrit", "--resum"]), "3"]
    elif random.random() < 0.15:
        words.remove(random.choice(words))
        words += ["--seed", random.choice(["x", "1.5", ""])]
    return Case(
        ["train", recipe, *words, *(["--json"] if random.random() < 0.3 and recipe != "demo" else [])], must_fail=True
    )


def compare_case(random: Random, directory: Path) -> Case:
    """A comparison whose models, corpus, options or earlier files are invalid."""
    corpus, stored = directory / random.choice(["corpus.jsonl", "corpus.txt"]), directory / "base.kld"
    corpus.write_bytes(damage(random, b'{"text": "1+2=3"}\n{"messages": [{"role": "user", "content": "a"}]}\n'))
    stored.write_bytes(damage(random, b"_logits_" + bytes(random.randrange(256) for _ in range(60))))
    places = [str(directory), str(corpus), str(directory / "absent"), "", "-"]
    base = random.choice([*places, str(stored)])
    words = ["compare", base, *random.choices(places, k=random.choice([0, 1, 1, 2]))]
    options = [["--text", str(corpus)], ["--text", random.choice(places)], ["--against", random.choice(places)]]
    options += [["--context", random.choice(NUMBERS)], ["--fail-above", random.choice(NUMBERS)], ["--resume"]]
    options += [["--floor", "x"], ["--stride", "0"], ["--write-llama-cpp", str(corpus)], ["--output", str(corpus)]]
    for option in random.sample(options, random.choice([0, 1, 2, 3])):
        words += option
    return Case([*words, *random.choice([[], ["--json"], ["--card"]])], must_fail=True)


def words_case(random: Random, directory: Path) -> Case:
    """Words in a random order: commands, options and values."""
    vocabulary = [
        "measure",
        "fit",
        "doctor",
        "explore",
        "train",
        "grpo",
        "vae",
        "help",
        "--help",
        "-h",
        "--version",
        "--json",
    ]
    vocabulary += [
        "--list",
        "--",
        "-",
        "",
        "0.5,0.5",
        "normal(0,1)",
        "normal",
        "--steps",
        "1",
        "mesure",
        "--jsn",
        str(directory),
    ]
    words = [random.choice(vocabulary) for _ in range(random.randint(0, 4))]
    if words[:1] == ["explore"] and not {"-h", "--help"} & set(words):
        words += ["--no-browser", "--output", str(directory / "page.html")]  # a server does not end
    return Case(words, b"0.5,0.5")


FAMILIES = family_names()
COMMANDS: list[tuple[float, Callable[[Random, Path], Case]]] = [
    (0.55, measure_case),
    (0.06, fit_case),
    (0.1, doctor_case),
    (0.09, explore_case),
    (0.09, train_case),
    (0.03, compare_case),
    (0.08, words_case),
]


def generate(seed: int, number: int, directory: Path) -> Case:
    """The case with the given number."""
    random = Random(f"{seed} {number}")
    [command] = random.choices([command for _, command in COMMANDS], [weight for weight, _ in COMMANDS])
    return command(random, directory)


# Execution.


def run_case(case: Case, directory: Path) -> tuple[int | None, list[str]]:
    """Run a case; return its exit status and its faults."""
    stdout, stderr = io.StringIO(), io.StringIO()
    saved, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(case.stdin))
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), time_limit(LIMIT_S):
            status = main(case.words)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "kullback" in frame.filename][-1:]
        where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*own, place))
        return None, [f"{type(error).__name__}: {str(error)[:200]} at {where}"]
    finally:
        sys.stdin = saved
    if SHOW:
        sys.stderr.write(f"{case.words!r:.250}\n    {status} {stderr.getvalue()[:350]!r} {stdout.getvalue()[:100]!r}\n")
    return status, list(faults(case, status, stdout.getvalue(), stderr.getvalue(), directory))


def faults(case: Case, status: int, out: str, err: str, directory: Path) -> Iterator[str]:
    if status not in STATUSES:
        yield f"status {status}"
    if case.must_fail and status != 2 and not {"-h", "--help"} & set(case.words):
        yield f"status {status} for invalid options"
    if case.must_fail and list(directory.rglob("metrics.jsonl")) and case.words[0] == "train":
        yield "metrics of a training run with invalid options"
    if status == 2:
        if err.count("\n") != 1 or not err.startswith("kullback: ") or len(err) > 2100:
            yield f"status 2 with {err.count(chr(10))} lines on stderr: {err[:400]!r}"
        if out:
            yield f"status 2 with output: {out[:200]!r}"
    if "Traceback" in out + err:
        yield "a traceback"
    if (
        status in (0, 1)
        and "--json" in case.words
        and case.words[0] != "help"
        and not {"-h", "--help", "--version"} & set(case.words)
    ):
        try:
            report = json.loads(out, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
        except ValueError as error:
            yield f"not JSON: {error}: {out[:200]!r}"
            return
        if case.words[0] in ("measure", "fit"):
            yield from wrong_numbers(report)
    elif status == 0 and case.words[:1] == ["measure"]:
        for line in out.splitlines():
            if line.startswith(("KL(", "H(")) and line.split("   ")[1:2] and line.split()[2:3] == ["nan"]:
                yield f"nan as a result: {line}"


def wrong_numbers(report: dict[str, Any]) -> Iterator[str]:
    """A KL that is negative, nan, or outside of its own interval."""
    for name, part in (("kl", report), ("reverse_kl", report.get("reverse", {}))):
        values = report.get(name, 0.0)
        for value in values if isinstance(values, list) else [values]:
            number = float(value)
            if number < 0 or (math.isnan(number) and "cross_entropy" not in report):
                yield f"{name} is {value}"
            if part.get("interval"):
                low, high = map(float, part["interval"])
                if not low <= number <= high:
                    yield f"{name} is {value}, outside of its interval {part['interval']}"
    for name in ("entropy", "cross_entropy"):
        values = report.get(name, 0.0)
        if any(math.isnan(float(value)) for value in (values if isinstance(values, list) else [values])):
            yield f"{name} is nan"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the context after some time, where the system has timers."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: Any) -> None:
        raise TimeoutError(f"the case takes more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def fuzz(seed: int, numbers: range) -> tuple[Counter[str], list[str]]:
    """Run cases; return the number of cases by command and status, and the descriptions of the failures."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    here = Path.cwd()
    for number in numbers:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            case = generate(seed, number, directory)
            working = directory / "working"
            working.mkdir()
            os.chdir(working)
            started = time.monotonic()
            try:
                status, found = run_case(case, directory)
            finally:
                os.chdir(here)
            elapsed = time.monotonic() - started
            counts[f"{case.words[0] if case.words else ''!r:.8} status {status}"] += 1
            if elapsed > 20:
                counts["slow"] += 1
                print(f"case {number} took {elapsed:.0f} s: {case.words!r:.300}", file=sys.stderr)
            failures += [f"case {number}: {fault}\n    {case.words!r:.600}" for fault in found]
    return counts, failures


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="the number of cases (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of all cases (default: 0)")
    parser.add_argument("--show", action="store_true", help="print every case and its output (default: failures)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first case (default: 0)")
    return parser.parse_args()


def run_script() -> int:
    options = parse_options()
    warnings.simplefilter("always")  # a warning before an error would be a second line on standard error
    started = time.monotonic()
    counts, failures = fuzz(options.seed, range(options.first, options.first + options.cases))
    for failure in failures:
        print(failure)
    print(f"seed {options.seed}, {options.cases} cases, {time.monotonic() - started:.0f} s, {len(failures)} failures")
    for name, count in sorted(counts.items()):
        print(f"  {count:5}  {name}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_script())
