"""kl_probs and kl_logits against SciPy, PyTorch and numexpr: time, digits and memory bandwidth, in one run.

    python benchmarks/arrays.py [--sizes 10 1000 1000000 100000000] [--rows 64] [--repeats 9]

What is compared takes turns; each part runs in a process of its own, on one thread except where "2 threads" is said.
A turn begins with a call that is not timed, so that each is met with what it leaves in the caches, not with what the
one before it did; --cold leaves that call out.
Times are per event, or per call up to 1000 events. kl_logits of bfloat16 returns bfloat16, which has three digits.
100 million events in float64 need 6 GB; --sizes 10 1000 1000000 --rows 8 takes a minute.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from math import fsum
from statistics import median

import mpmath
import numpy as np

PARTS = ("probabilities", "torch", "logits", "digits")
FORMS = ("float64", "float32")
BASE = "np.sum(rel_entr)"


def take_turns(cases, repeats, number=1, cold=False):
    """Seconds a call, of each case in turn: median and least."""
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
    return {name: (median(times), min(times)) for name, times in seconds.items()}


def pair(n, dtype, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(2):
        probs = rng.random(n)
        probs += 0.001
        probs /= probs.sum()
        yield probs.astype(dtype)


def truth(p, q):
    """KL(p/P || q/Q) in 80-bit floats, or for short rows by mpmath."""
    if len(p) <= 1000:
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


def error(value, exact):
    return float(abs((mpmath.mpf(float(value)) - exact) / exact))


def without(module, threads, function):
    """The function with that module of kernels, or None, on so many threads."""
    from kullback.discrete.kernels import dispatch, numba_probs

    def call():
        dispatch._loaded["kullback.discrete.kernels.numba_probs"], numba_probs.THREADS = module, threads
        return function()

    return call


def in_two(p, q):
    half = len(p) // 2
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(np.dot, (p[:half], p[half:]), (q[:half], q[half:])))


def probabilities(arguments):
    import numexpr
    import scipy.special
    import scipy.stats

    from kullback import kl_probs
    from kullback.discrete.kernels import numba_probs

    numexpr.set_num_threads(1)
    for n in arguments.sizes:
        for dtype in FORMS:
            p, q = pair(n, dtype)
            cases = {
                BASE: lambda p=p, q=q: np.sum(scipy.special.rel_entr(p, q)),
                "scipy.stats.entropy": lambda p=p, q=q: scipy.stats.entropy(p, q),
                "numexpr": lambda p=p, q=q: numexpr.evaluate("sum(p * log(p / q))", local_dict={"p": p, "q": q}),
                "kl_probs without Numba": without(None, 1, lambda p=p, q=q: kl_probs(p, q)),
                "kl_probs": without(numba_probs, 1, lambda p=p, q=q: kl_probs(p, q)),
            }
            if n <= 1000:
                cases["its kernel alone"] = lambda p=p, q=q: numba_probs.kl_probs_row(p, q, 1e-5)
            if n >= 10**7:
                cases["kl_probs, 2 threads"] = without(numba_probs, 2, lambda p=p, q=q: kl_probs(p, q))
                cases["reading: p.dot(q)"] = lambda p=p, q=q: p.dot(q)
                cases["reading, 2 threads"] = lambda p=p, q=q: in_two(p, q)
            exact = truth(p, q)
            errors = {name: error(case(), exact) for name, case in cases.items() if "reading" not in name}
            slow = n > 10**7
            times = take_turns(cases, 3 if slow else arguments.repeats, max(1, 10_000 // n), arguments.cold)
            show(f"{n:.0e} events, {dtype}, KL = {float(exact):.3f}", times, n, errors)
            if n >= 10**7:
                for one, two in (("kl_probs", "reading: p.dot(q)"), ("kl_probs, 2 threads", "reading, 2 threads")):
                    share = times[two][1] / times[one][1]
                    print(f"{one}: {share:.0%} of the bandwidth of {two}")


def torch(arguments):
    import scipy.special
    import torch
    from torch.nn.functional import kl_div

    torch.set_num_threads(1)
    compiled = torch.compile(lambda log_q, p: kl_div(log_q, p, reduction="sum"))
    for n in arguments.sizes:
        for dtype in FORMS:
            p, q = pair(n, dtype)
            tensor_p, log_q = torch.from_numpy(p), torch.from_numpy(np.log(q))
            cases = {
                BASE: lambda p=p, q=q: np.sum(scipy.special.rel_entr(p, q)),
                "F.kl_div, log q given": lambda p=tensor_p, q=log_q: kl_div(q, p, reduction="sum"),
                "the same, compiled": lambda p=tensor_p, q=log_q: compiled(q, p),
            }
            exact = truth(p, q)
            errors = {name: error(case(), exact) for name, case in cases.items()}
            times = take_turns(cases, 3 if n > 10**7 else arguments.repeats, max(1, 10_000 // n), arguments.cold)
            show(f"{n:.0e} events, {dtype}, beside PyTorch", times, n, errors)


def logits(arguments):
    import torch
    from torch.nn.functional import kl_div

    from kullback import kl_logits

    torch.set_num_threads(1)

    def usual(p_logits, q_logits):
        log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
        return kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)

    compiled = torch.compile(usual, dynamic=False)
    for width in (32_000, 152_000):
        for dtype in (torch.float32, torch.bfloat16):
            generator = torch.Generator().manual_seed(0)
            p = (3 * torch.randn(arguments.rows, width, generator=generator)).to(dtype)
            q = (p + 0.3 * torch.randn(arguments.rows, width, generator=generator)).to(dtype)
            cases = {
                "eager PyTorch": lambda p=p, q=q: usual(p.float(), q.float()),
                "torch.compile": lambda p=p, q=q: compiled(p.float(), q.float()),
                "kl_logits": lambda p=p, q=q: kl_logits(p, q),
            }
            exact = kl_logits(p.double().requires_grad_(), q.double()).detach()
            errors = {name: ((case().double() - exact).abs() / exact).median().item() for name, case in cases.items()}
            times = take_turns(cases, arguments.repeats, cold=arguments.cold)
            title = f"{arguments.rows} rows of {width} logits, {dtype}"
            show(title, times, p.numel(), errors, "eager PyTorch")
            print(f"torch.compile / kl_logits: {times['torch.compile'][0] / times['kl_logits'][0]:.1f}")


def digits(_arguments):
    import scipy.special
    import scipy.stats
    import torch

    from kullback import kl_probs
    from kullback.discrete.kernels import numba_probs

    print("\nRelative error against 60 digits, 1000 events, float64; (-) where the value is negative\n")
    rows = {}
    for delta in (1e-4, 1e-6, 1e-8, 1e-10):
        p, q = pair(1000, np.float64)
        q = p * (1 + delta * np.random.default_rng(1).normal(size=1000))
        q /= fsum(q)
        exact = truth(p, q)
        cases = {
            BASE: np.sum(scipy.special.rel_entr(p, q)),
            "scipy.stats.entropy": scipy.stats.entropy(p, q),
            "sum of scipy kl_div": scipy.special.kl_div(p, q).sum(),
            "F.kl_div": torch.nn.functional.kl_div(torch.from_numpy(np.log(q)), torch.from_numpy(p), reduction="sum"),
            "kl_probs without Numba": without(None, 1, lambda p=p, q=q: kl_probs(p, q))(),
            "kl_probs": without(numba_probs, 1, lambda p=p, q=q: kl_probs(p, q))(),
        }
        rows.setdefault("KL", []).append(f"{float(exact):.0e}")
        for name, value in cases.items():
            rows.setdefault(name, []).append(f"{error(value, exact):.0e}{' (-)' if value < 0 else ''}")
    for name, cells in rows.items():
        print(f"{name:24}" + "".join(f"{cell:>14}" for cell in cells))


def show(title, times, n, errors, base=BASE):
    print(f"\n{title}\n\n{'':24}{'median':>12}{'least':>12}{'times faster':>14}{'relative error':>16}")
    for name, (middle, least) in times.items():
        unit = f"{middle * 1e6:9.2f} us{least * 1e6:9.2f} us" if n <= 1000 else ""
        unit = unit or f"{middle / n * 1e9:9.3f} ns{least / n * 1e9:9.3f} ns"
        accuracy = f"{errors[name]:16.0e}" if name in errors else ""
        print(f"{name:24}{unit}{times[base][0] / middle:13.1f}x{accuracy}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10, 1000, 10**6, 10**8], help="events; ns are per event"
    )
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cold", action="store_true", help="time each turn's first call")
    parser.add_argument("--part", choices=PARTS, help="this one alone, in this process")
    given = parser.parse_args()
    if given.part:
        globals()[given.part](given)
    else:
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        for part in PARTS:
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--part", part], check=True, env=one_thread)
