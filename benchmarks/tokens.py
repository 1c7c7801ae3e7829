"""Compare linear_token_kl and token_kl with PyTorch's log_softmax: accuracy, time and peak memory.

    python benchmarks/tokens.py [--threads 2]

The functions of logits are timed in turn. Each measurement of linear_token_kl runs in a new process, so that the peak
memory of the process belongs to it alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import results
import torch
from torch import Tensor

from kullback.tokens import linear_token_kl, token_kl

POSITIONS, WIDTH, VOCABULARY = 768, 256, 32_000
LOGIT_ROWS = 128
NAIVE, COMPILED = "log_softmax, eager", "log_softmax, torch.compile"


def naive_token_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return sum p (log p - log q) with p and q from log_softmax."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def naive_linear(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor) -> Tensor:
    """Return `naive_token_kl` of the logits of all positions at once."""
    return naive_token_kl(hidden_p @ weight_p.T, hidden_q @ weight_q.T)


def chunked(chunk: int) -> Callable[..., Tensor]:
    """Return linear_token_kl with chunks of so many positions."""
    return lambda *inputs: linear_token_kl(*inputs, chunk=chunk).kl


CASES = {
    "all logits at once": naive_linear,
    "linear_token_kl, chunks of 256 positions": chunked(256),
    "linear_token_kl, chunks of 64 positions": chunked(64),
}


def error_table(targets: Sequence[float] = (1e-2, 1e-4, 1e-6, 1e-7, 1e-8)) -> results.Table:
    """Return the median relative error in float32 against float64 over 16 positions, for decreasing KL."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for target in targets:
        p = 3 * torch.randn(16, VOCABULARY, generator=generator)
        q = p + (2 * target) ** 0.5 * torch.randn(16, VOCABULARY, generator=generator)
        exact = token_kl(p.double(), q.double())
        cells = [results.significant(exact.mean().item(), 1)]
        for function in (naive_token_kl, token_kl):
            value = function(p, q).double()
            negative = int((value < 0).sum())
            error = results.significant(((value - exact).abs() / exact).median().item(), 2)
            cells.append(f"{error}, {negative} of {len(value)} negative" if negative else error)
        rows.append(cells)
        print(f"relative errors at KL = {cells[0]}: {cells[1]}; {cells[2]}", flush=True)
    return ["KL", "sum p (log p - log q) by log_softmax", "token_kl"], rows


def time_table(repeats: int = 7, positions: int = LOGIT_ROWS, vocabulary: int = VOCABULARY) -> results.Table:
    """Return the median ns an entry of the logits, of the value and of the value with its gradient by p_logits."""
    generator = torch.Generator().manual_seed(2)
    p = 3 * torch.randn(positions, vocabulary, generator=generator)
    q = p + 0.1 * torch.randn(p.shape, generator=generator)
    with_grad = p.clone().requires_grad_()
    functions = {NAIVE: naive_token_kl, COMPILED: torch.compile(naive_token_kl), "token_kl": token_kl}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            for quantity, call in (
                ("value", lambda function=function: function(p, q)),
                ("gradient", lambda function=function: torch.autograd.grad(function(with_grad, q).sum(), with_grad)),
            ):
                start = time.perf_counter()
                call()
                if turn > 1:
                    seconds.setdefault((name, quantity), []).append(time.perf_counter() - start)
    rows = []
    for name in functions:
        times = [1e9 * median(seconds[name, quantity]) / p.numel() for quantity in ("value", "gradient")]
        rows.append([name, *(f"{value:.1f}" for value in times)])
        print(f"{name}: {rows[-1][1]} ns an entry, {rows[-1][2]} with the gradient", flush=True)
    return ["implementation", "value, ns an entry", "value and gradient, ns an entry"], rows


def measure_case(case: str, with_gradient: bool) -> None:
    """Print the seconds of one case (the minimum of two) and its peak memory above the inputs in MB, as JSON."""
    generator = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(POSITIONS, WIDTH, generator=generator),
        torch.randn(VOCABULARY, WIDTH, generator=generator) / 16,
    ]
    inputs += [tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for tensor in inputs]
    inputs = [tensor.requires_grad_(with_gradient and index < 2) for index, tensor in enumerate(inputs)]
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(2):
        start = time.perf_counter()
        kl = CASES[case](*inputs)
        if with_gradient:
            torch.autograd.grad(kl.sum(), inputs[:2])
        seconds.append(time.perf_counter() - start)
        del kl
    # A peak below the peak during the creation of the inputs is measured as 0.
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": min(seconds), "megabytes": peak}))


def linear_table(threads: int) -> results.Table:
    """Return time relative to all logits at once and peak memory above the inputs, with and without the gradient."""
    rows = {case: [case] for case in CASES}
    for with_gradient in (False, True):
        base = None
        for case in CASES:
            command = [sys.executable, __file__, "--case", case, "--threads", str(threads)]
            command += ["--with-gradient"] if with_gradient else []
            completed = subprocess.run(command, check=True, capture_output=True, text=True)
            figures = json.loads(completed.stdout)
            base = base or figures
            relative = f"{figures['seconds'] / base['seconds']:.2f}"
            time_cell = f"{relative} ({figures['seconds']:.2f} s)" if figures is base else relative
            peak = figures["megabytes"]
            rows[case] += [time_cell, f"{peak:.0f}" if peak >= 1 else "not measurable"]
            print(
                f"{case}{', with gradient' if with_gradient else ''}: {' MB, '.join(rows[case][-2:][::-1])}", flush=True
            )
    columns = ["value, relative time", "value, peak MB", "with gradient, relative time", "with gradient, peak MB"]
    return ["implementation", *columns], list(rows.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=CASES, help="measure only this case of linear_token_kl, in this process")
    parser.add_argument("--with-gradient", action="store_true", help="with --case: include the gradient")
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.case:
        measure_case(options.case, options.with_gradient)
        return
    tables = {"error": error_table(), "time": time_table(), "linear": linear_table(options.threads)}
    for table in tables.values():
        print(f"\n{results.markdown(table)}")
    if not options.no_save:
        results.save("tokens", tables, packages=("torch",))


if __name__ == "__main__":
    main()
