"""linear_token_kl and token_kl against PyTorch's log_softmax: digits, time and peak memory, in one run.

    python benchmarks/tokens.py [--threads 2]

Those of logits take turns; each timing of hidden states runs in a process of its own, so that its peak memory is too.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from statistics import median

import torch

from kullback.tokens import linear_token_kl, token_kl

POSITIONS, WIDTH, VOCABULARY = 768, 256, 32_000
LOGIT_ROWS = 128


def naive_token_kl(p_logits, q_logits):
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def naive_linear(hidden_p, weight_p, hidden_q, weight_q):
    return naive_token_kl(hidden_p @ weight_p.T, hidden_q @ weight_q.T)


def chunked(chunk):
    return lambda *heads: linear_token_kl(*heads, chunk=chunk)


CASES = {"naive": naive_linear, "chunk 256": chunked(256), "chunk 64": chunked(64)}


def accuracy() -> None:
    print("token_kl, float32, 16 positions, V = 32000: median relative error (and how many values are negative)\n")
    print(f"{'KL':>8}  {'naive':>18}  {'token_kl':>18}  {'naive / token_kl':>16}")
    generator = torch.Generator().manual_seed(0)
    for target in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8):
        p = 3 * torch.randn(16, VOCABULARY, generator=generator)
        q = p + (2 * target) ** 0.5 * torch.randn(16, VOCABULARY, generator=generator)
        truth = token_kl(p.double(), q.double())
        errors, negatives = [], []
        for function in (naive_token_kl, token_kl):
            got = function(p, q).double()
            errors.append(((got - truth).abs() / truth).median().item())
            negatives.append(int((got < 0).sum()))
        cells = [f"{error:.1e} ({count:2d} neg)" for error, count in zip(errors, negatives, strict=True)]
        print(f"{truth.mean().item():8.1e}  {cells[0]:>18}  {cells[1]:>18}  {errors[0] / errors[1]:16.1e}")


def speed(repeats: int = 7) -> None:
    """Logits in, KL out: with and without the gradient by the policy's."""
    print(f"\ntoken_kl, float32, {LOGIT_ROWS} positions, V = {VOCABULARY}: ns an entry, median of {repeats} turns\n")
    generator = torch.Generator().manual_seed(2)
    p = 3 * torch.randn(LOGIT_ROWS, VOCABULARY, generator=generator)
    q = p + 0.1 * torch.randn(p.shape, generator=generator)
    learning = p.clone().requires_grad_()
    functions = {"naive": naive_token_kl, "naive, compiled": torch.compile(naive_token_kl), "token_kl": token_kl}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(repeats + 2):
        for name, function in functions.items():
            for part, call in (
                ("value", lambda function=function: function(p, q)),
                ("and gradient", lambda function=function: torch.autograd.grad(function(learning, q).sum(), learning)),
            ):
                start = time.perf_counter()
                call()
                if turn > 1:
                    seconds.setdefault((name, part), []).append(time.perf_counter() - start)
    for name in functions:
        cells = [f"{part} {1e9 * median(seconds[name, part]) / p.numel():6.2f}" for part in ("value", "and gradient")]
        print(f"{name:16}  {'  '.join(cells)}")


def measure(case: str, learns: bool) -> None:
    """One case: seconds (the best of two) and the peak above the inputs, in MB, as JSON."""
    generator = torch.Generator().manual_seed(1)
    heads = [
        torch.randn(POSITIONS, WIDTH, generator=generator),
        torch.randn(VOCABULARY, WIDTH, generator=generator) / 16,
    ]
    heads += [head + 0.01 * torch.randn(head.shape, generator=generator) for head in heads]
    heads = [head.requires_grad_(learns and side < 2) for side, head in enumerate(heads)]
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(2):
        start = time.perf_counter()
        kl = CASES[case](*heads)
        if learns:
            torch.autograd.grad(kl.sum(), heads[:2])
        seconds.append(time.perf_counter() - start)
        del kl
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    # What stays below the peak that making the inputs had is not seen.
    print(json.dumps({"seconds": min(seconds), "megabytes": max(1.0, peak)}))


def cost(threads: int) -> None:
    print(
        f"\nlinear_token_kl, float32, N = {POSITIONS}, d = {WIDTH}, V = {VOCABULARY}, {threads} thread(s), frozen q\n"
    )
    print(f"{'':22}  {'seconds':>8}  {'time / naive':>12}  {'peak MB':>8}  {'naive peak / peak':>17}")
    for learns in (False, True):
        base = None
        for case in CASES:
            command = [
                sys.executable,
                __file__,
                "--case",
                case,
                "--threads",
                str(threads),
                *(["--learns"] if learns else []),
            ]
            got = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            base = base or got
            label = f"{case}, {'with gradient' if learns else 'value'}"
            print(
                f"{label:22}  {got['seconds']:8.2f}  {got['seconds'] / base['seconds']:12.2f}  "
                f"{got['megabytes']:8.0f}  {base['megabytes'] / got['megabytes']:17.1f}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", choices=CASES, help="measure this one alone")
    parser.add_argument("--learns", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case:
        measure(arguments.case, arguments.learns)
    else:
        accuracy()
        speed()
        cost(arguments.threads)
