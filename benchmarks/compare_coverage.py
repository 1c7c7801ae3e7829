"""Coverage of the 95% intervals of mean token KL: documents as clusters, and tokens as independent samples.

    python benchmarks/compare_coverage.py [--rounds 4000] [--documents 7 12 20 40 120] [--no-save]

The text is the standard library of Python. A base model of the next byte, an interpolated trigram model, is fitted to
half of the files; two candidates are the base with log-probabilities rounded to 4 bits, and the same model fitted to a
quarter of the files. The exact KL(base || candidate) of each byte of the other files, up to 1024 bytes of a file, is
the population. Documents are drawn from it with replacement, and an interval is counted where it contains the mean of
the population.
"""

import argparse
import sysconfig
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import results

from kullback.compare.statistics import DocumentSums, paired_difference

SYMBOLS = 128
COLUMNS = (
    "quantity",
    "documents",
    "mean",
    "coverage",
    "width",
    "coverage, independent tokens",
    "width, independent tokens",
)
LONGEST = 1024  # bytes of a document


def documents() -> list[np.ndarray]:
    """The files of the standard library as arrays of bytes, modulo 128, without its tests."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(library.rglob("*.py"))
        if not {"site-packages", "test", "tests"} & set(path.parts) and path.stat().st_size > 200
    ]
    return [np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64) % SYMBOLS for path in paths]


def contexts(text: np.ndarray) -> np.ndarray:
    """The number of the two bytes before each byte from the third."""
    return text[:-2] * SYMBOLS + text[1:-1]


def fit(texts: Sequence[np.ndarray]) -> np.ndarray:
    """Probabilities of the next byte after each pair of bytes, interpolated with shorter contexts."""
    triples = np.zeros(SYMBOLS**3)
    for text in texts:
        triples += np.bincount(contexts(text) * SYMBOLS + text[2:], minlength=SYMBOLS**3)
    third = triples.reshape(SYMBOLS, SYMBOLS, SYMBOLS)
    second = third.sum(0)
    first = second.sum(0)
    one = (first + 1) / (first.sum() + SYMBOLS)
    two = (second + 20 * one) / (second.sum(1, keepdims=True) + 20)
    three = (third + 5 * two) / (third.sum(2, keepdims=True) + 5)
    return three.reshape(-1, SYMBOLS)


def rounded(probs: np.ndarray, bits: int) -> np.ndarray:
    """Probabilities whose logarithms are rounded to 2^bits equidistant values in each row, normalised."""
    logs = np.log(probs)
    low = logs.min(1, keepdims=True)
    step = (logs.max(1, keepdims=True) - low) / (2**bits - 1)
    coarse = np.exp(low + step * np.round((logs - low) / step))
    return coarse / coarse.sum(1, keepdims=True)


def population() -> list[dict[str, np.ndarray]]:
    """For each document, KL(base || candidate) of each byte for two candidates."""
    texts = documents()
    base = fit(texts[::2])
    candidates = {"rounded to 4 bits": rounded(base, 4), "a quarter of the files": fit(texts[::4])}
    kls = {name: (base * np.log(base / model)).sum(1) for name, model in candidates.items()}
    return [{name: kl[contexts(text)[:LONGEST]] for name, kl in kls.items()} for text in texts[1::2]]


def draw(states: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> DocumentSums:
    """The sums of documents that are drawn with replacement, from the states of the sums of each document."""
    drawn = [states[index] for index in indices]
    return DocumentSums.from_state(
        {
            "columns": drawn[0]["columns"],
            "squares": [
                list(chain.from_iterable(parts)) for parts in zip(*(state["squares"] for state in drawn), strict=True)
            ],
            "documents": {number: state["documents"]["0"] for number, state in enumerate(drawn)},
        }
    )


def rows(rounds: int, sizes: Sequence[int], seed: int) -> list[list[str]]:
    """The coverage and the mean width of the intervals for each number of documents."""
    values = population()
    names = list(values[0])
    difference = " minus ".join(names)
    units = dict.fromkeys([*names, difference], "nats per token")
    whole, states = DocumentSums(units), []
    for number, document in enumerate(values):
        columns = {**document, difference: document[names[0]] - document[names[1]]}
        alone = DocumentSums(units)
        alone.add(0, columns)
        states.append(alone.state())
        whole.add(number, columns)
    print(f"{whole.documents} documents, {whole.tokens} tokens", flush=True)
    truths = {name: whole.mean(name).value for name in units}
    rng, table = np.random.default_rng(seed), []
    for size in sizes:
        found = {(name, kind): [] for name in units for kind in ("clustered", "independent")}
        for _ in range(rounds):
            sums = draw(states, rng.integers(0, len(states), size).tolist())
            paired = paired_difference(sums, sums, *names).difference
            for name in units:
                clustered = paired if name == difference else sums.mean(name)
                found[name, "clustered"].append(clustered.interval)
                found[name, "independent"].append(sums.independent_mean(name).interval)
        for name, truth in truths.items():
            cells = []
            for kind in ("clustered", "independent"):
                low, high = np.array(found[name, kind]).T
                cells += [f"{((low <= truth) & (truth <= high)).mean():.3f}", f"{np.median(high - low):.4f}"]
            table.append([name, str(size), f"{truth:.4f}", *cells])
            print(results.markdown_row(table[-1]), flush=True)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4000)
    parser.add_argument("--documents", type=int, nargs="+", default=[7, 12, 20, 40, 120])
    parser.add_argument("--seed", type=int, default=0)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    table = rows(options.rounds, options.documents, options.seed)
    if not options.no_save:
        results.save("compare_coverage", {"coverage": (COLUMNS, table)}, packages=("scipy",))


if __name__ == "__main__":
    main()
