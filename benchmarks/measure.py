"""Time `measure` and `kl` against scipy.integrate.quad and PyTorch, and the import of the package.

    python benchmarks/measure.py [--repeats 9]

Every time is a median over the repeats. The relative error of each value is against mpmath with 40 digits. Each repeat
of an import runs in a new process.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from statistics import median

import mpmath
import numpy as np
import results
import scipy.stats
import torch
from scipy.integrate import quad

from kullback import kl, measure
from kullback.families import NegativeBinomial, Normal, Poisson, StudentT

QUAD = "scipy.integrate.quad of p (log p - log q)"
SUM = "sum of p (log p - log q), scipy.stats"
DIGITS = 40


def median_seconds(call: Callable[[], object], repeats: int, number: int = 1) -> float:
    """Return the median seconds of a call over the repeats, after one call that is not timed."""
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(number):
            call()
        seconds.append((time.perf_counter() - start) / number)
    return median(seconds)


def relative_error(value: float, exact: mpmath.mpf) -> str:
    """Return |value / exact - 1| with one significant digit."""
    with mpmath.workdps(DIGITS):
        return results.significant(float(abs(mpmath.mpf(float(value)) / exact - 1)), 1)


def exact_normal_student_t(df: float) -> mpmath.mpf:
    """Return KL(Normal(0, 1) || StudentT(df)) by mpmath."""
    with mpmath.workdps(DIGITS):
        log_p = lambda x: -x * x / 2 - mpmath.log(2 * mpmath.pi) / 2  # noqa: E731
        constant = mpmath.loggamma((df + 1) / mpmath.mpf(2)) - mpmath.loggamma(df / mpmath.mpf(2))
        constant -= mpmath.log(df * mpmath.pi) / 2
        log_q = lambda x: constant - (df + 1) / mpmath.mpf(2) * mpmath.log1p(x * x / df)  # noqa: E731
        integrand = lambda x: mpmath.exp(log_p(x)) * (log_p(x) - log_q(x))  # noqa: E731
        return 2 * mpmath.quad(integrand, [0, 1, 2, 4, 8, 16])


def exact_skew_normal(shape: float) -> mpmath.mpf:
    """Return KL(SkewNormal(shape) || Normal(0, 1)) = E_p[log(2 Phi(shape x))] by mpmath."""
    with mpmath.workdps(DIGITS):
        cdf = lambda x: mpmath.erfc(-x / mpmath.sqrt(2)) / 2  # noqa: E731
        integrand = lambda x: 2 * mpmath.npdf(x) * cdf(shape * x) * mpmath.log(2 * cdf(shape * x))  # noqa: E731
        return mpmath.quad(integrand, [-8, -4, -2, -1, 0, 1, 2, 4, 8, 16])


def exact_poisson_negative_binomial(rate: float, total_count: float, probs: float) -> mpmath.mpf:
    """Return KL(Poisson(rate) || NegativeBinomial(total_count, probs)) by mpmath."""
    with mpmath.workdps(DIGITS):
        rate, probs = mpmath.mpf(rate), mpmath.mpf(probs)
        terms = []
        for k in range(200):
            log_p = k * mpmath.log(rate) - rate - mpmath.loggamma(k + 1)
            log_q = mpmath.loggamma(k + total_count) - mpmath.loggamma(total_count) - mpmath.loggamma(k + 1)
            log_q += k * mpmath.log(probs) + total_count * mpmath.log1p(-probs)
            terms.append(mpmath.exp(log_p) * (log_p - log_q))
        return mpmath.fsum(terms)


def exact_normals() -> mpmath.mpf:
    """Return KL(Normal(0, 1) || Normal(0.5, 2)) by mpmath."""
    with mpmath.workdps(DIGITS):
        return mpmath.log(2) + mpmath.mpf("1.25") / 8 - mpmath.mpf("0.5")


def quad_kl(p: scipy.stats.rv_continuous, q: scipy.stats.rv_continuous) -> float:
    """Return the integral of p (log p - log q) over the real line."""
    return quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)) if p.pdf(x) > 0 else 0.0, -inf, inf)[0]


def sum_kl(p: scipy.stats.rv_discrete, q: scipy.stats.rv_discrete) -> float:
    """Return the sum of p (log p - log q) over the counts 0 to 199."""
    k = np.arange(200)
    return float(np.sum(p.pmf(k) * (p.logpmf(k) - q.logpmf(k))))


def measure_table(repeats: int) -> results.Table:
    """Return the time and the relative error of `measure` and of SciPy for three pairs of distributions."""
    norm, t, skew = scipy.stats.norm(), scipy.stats.t(5), scipy.stats.skewnorm(3)
    poisson, negative_binomial = scipy.stats.poisson(4.0), scipy.stats.nbinom(6.0, 0.6)
    normal = Normal(loc=0.0, scale=1.0)
    pairs = {
        "normal, Student's t": (
            exact_normal_student_t(5),
            lambda: measure(normal, StudentT(df=5.0, loc=0.0, scale=1.0)),
            (QUAD, lambda: quad_kl(norm, t)),
        ),
        "skew-normal, normal": (
            exact_skew_normal(3),
            lambda: measure(skew, norm),
            (QUAD, lambda: quad_kl(skew, norm)),
        ),
        "Poisson, negative binomial": (
            exact_poisson_negative_binomial(4.0, 6.0, 0.4),
            lambda: measure(Poisson(rate=4.0), NegativeBinomial(total_count=6.0, probs=0.4)),
            (SUM, lambda: sum_kl(poisson, negative_binomial)),
        ),
    }
    rows = []
    for pair, (exact, ours, (baseline, theirs)) in pairs.items():
        for name, call in (("kullback.measure", ours), (baseline, theirs)):
            seconds = median_seconds(call, repeats)
            rows.append([pair, name, results.significant(1e3 * seconds, 2), relative_error(float(call()), exact)])
            print(": ".join(rows[-1]), flush=True)
    return ["p, q", "implementation", "median, ms", "relative error"], rows


def closed_form_table(repeats: int) -> results.Table:
    """Return the time and the relative error of KL(Normal(0, 1) || Normal(0.5, 2)) of scalars."""
    normal = torch.distributions.Normal
    float64 = {"dtype": torch.float64}
    tensors = [torch.tensor(value, **float64) for value in (0.0, 1.0, 0.5, 2.0)]
    p, q = Normal(loc=0.0, scale=1.0), Normal(loc=0.5, scale=2.0)
    tensor_p, tensor_q = Normal(loc=tensors[0], scale=tensors[1]), Normal(loc=tensors[2], scale=tensors[3])
    torch_p, torch_q = normal(*tensors[:2]), normal(*tensors[2:])
    cases = {
        "kullback.kl, NumPy": lambda: kl(p, q),
        "kullback.kl, families of tensors": lambda: kl(tensor_p, tensor_q),
        "kullback.kl, torch.distributions": lambda: kl(torch_p, torch_q),
        "torch.distributions.kl_divergence": lambda: torch.distributions.kl_divergence(torch_p, torch_q),
    }
    rows = []
    for name, call in cases.items():
        seconds = median_seconds(call, repeats, number=200)
        rows.append([name, results.significant(1e6 * seconds, 2), relative_error(float(call()), exact_normals())])
        print(": ".join(rows[-1]), flush=True)
    return ["implementation", "median, us", "relative error"], rows


def start_table(repeats: int) -> results.Table:
    """Return the time of a new process that imports the package or prints its version."""
    command = str(Path(sys.executable).with_name("kullback"))
    cases = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import numpy, scipy'": [sys.executable, "-c", "import numpy, scipy"],
        "python -c 'import kullback'": [sys.executable, "-c", "import kullback"],
        "kullback --version": [command, "--version"],
    }
    rows = []
    for name, arguments in cases.items():
        run = lambda arguments=arguments: subprocess.run(arguments, check=True, capture_output=True)  # noqa: E731
        rows.append([name, f"{1e3 * median_seconds(run, repeats):.0f}"])
        print(": ".join(rows[-1]), flush=True)
    return ["command", "median, ms"], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    tables = {
        "measure": measure_table(options.repeats),
        "closed-form": closed_form_table(options.repeats),
        "start": start_table(options.repeats),
    }
    for table in tables.values():
        print(f"\n{results.markdown(table)}")
    if not options.no_save:
        results.save("measure", tables, packages=("scipy", "torch"))


if __name__ == "__main__":
    main()
