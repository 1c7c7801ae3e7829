"""Compare linear_token_kl and token_kl with PyTorch, TRL and Liger: accuracy, time and peak memory.

    python benchmarks/tokens.py [--threads 1] [--rounds 3] [--quick]

The functions of logits are timed in turn. Each measurement from hidden states runs in a new process, so that the peak
memory of the process belongs to it alone. TRL's divergence runs on a CPU by its PyTorch path. Liger (pip install
liger-kernel) is measured where it is installed, by its losses that are written in PyTorch.
"""

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import results
import torch
from torch import Tensor

from kullback.tokens import linear_token_kl, token_kl

LOGIT_ROWS, VOCABULARY = 128, 32_000
NAIVE, COMPILED = "log_softmax, eager", "log_softmax, torch.compile"

# Positions, tokens, width and dtype of the measurements from hidden states.
SHAPES = {
    "152k": (2048, 152_000, 512, "float32"),
    "32k": (2048, 32_000, 512, "float32"),
    "bf16": (2048, 32_000, 512, "bfloat16"),
    "quick": (512, 8_000, 64, "float32"),
}
CHUNK = 256


def naive_token_kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return sum p (log p - log q) with p and q from log_softmax."""
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def naive_linear(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor) -> Tensor:
    """Return `naive_token_kl` of the logits of all positions at once, in float32."""
    return naive_token_kl((hidden_p @ weight_p.T).float(), (hidden_q @ weight_q.T).float()).sum()


def compiled_linear(*inputs: Tensor) -> Tensor:
    """Return `naive_linear` by torch.compile."""
    return torch.compile(naive_linear)(*inputs)


def products(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor) -> Tensor:
    """Compute the four matrix products of a value with its gradient alone, in chunks of positions."""
    states, head = hidden_p.detach(), weight_p.detach()
    by_weight, by_hidden = torch.zeros_like(head), torch.empty_like(states)
    for start in range(0, len(states), CHUNK):
        rows = slice(start, start + CHUNK)
        logits = states[rows] @ head.T
        hidden_q[rows] @ weight_q.T
        by_hidden[rows] = logits @ head
        by_weight.addmm_(logits.T, states[rows])
    return torch.zeros((), requires_grad=True)


def trl_divergence(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor) -> Tensor:
    """Return KL(p || q) of a student p and a teacher q by TRL's chunked divergence."""
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    mask = torch.ones(1, len(hidden_p), device=hidden_p.device)
    return _chunked_divergence_loss(
        hidden_p[None], hidden_q[None], weight_p, weight_q, mask, 1.0, num_items_in_batch=1
    )[0]


def liger_divergence(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor) -> Tensor:
    """Return KL(p || q) of a student p and a teacher q by Liger's loss in PyTorch."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0, compiled=True, chunk_size=CHUNK
    )
    targets = torch.zeros(len(hidden_p), dtype=torch.int64, device=hidden_p.device)
    return loss(hidden_p, weight_p, hidden_q, weight_q, targets) * len(hidden_p)


def engine(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor) -> Tensor:
    """Return the sum of linear_token_kl, whose weights of tokens are known in advance."""
    weights = torch.ones(len(hidden_p), device=hidden_p.device)
    return linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, token_weights=weights, chunk=CHUNK).kl.sum()


def engine_unweighted(hidden_p: Tensor, weight_p: Tensor, hidden_q: Tensor, weight_q: Tensor) -> Tensor:
    """Return the sum of linear_token_kl, which computes the logits twice."""
    return linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, chunk=CHUNK).kl.sum()


CASES: dict[str, Callable[..., Tensor]] = {
    "the four matrix products alone": products,
    "linear_token_kl, token_weights given": engine,
    "linear_token_kl": engine_unweighted,
    "TRL, _chunked_divergence_loss": trl_divergence,
    "Liger, LigerFusedLinearJSDLoss": liger_divergence,
    "log_softmax, torch.compile": compiled_linear,
    "log_softmax, eager": naive_linear,
}


def installed_cases() -> dict[str, Callable[..., Tensor]]:
    """Return the cases whose packages are installed."""
    absent = importlib.util.find_spec("liger_kernel") is None
    return {name: case for name, case in CASES.items() if not (absent and name.startswith("Liger"))}


def linear_inputs(positions: int, vocabulary: int, width: int, dtype: torch.dtype, scale: float) -> list[Tensor]:
    """Return hidden states and heads of a policy and of a reference that differs by `scale`."""
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(positions, width, generator=generator), torch.randn(vocabulary, width, generator=generator)]
    inputs[1] /= width**0.5 / 3
    inputs += [tensor + scale * tensor.std() * torch.randn(tensor.shape, generator=generator) for tensor in inputs]
    return [tensor.to(dtype) for tensor in inputs]


def linear_error_table(scales: Sequence[float] = (0.7, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)) -> results.Table:
    """Return errors of the KL and of its gradients from hidden states in float32, against float64."""
    columns = ["KL"]
    rows = []
    cases = {name: case for name, case in installed_cases().items() if case not in (products, engine_unweighted)}
    cases = {name: case for name, case in cases.items() if case is not compiled_linear}
    for scale in scales:
        inputs = linear_inputs(16, 8_000, 64, torch.float32, scale)
        exact = value_and_gradients(engine, [tensor.double() for tensor in inputs])
        cells = [results.significant(exact[0].item() / 16, 2)]
        for case in cases.values():
            got = value_and_gradients(case, inputs)
            error = results.significant((abs(got[0].double() - exact[0]) / exact[0]).item(), 1)
            slopes = [((g.double() - e).norm() / e.norm()).item() for g, e in zip(got[1:], exact[1:], strict=True)]
            negative = " (negative)" if got[0] < 0 else ""
            cells.append(f"{error}{negative}; {results.significant(max(slopes), 1)}")
        rows.append(cells)
        print(f"KL {cells[0]}: {dict(zip(cases, cells[1:], strict=True))}", flush=True)
    return [*columns, *(f"{name}: value; gradients" for name in cases)], rows


def value_and_gradients(case: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the sum of the KL and its gradients with respect to the hidden states and the head of p."""
    given = [tensor.clone().requires_grad_(index < 2) for index, tensor in enumerate(inputs)]
    value = case(*given)
    return [value.detach(), *torch.autograd.grad(value, given[:2])]


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


def measure_case(case: str, shape: str) -> None:
    """Print the processor time of one case (the minimum of two) and its peak memory above the inputs in MB."""
    *sizes, dtype = SHAPES[shape]
    inputs = linear_inputs(*sizes, getattr(torch, dtype), 0.05)
    inputs = [tensor.requires_grad_(index < 2) for index, tensor in enumerate(inputs)]
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(2):
        start = time.process_time()
        value = CASES[case](*inputs)
        if value.grad_fn is not None:
            torch.autograd.grad(value, inputs[:2])
        seconds.append(time.process_time() - start)
        del value
    # A peak below the peak during the creation of the inputs is measured as 0.
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": min(seconds), "megabytes": peak}))


def linear_table(shape: str, threads: int, rounds: int) -> results.Table:
    """Return the time of value and gradients relative to the four products, and the peak memory above the inputs.

    The cases are measured in turn, `rounds` times. Ratios are the medians of the ratios within a round.
    """
    figures: dict[str, list[dict[str, float]]] = {case: [] for case in installed_cases()}
    for round_number in range(1, rounds + 1):
        for case, measured in figures.items():
            command = [sys.executable, __file__, "--case", case, "--shape", shape, "--threads", str(threads)]
            completed = subprocess.run(command, check=False, capture_output=True, text=True)
            if completed.returncode:
                raise SystemExit(f"{case}, {shape}: {completed.stderr}")
            measured.append(json.loads(completed.stdout.splitlines()[-1]))
            print(f"{shape}, round {round_number}, {case}: {measured[-1]}", flush=True)
    base = next(iter(figures.values()))
    rows: list[list[Any]] = []
    for case, measured in figures.items():
        ratios = [mine["seconds"] / reference["seconds"] for mine, reference in zip(measured, base, strict=True)]
        peak = median(figure["megabytes"] for figure in measured)
        seconds = median(figure["seconds"] for figure in measured)
        spread = f", {min(ratios):.2f} to {max(ratios):.2f}" if rounds > 1 else ""
        rows.append([case, f"{median(ratios):.2f} ({seconds:.1f} s{spread})", f"{peak:.0f}" if peak >= 1 else "0"])
    return ["implementation", "processor time relative to the products", "peak MB above the inputs"], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="how often each case from hidden states is measured")
    parser.add_argument("--quick", action="store_true", help="small shapes, to try the script; nothing is stored")
    parser.add_argument("--case", choices=CASES, help="measure only this case, in this process")
    parser.add_argument("--shape", choices=SHAPES, default="152k", help="with --case: the shape")
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.case:
        measure_case(options.case, options.shape)
        return
    tables = {"error": error_table(), "time": time_table(), "linear_error": linear_error_table()}
    for shape in ("quick",) if options.quick else ("152k", "32k", "bf16"):
        tables[f"linear_{shape}"] = linear_table(shape, options.threads, options.rounds)
    for table in tables.values():
        print(f"\n{results.markdown(table)}")
    if not (options.no_save or options.quick):
        results.save("tokens", tables, packages=("torch", "trl", "liger-kernel"))


if __name__ == "__main__":
    main()
