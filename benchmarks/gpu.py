"""Compare linear_token_kl with TRL, Liger and torch.compile on a GPU: time, peak memory and errors of the gradients.

    python benchmarks/gpu.py [--vocabulary 151936] [--width 4096] [--positions 8192] [--dtype bfloat16]

KL(policy || reference) from hidden states with its gradients with respect to the hidden states and the head of the
policy. The whole script takes less than 8 minutes on an H100. A case that does not fit into the memory is reported.
The errors are relative to float64, at a quarter of the width, 4096 tokens and 256 positions.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import results
import torch
from torch import Tensor

from tokens import installed_cases, linear_inputs, products, value_and_gradients


def measure(case: Callable[..., Tensor], inputs: Sequence[Tensor], repeats: int) -> tuple[float, float]:
    """Return the median seconds of value and gradients, and the peak memory above the inputs in GiB."""
    is_gpu = inputs[0].is_cuda
    before = torch.cuda.memory_allocated() if is_gpu else 0
    seconds = []
    for turn in range(repeats + 2):
        if is_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        value = case(*inputs)
        if value.grad_fn is not None:
            torch.autograd.grad(value, inputs[:2])
        if is_gpu:
            torch.cuda.synchronize()
        if turn > 1:  # the first turns compile
            seconds.append(time.perf_counter() - start)
        del value
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if is_gpu else float("nan")
    return median(seconds), peak


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    dtype = getattr(torch, options.dtype)
    sizes = options.positions, options.vocabulary, options.width
    small = [t.to(options.device) for t in linear_inputs(256, 4096, max(options.width // 4, 1), dtype, 0.02)]
    exact = value_and_gradients(installed_cases()["linear_token_kl"], [tensor.double() for tensor in small])
    inputs = [tensor.to(options.device) for tensor in linear_inputs(*sizes, dtype, 0.02)]
    inputs = [tensor.requires_grad_(index < 2) for index, tensor in enumerate(inputs)]
    rows, base = [], None
    for name, case in installed_cases().items():
        try:
            seconds, peak = measure(case, inputs, options.repeats)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append([name, "out of memory", "", "", ""])
            continue
        base = base or seconds
        cells = ["", ""]
        if case is not products:
            got = value_and_gradients(case, small)
            errors = [((g.double() - e).norm() / e.norm()).item() for g, e in zip(got, exact, strict=True)]
            cells = [results.significant(errors[0], 2), results.significant(max(errors[1:]), 2)]
        rows.append([name, f"{1e3 * seconds:.0f} ({seconds / base:.2f})", f"{peak:.1f}", *cells])
        print(f"{rows[-1]}", flush=True)
    columns = ["implementation", "ms (relative to the products)", "peak GiB above the inputs", "error of the KL"]
    table = [*columns, "error of the gradients"], rows
    print(f"\n{results.markdown(table)}")
    if not options.no_save:
        results.save("gpu", {options.dtype: table}, packages=("torch", "triton", "trl", "liger-kernel"))


if __name__ == "__main__":
    main()
