"""Time `kl` of distribution objects of PyTorch against torch.distributions.kl_divergence, with the error of both.

    python benchmarks/distributions.py [--repeats 7] [--only NAME ...] [--no-save]

The two functions are timed in turns, on one thread, and each time is the median processor time over the repeats. Times
are given for
single numbers, for a batch of shape (64, 20) and for shape (1000, 1000), in float32, and for a batch with gradients.
The errors are the largest relative errors over 200 pairs of distributions in float32 whose parameters differ by about
1e-3, against mpmath with 40 digits.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import mpmath
import numpy as np
import results
import torch
from torch import distributions as d

from kullback import kl

SHAPES = ((), (64, 20), (1000, 1000))


class Case(NamedTuple):
    """A class of distributions.

    Args:
        build: Constructs a distribution from its parameters.
        kinds: How each parameter is drawn: "r" real, "p" positive, "m" positive and smaller in q, "u" a probability,
            "v" a vector of real numbers, "c" a vector of positive numbers, "w" an interval, "n" a vector of 20 real
            numbers, "f" a lower factor of 20 rows.
        truth: KL from the parameters of p and of q, in extended precision.
    """

    build: Callable[..., Any]
    kinds: str
    truth: Callable[..., mpmath.mpf]


def normal(loc1: Any, scale1: Any, loc2: Any, scale2: Any) -> mpmath.mpf:
    """Return KL between two normal distributions."""
    return mpmath.log(scale2 / scale1) + ((scale1**2 + (loc1 - loc2) ** 2) / scale2**2 - 1) / 2


def bernoulli(p: Any, q: Any) -> mpmath.mpf:
    """Return KL between two Bernoulli distributions."""
    return p * mpmath.log(p / q) + (1 - p) * mpmath.log((1 - p) / (1 - q))


def logistic(x: Any) -> mpmath.mpf:
    """Return 1 / (1 + e^-x)."""
    return 1 / (1 + mpmath.exp(-x))


def laplace(loc1: Any, scale1: Any, loc2: Any, scale2: Any) -> mpmath.mpf:
    """Return KL between two Laplace distributions."""
    distance = abs(loc1 - loc2)
    return mpmath.log(scale2 / scale1) + distance / scale2 + scale1 / scale2 * mpmath.exp(-distance / scale1) - 1


def gumbel(loc1: Any, scale1: Any, loc2: Any, scale2: Any) -> mpmath.mpf:
    """Return KL between two Gumbel distributions."""
    ratio = scale1 / scale2
    mass = mpmath.exp((loc2 - loc1) / scale2) * mpmath.gamma(1 + ratio)
    return mpmath.log(scale2 / scale1) + mpmath.euler * (ratio - 1) + (loc1 - loc2) / scale2 + mass - 1


def cauchy(loc1: Any, scale1: Any, loc2: Any, scale2: Any) -> mpmath.mpf:
    """Return KL between two Cauchy distributions."""
    return mpmath.log(((scale1 + scale2) ** 2 + (loc1 - loc2) ** 2) / (4 * scale1 * scale2))


def pareto(scale1: Any, alpha1: Any, scale2: Any, alpha2: Any) -> mpmath.mpf:
    """Return KL between two Pareto distributions."""
    return mpmath.log(alpha1 / alpha2) + alpha2 / alpha1 - 1 + alpha2 * mpmath.log(scale1 / scale2)


def gamma(k1: Any, r1: Any, k2: Any, r2: Any) -> mpmath.mpf:
    """Return KL between two gamma distributions."""
    constants = mpmath.loggamma(k2) - mpmath.loggamma(k1) + k2 * mpmath.log(r1 / r2)
    return (k1 - k2) * mpmath.digamma(k1) + constants + k1 * (r2 / r1 - 1)


def dirichlet(a: Any, b: Any) -> mpmath.mpf:
    """Return KL between two Dirichlet distributions."""
    total = mpmath.fsum(a)
    terms = [
        mpmath.loggamma(y) - mpmath.loggamma(x) + (x - y) * (mpmath.digamma(x) - mpmath.digamma(total))
        for x, y in zip(a, b, strict=True)
    ]
    return mpmath.loggamma(total) - mpmath.loggamma(mpmath.fsum(b)) + mpmath.fsum(terms)


def categorical(p: Any, q: Any) -> mpmath.mpf:
    """Return KL between two categorical distributions, from logits."""
    p, q = ([mpmath.exp(x) for x in side] for side in (p, q))
    mass_p, mass_q = mpmath.fsum(p), mpmath.fsum(q)
    return mpmath.fsum(x / mass_p * mpmath.log(x / mass_p / (y / mass_q)) for x, y in zip(p, q, strict=True))


def multivariate(loc1: Any, factor1: Any, loc2: Any, factor2: Any) -> mpmath.mpf:
    """Return KL between two multivariate normal distributions, from lower factors."""
    size = len(loc1)
    p, q = (mpmath.matrix(size, size) for _ in range(2))
    for matrix, entries in ((p, factor1), (q, factor2)):
        for i, entry in enumerate(entries):
            matrix[i // size, i % size] = entry
    shift = mpmath.lu_solve(q, mpmath.matrix([x - y for x, y in zip(loc1, loc2, strict=True)]))
    ratio = q**-1 * p
    logs = mpmath.fsum(mpmath.log(q[i, i] / p[i, i]) for i in range(size))
    return (mpmath.fsum(x * x for x in ratio) + mpmath.fsum(x * x for x in shift) - size) / 2 + logs


def independent_normal(loc: torch.Tensor, scale: torch.Tensor) -> Any:
    """Return independent normal distributions along the last axis, or a normal distribution without axes."""
    return d.Independent(d.Normal(loc, scale), 1) if loc.ndim else d.Normal(loc, scale)


def factored_normal(loc: torch.Tensor, factor: torch.Tensor) -> Any:
    """Return a multivariate normal distribution from its lower factor."""
    return d.MultivariateNormal(loc, scale_tril=factor)


CASES = {
    "Normal": Case(d.Normal, "rp", normal),
    "Independent(Normal)": Case(independent_normal, "rp", normal),
    "LogNormal": Case(d.LogNormal, "rp", normal),
    "Laplace": Case(d.Laplace, "rp", laplace),
    "Exponential": Case(d.Exponential, "p", lambda a, b: mpmath.log(a / b) + b / a - 1),
    "Gamma": Case(d.Gamma, "pp", gamma),
    "Beta": Case(d.Beta, "pp", lambda a1, a0, b1, b0: dirichlet([a1, a0], [b1, b0])),
    "Dirichlet, 20 categories": Case(d.Dirichlet, "c", dirichlet),
    "Poisson": Case(d.Poisson, "p", lambda a, b: a * mpmath.log(a / b) - a + b),
    "Bernoulli(probs)": Case(d.Bernoulli, "u", bernoulli),
    "Bernoulli(logits)": Case(
        lambda logits: d.Bernoulli(logits=logits), "r", lambda a, b: bernoulli(logistic(a), logistic(b))
    ),
    "Geometric": Case(d.Geometric, "u", lambda p, q: bernoulli(p, q) / p),
    "Categorical(logits), 20 categories": Case(lambda logits: d.Categorical(logits=logits), "v", categorical),
    "Uniform": Case(d.Uniform, "w", lambda a, b, c, e: mpmath.log((e - c) / (b - a))),
    "Binomial(10)": Case(lambda probs: d.Binomial(10, probs), "u", lambda p, q: 10 * bernoulli(p, q)),
    "Gumbel": Case(d.Gumbel, "rp", gumbel),
    "Cauchy": Case(d.Cauchy, "rp", cauchy),
    "Pareto": Case(d.Pareto, "mp", pareto),
    "HalfNormal": Case(d.HalfNormal, "p", lambda a, b: normal(0, a, 0, b)),
    "MultivariateNormal, 20 components": Case(factored_normal, "nf", multivariate),
}


def parameters(case: Case, shape: tuple[int, ...], generator: torch.Generator, distance: float | None) -> list[Any]:
    """Return the parameters of p and of q; q is independent of p without a distance."""
    sides: list[list[torch.Tensor]] = [[], []]
    for kind in case.kinds:
        full = shape if kind not in "vc" or shape else (20,)
        if kind in "nf":
            full = (*shape[:-1], 20) if kind == "n" else (*shape[:-1], 20, 20)
        first, second = (torch.randn(full, generator=generator) for _ in range(2))
        if distance is not None:
            second = first + distance * second
        for side, value in zip(sides, (first, second), strict=True):
            if kind in "pc":
                value = value.exp()
            elif kind == "m":  # smaller in q
                value = value.exp() if side is sides[0] else sides[0][0] * (-second.abs()).exp()
            elif kind == "u":
                value = value.sigmoid()
            elif kind == "f":
                value = value.tril(-1) / 5 + torch.diag_embed((value.diagonal(dim1=-2, dim2=-1) / 5).exp())
            elif kind == "w":
                low = value if side is sides[0] else sides[0][0] - value.abs()
                side.append(low)
                value = low + 1.0 if side is sides[0] else sides[0][1] + second.abs()
            side.append(value)
    return [*sides[0], *sides[1]]


def seconds(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each call, in turns."""
    counts = {}
    for name, call in calls.items():
        call()
        start = time.process_time()
        call()
        counts[name] = max(1, min(2000, int(0.02 / max(time.process_time() - start, 1e-7))))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.process_time()
            for _ in range(counts[name]):
                call()
            taken[name].append((time.process_time() - start) / counts[name])
    return {name: median(values) for name, values in taken.items()}


def timed(case: Case, shape: tuple[int, ...], repeats: int, *, gradient: bool = False) -> dict[str, float]:
    """Return the seconds of torch and of kullback for one shape."""
    values = parameters(case, shape, torch.Generator().manual_seed(0), None)
    half = len(values) // 2
    if not gradient:
        p, q = case.build(*values[:half]), case.build(*values[half:])
        return seconds({"torch": lambda: d.kl_divergence(p, q), "kullback": lambda: kl(p, q)}, repeats)
    values = [value.requires_grad_() for value in values]

    def step(function: Callable[..., torch.Tensor]) -> None:
        function(case.build(*values[:half]), case.build(*values[half:])).sum().backward()

    return seconds({"torch": lambda: step(d.kl_divergence), "kullback": lambda: step(kl)}, repeats)


def errors(case: Case) -> dict[str, float]:
    """Return the largest relative error of torch and of kullback for nearly equal distributions."""
    of_rows = case.kinds in ("v", "c", "nf")
    values = parameters(case, (200, 20) if of_rows else (200,), torch.Generator().manual_seed(1), 1e-3)
    half = len(values) // 2
    if case.build is independent_normal:
        values = [value[:, None] for value in values]
    p, q = case.build(*values[:half]), case.build(*values[half:])
    found = {"torch": d.kl_divergence(p, q), "kullback": kl(p, q)}
    worst = dict.fromkeys(found, 0.0)
    with mpmath.workdps(40):
        for i in range(200):
            rows = [np.asarray(value[i], dtype=float).reshape(-1) for value in values]
            numbers = [[mpmath.mpf(x) for x in row] if of_rows else mpmath.mpf(row[0]) for row in rows]
            exact = case.truth(*numbers)
            for name, value in found.items():
                worst[name] = max(worst[name], abs(float((mpmath.mpf(float(value[i])) - exact) / exact)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES, metavar="NAME")
    results.add_save_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    d.Distribution.set_default_validate_args(False)
    columns = ["class", *(f"{shape}, us: torch / kullback (ratio)" for shape in SHAPES)]
    columns += ["(64, 20) with gradients, us", "error of torch", "error of kullback"]
    rows = []
    for name in options.only:
        case, row = CASES[name], [name]
        for shape, gradient in (*((shape, False) for shape in SHAPES), ((64, 20), True)):
            found = timed(case, shape, options.repeats, gradient=gradient)
            ratio = found["kullback"] / found["torch"]
            digits = [results.significant(found[side] * 1e6, 2) for side in ("torch", "kullback")]
            row.append(f"{digits[0]} / {digits[1]} ({results.significant(ratio, 2)})")
        row += [results.significant(error, 1) for error in errors(case).values()]
        rows.append(row)
        print(results.markdown_row(row), flush=True)
    if not options.no_save:
        results.save("distributions", {"kl": (columns, rows)}, packages=("torch",))


if __name__ == "__main__":
    main()
