"""Compare kl_probs and kl_logits with SciPy, PyTorch and numexpr: time, accuracy and memory bandwidth.

    python benchmarks/arrays.py [--sizes 10 1000 1000000 100000000] [--rows 64] [--repeats 9]

The implementations are timed in turn. Each of the four parts runs in a new process, on one thread unless "2 threads" is
stated. Every implementation is called once, untimed, before it is timed, so that the contents of the caches do not
depend on the implementation that ran before it; --cold omits this call. Times are per event, or per call up to 1000
events. kl_logits of bfloat16 returns bfloat16, which has three significant digits. 100 million events in float64 need
6 GB of memory; `--sizes 10 1000 1000000 --rows 8 --no-save` takes a minute.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from math import fsum
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import mpmath
import numpy as np
import results

DTYPES = ("float64", "float32")
SHORT = 1000  # the largest number of events for which times are per call
BASE = "np.sum(scipy.special.rel_entr)"
KL_PROBS, NUMPY_PROBS = "kl_probs", "kl_probs without compiled kernels"
READ = "memory read, p.dot(q)"
EAGER, COMPILED, KL_LOGITS = "log_softmax and kl_div, eager", "log_softmax and kl_div, torch.compile", "kl_logits"


class Time(NamedTuple):
    """Seconds of one call, and the relative error of its value (None for a memory read)."""

    median: float
    minimum: float
    error: float | None = None


Times = dict[str, Time]  # by implementation


def time_in_turn(cases: dict[str, Callable], repeats: int, number: int = 1, cold: bool = False) -> Times:
    """Return the median and minimum seconds of a call of each case, where the cases take turns."""
    seconds = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(repeats):
        for name, case in cases.items():
            if not cold:
                case()
            start = time.perf_counter()
            for _ in range(number):
                case()
            seconds[name].append((time.perf_counter() - start) / number)
    return {name: Time(median(times), min(times)) for name, times in seconds.items()}


def random_probs(n: int, dtype: str, seed: int = 0) -> list[np.ndarray]:
    """Return two random probability vectors of length n."""
    rng = np.random.default_rng(seed)
    vectors = []
    for _ in range(2):
        probs = rng.random(n)
        probs += 0.001
        probs /= probs.sum()
        vectors.append(probs.astype(dtype))
    return vectors


def reference_kl(p: np.ndarray, q: np.ndarray) -> Any:
    """Return KL(p/P || q/Q) with P = sum p and Q = sum q: by mpmath up to 1000 events, in 80-bit floats above."""
    if len(p) <= SHORT:
        with mpmath.workdps(60):
            p, q = ([mpmath.mpf(float(value)) for value in side] for side in (p, q))
            mass_p, mass_q = mpmath.fsum(p), mpmath.fsum(q)
            return mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True)) / mass_p + mpmath.log(
                mass_q / mass_p
            )
    parts = []
    for start in range(0, len(p), 2**20):
        a, b = (side[start : start + 2**20].astype(np.longdouble) for side in (p, q))
        parts.append((np.sum(a * np.log(a / b)), a.sum(), b.sum()))
    total, mass_p, mass_q = (sum(part[k] for part in parts) for k in range(3))
    return mpmath.mpf(repr(total / mass_p + np.log(mass_q / mass_p)).split("'")[1])


def relative_error(value: Any, exact: Any) -> float:
    """Return |value - exact| / exact."""
    return float(abs((mpmath.mpf(float(value)) - exact) / exact))


def with_kernels(module: Any, threads: int, function: Callable) -> Callable:
    """Return `function` such that it uses the compiled kernels of `module` (None: NumPy) on `threads` threads."""
    from kullback.discrete.kernels import dispatch

    def call():
        dispatch.compiled, dispatch.THREADS = module, threads
        return function()

    return call


def dot_in_halves(p: np.ndarray, q: np.ndarray) -> Any:
    """Return p.dot(q), computed on two threads."""
    half = len(p) // 2
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(np.dot, (p[:half], p[half:]), (q[:half], q[half:])))


def probability_times(options: argparse.Namespace) -> dict[str, Times]:
    """Return the times of kl_probs, SciPy, numexpr and memory reads, by column."""
    import numexpr
    import scipy.special
    import scipy.stats

    from kullback import kl_probs
    from kullback.compiled import kernels

    numexpr.set_num_threads(1)
    columns = {}
    for n in options.sizes:
        for dtype in DTYPES:
            p, q = random_probs(n, dtype)
            cases = {
                BASE: lambda p=p, q=q: np.sum(scipy.special.rel_entr(p, q)),
                "scipy.stats.entropy": lambda p=p, q=q: scipy.stats.entropy(p, q),
                "numexpr": lambda p=p, q=q: numexpr.evaluate("sum(p * log(p / q))", local_dict={"p": p, "q": q}),
                NUMPY_PROBS: with_kernels(None, 1, lambda p=p, q=q: kl_probs(p, q)),
                KL_PROBS: with_kernels(kernels, 1, lambda p=p, q=q: kl_probs(p, q)),
            }
            if n <= SHORT:
                cases["compiled kernel of kl_probs"] = lambda p=p, q=q: kernels.kl_probs_row(p, q, 1e-5)
            if n >= 10**7:
                cases[f"{KL_PROBS}, 2 threads"] = with_kernels(kernels, 2, lambda p=p, q=q: kl_probs(p, q))
                cases[READ] = lambda p=p, q=q: p.dot(q)
                cases[f"{READ}, 2 threads"] = lambda p=p, q=q: dot_in_halves(p, q)
            columns[column(n, dtype)] = measured(options, n, cases, reference_kl(p, q))
            print_times(column(n, dtype), columns[column(n, dtype)], n, BASE)
    return columns


def torch_times(options: argparse.Namespace) -> dict[str, Times]:
    """Return the times of PyTorch's kl_div, by column."""
    import scipy.special
    import torch
    from torch.nn.functional import kl_div

    torch.set_num_threads(1)
    compiled = torch.compile(lambda log_q, p: kl_div(log_q, p, reduction="sum"))
    columns = {}
    for n in options.sizes:
        for dtype in DTYPES:
            p, q = random_probs(n, dtype)
            tensor_p, log_q = torch.from_numpy(p), torch.from_numpy(np.log(q))
            cases = {
                BASE: lambda p=p, q=q: np.sum(scipy.special.rel_entr(p, q)),
                "F.kl_div, log q precomputed": lambda p=tensor_p, q=log_q: kl_div(q, p, reduction="sum"),
                "F.kl_div, torch.compile": lambda p=tensor_p, q=log_q: compiled(q, p),
            }
            times = measured(options, n, cases, reference_kl(p, q))
            print_times(f"{column(n, dtype)}, PyTorch", times, n, BASE)
            columns[column(n, dtype)] = {name: figure for name, figure in times.items() if name != BASE}
    return columns


def measured(options: argparse.Namespace, n: int, cases: dict[str, Callable], exact: Any) -> Times:
    """Return the time and the relative error of each case on n events."""
    errors = {name: None if READ in name else relative_error(case(), exact) for name, case in cases.items()}
    repeats = 3 if n > 10**7 else options.repeats
    times = time_in_turn(cases, repeats, max(1, 10_000 // n), options.cold)
    return {name: figure._replace(error=errors[name]) for name, figure in times.items()}


def logits_times(options: argparse.Namespace) -> dict[str, Times]:
    """Return the times of kl_logits and of PyTorch's log_softmax and kl_div, by column, in seconds an entry."""
    import torch
    from torch.nn.functional import kl_div

    from kullback import kl_logits

    torch.set_num_threads(1)

    def naive(p_logits, q_logits):
        log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
        return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)

    compiled = torch.compile(naive, dynamic=False)
    columns = {}
    for width in (32_000, 152_000):
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator().manual_seed(0)
            p = (3 * torch.randn(options.rows, width, generator=generator)).to(dtype)
            q = (p + 0.3 * torch.randn(options.rows, width, generator=generator)).to(dtype)
            cases = {
                EAGER: lambda p=p, q=q: naive(p.float(), q.float()),
                COMPILED: lambda p=p, q=q: compiled(p.float(), q.float()),
                KL_LOGITS: lambda p=p, q=q: kl_logits(p, q),
            }
            exact = kl_logits(p.double().requires_grad_(), q.double()).detach()
            errors = {name: ((case().double() - exact).abs() / exact).median().item() for name, case in cases.items()}
            times = time_in_turn(cases, options.repeats, cold=options.cold)
            times = {name: figure._replace(error=errors[name]) for name, figure in times.items()}
            label = f"V = {width // 1000}k, {str(dtype).removeprefix('torch.')}"
            print_times(f"{label}, {options.rows} rows", times, p.numel(), EAGER)
            columns[label] = {
                name: Time(middle / p.numel(), minimum / p.numel(), error)
                for name, (middle, minimum, error) in times.items()
            }
    return columns


def error_rows(_options: argparse.Namespace) -> list[dict[str, float]]:
    """Return KL and the relative error of each implementation for nearly equal p and q; minus if KL was negative."""
    import scipy.special
    import scipy.stats
    import torch

    from kullback import kl_probs
    from kullback.compiled import kernels

    rows = []
    for delta in (1e-4, 1e-6, 1e-8, 1e-10):
        p, q = random_probs(1000, "float64")
        q = p * (1 + delta * np.random.default_rng(1).normal(size=1000))
        q /= fsum(q)
        exact = reference_kl(p, q)
        values = {
            BASE: np.sum(scipy.special.rel_entr(p, q)),
            "scipy.stats.entropy": scipy.stats.entropy(p, q),
            "sum of scipy.special.kl_div": scipy.special.kl_div(p, q).sum(),
            "F.kl_div": torch.nn.functional.kl_div(torch.from_numpy(np.log(q)), torch.from_numpy(p), reduction="sum"),
            NUMPY_PROBS: with_kernels(None, 1, lambda p=p, q=q: kl_probs(p, q))(),
            KL_PROBS: with_kernels(kernels, 1, lambda p=p, q=q: kl_probs(p, q))(),
        }
        errors = {name: relative_error(value, exact) * (-1 if value < 0 else 1) for name, value in values.items()}
        rows.append({"KL": float(exact), **errors})
    return rows


def column(n: int, dtype: str) -> str:
    """Return the name of the column for n events of a dtype."""
    if n <= SHORT:
        return f"{n} {dtype}, us a call"
    return f"{results.significant(n, 1)} {dtype}, ns an event"


def time_table(options: argparse.Namespace, columns: dict[str, Times]) -> results.Table:
    """Return the table of kl_probs: implementations by columns, in float64 alone where times are per call."""
    shown = {}
    for n in options.sizes:
        for dtype in DTYPES if n > SHORT else DTYPES[:1]:
            scale = 1e6 if n <= SHORT else 1e9 / n
            shown[column(n, dtype)] = (scale, columns[column(n, dtype)])
    names = dict.fromkeys(name for _, times in shown.values() for name in times)
    rows = [[name, *(_time_cell(times.get(name), scale) for scale, times in shown.values())] for name in names]
    for name in (NUMPY_PROBS, KL_PROBS):
        speedups = [results.significant(times[BASE].median / times[name].median, 2) for _, times in shown.values()]
        rows.append([f"speed-up of {name} over rel_entr", *speedups])
    for suffix in ("", ", 2 threads"):
        shares = [
            f"{times[READ + suffix].minimum / times[KL_PROBS + suffix].minimum:.0%}" if READ in times else ""
            for _, times in shown.values()
        ]
        if any(shares):
            rows.append([f"share of the memory bandwidth, kl_probs{suffix}", *shares])
    return ["implementation", *shown], rows


def _time_cell(figure: Time | None, scale: float) -> str:
    if figure is None:
        return ""
    note = f" (relative error {figure.error:.0%})" if figure.error is not None and figure.error > 0.005 else ""
    return decimals(figure.median * scale) + note


def decimals(value: float) -> str:
    """Format a time: two significant digits below 10, one decimal below 100."""
    return results.significant(value, 2) if value < 9.95 else f"{value:.1f}" if value < 99.5 else f"{value:.0f}"


def logits_table(columns: dict[str, Times]) -> results.Table:
    """Return the table of kl_logits, in ns an entry, with the relative error in float32."""
    first = next(iter(columns.values()))
    rows = [
        [name, *(decimals(1e9 * times[name].median) for times in columns.values()), results.significant(error, 1)]
        for name, (_, _, error) in first.items()
    ]
    for name, base in (("eager", EAGER), ("torch.compile", COMPILED)):
        speedups = [results.significant(times[base].median / times[KL_LOGITS].median, 2) for times in columns.values()]
        rows.append([f"speed-up of {KL_LOGITS} over {name}", *speedups, ""])
    return ["implementation", *columns, "relative error, float32"], rows


def error_table(rows: Sequence[dict[str, float]]) -> results.Table:
    """Return the table of relative errors for nearly equal p and q."""
    cells = [
        [results.significant(abs(value), 1) + (", negative" if value < 0 else "") for value in row.values()]
        for row in rows
    ]
    return list(rows[0]), cells


def print_times(title: str, times: Times, n: int, base: str) -> None:
    scale, unit = (1e6, "us") if n <= SHORT else (1e9 / n, "ns")
    print(f"\n{title}\n\n{'':40}{'median':>12}{'minimum':>12}{'speed-up':>10}{'relative error':>16}")
    for name, (middle, minimum, error) in times.items():
        accuracy = f"{error:16.0e}" if error is not None else ""
        speedup = times[base].median / middle
        print(
            f"{name:40}{middle * scale:9.3f} {unit}{minimum * scale:9.3f} {unit}{speedup:10.1f}{accuracy}", flush=True
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1000, 10**6, 10**8], help="numbers of events")
    parser.add_argument("--rows", type=int, default=64, help="rows of logits")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cold", action="store_true", help="omit the untimed call before each timed one")
    parser.add_argument("--parts", nargs="+", choices=("probabilities", "logits", "error"), help="default: all")
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    parts = options.parts or ["probabilities", "logits", "error"]
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    tables: dict[str, results.Table] = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        if "probabilities" in parts:
            columns = pool.submit(probability_times, options).result()
            for name, times in pool.submit(torch_times, options).result().items():
                columns[name] |= times
            tables[f"time-{'avx512' if results.has_avx512() else 'no-avx512'}"] = time_table(options, columns)
        if "logits" in parts:
            tables["logits"] = logits_table(pool.submit(logits_times, options).result())
        if "error" in parts:
            tables["error"] = error_table(pool.submit(error_rows, options).result())
    for table in tables.values():
        print(f"\n{results.markdown(table)}")
    if not options.no_save:
        results.save("arrays", tables, packages=("scipy", "torch", "numexpr"))


if __name__ == "__main__":
    main()
