"""Time `kl` of distribution objects against the libraries that define them, with the error of both.

    python benchmarks/distributions.py [--repeats 7] [--tables NAME ...] [--only TEXT] [--quick] [--no-save]

The tables are:

- kl: two distributions of one class of PyTorch, against torch.distributions.kl_divergence;
- pairs: two classes of PyTorch;
- records: families of NumPy arrays, against PyTorch's function for tensors of the same parameters;
- scipy: frozen distributions of SciPy, which has no such function, against PyTorch's function;
- numpyro and tensorflow_probability (on JAX): their objects, against the function of the library, where it is
  installed.

The two functions are timed in turns, on one thread, and each time is the median processor time over the repeats. Times
are given for single numbers, for a batch of shape (64, 20) and for shape (1000, 1000), in float32, and for a batch with
gradients, which are compiled by jax.jit for objects of JAX. The errors are the largest relative errors in float32
against mpmath with 40 digits: over 200 pairs of one class whose parameters differ by about 1e-3, and over 200
independent pairs of two classes.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from statistics import median
from typing import Any, NamedTuple

import mpmath
import numpy as np
import results
import torch
from scipy import stats
from torch import distributions as d

from kullback import families as f
from kullback import kl

SHAPES = ((), (64, 20), (1000, 1000))
LARGEST = 3e38  # in float32; a larger KL is inf


class Case(NamedTuple):
    """A class of distributions.

    Args:
        name: The name of the class in PyTorch, in NumPyro and in `kullback.families`, unless `build` is given.
        kinds: For each parameter, how it is drawn: "real", "positive", "probability", "smaller" (positive, and smaller
            in q), "low" and "high" (an interval, which contains the interval of p in q), "logits" and
            "positives" (a row of real or of positive numbers), "vector" (20 real numbers), "diagonal" (20 positive
            numbers), "factor" (a lower factor of 20 rows), "covariance" (its
            product with its transpose), "columns" (20 rows of 3 real numbers).
        truth: KL from the parameters of p and of q, in extended precision.
        build: Constructs a distribution from the module of a library and the parameters.
        scipy: Constructs the frozen distribution of SciPy from the parameters; None where SciPy has none.
    """

    name: str
    kinds: dict[str, str]
    truth: Callable[..., mpmath.mpf]
    build: Callable[..., Any] | None = None
    scipy: Callable[..., Any] | None = None

    def of(self, library: Any, values: list[Any]) -> Any:
        """The distribution of a library with these parameters."""
        if self.build is not None:
            return self.build(library, *values)
        return getattr(library, self.name)(**dict(zip(self.kinds, values, strict=True)))


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


def covariances(loc1: Any, covariance1: Any, loc2: Any, covariance2: Any) -> mpmath.mpf:
    """Return KL between two multivariate normal distributions, from covariance matrices."""
    size = len(loc1)
    factors = []
    for covariance in (covariance1, covariance2):
        factor = mpmath.cholesky(
            mpmath.matrix(size, size) + mpmath.matrix(np.reshape(covariance, (size, size)).tolist())
        )
        factors.append([factor[i, j] for i in range(size) for j in range(size)])
    return multivariate(loc1, factors[0], loc2, factors[1])


def low_rank(loc1: Any, columns1: Any, diagonal1: Any, loc2: Any, columns2: Any, diagonal2: Any) -> mpmath.mpf:
    """Return KL between two multivariate normal distributions, from low-rank and diagonal parts."""
    size = len(loc1)
    of = []
    for columns, diagonal in ((columns1, diagonal1), (columns2, diagonal2)):
        rows = [columns[i * len(columns) // size : (i + 1) * len(columns) // size] for i in range(size)]
        of.append(
            [mpmath.fdot(rows[i], rows[j]) + (diagonal[i] if i == j else 0) for i in range(size) for j in range(size)]
        )
    return covariances(loc1, of[0], loc2, of[1])


def continuous_bernoulli(p: Any, q: Any) -> mpmath.mpf:
    """Return KL between two continuous Bernoulli distributions."""
    one, two = Moments("ContinuousBernoulli", p), Moments("ContinuousBernoulli", q)
    return two.log_normalizer - one.log_normalizer - (two.logit - one.logit) * one.mean


class Moments:
    """The entropy and the moments of a distribution in extended precision, by the class and the parameters."""

    def __init__(self, name: str, *given: mpmath.mpf) -> None:
        log, psi, euler = mpmath.log, mpmath.digamma, mpmath.euler
        a, b = given if len(given) == 2 else (given[0], mpmath.mpf(0))
        if name == "Beta":
            log_beta = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
            self.mean, self.variance = a / (a + b), a * b / (a + b) ** 2 / (a + b + 1)
            self.log, self.log_complement = psi(a) - psi(a + b), psi(b) - psi(a + b)
            self.entropy = log_beta - (a - 1) * self.log - (b - 1) * self.log_complement
        elif name == "ContinuousBernoulli":
            self.logit = log(a / (1 - a))
            self.log_normalizer = log(mpmath.expm1(self.logit) / self.logit)
            self.mean = mpmath.exp(self.logit) / mpmath.expm1(self.logit) - 1 / self.logit
            self.variance = 1 / self.logit**2 - mpmath.exp(self.logit) / mpmath.expm1(self.logit) ** 2
            self.entropy = self.log_normalizer - self.logit * self.mean
        elif name in ("Gamma", "Exponential"):
            a, b = (a, b) if name == "Gamma" else (mpmath.mpf(1), a)
            self.mean, self.variance, self.log = a / b, a / b**2, psi(a) - log(b)
            self.entropy = a - log(b) + mpmath.loggamma(a) + (1 - a) * psi(a)
            self.decay = lambda rate: (b / (b + rate)) ** a
        elif name == "Gumbel":
            self.mean, self.variance, self.entropy = a + euler * b, (mpmath.pi * b) ** 2 / 6, log(b) + euler + 1
        elif name == "Laplace":
            self.mean, self.variance, self.entropy = a, 2 * b**2, 1 + log(2 * b)
        elif name == "Normal":
            self.mean, self.variance, self.entropy = a, b**2, log(2 * mpmath.pi * mpmath.e * b**2) / 2
            self.decay = lambda rate: mpmath.exp((b * rate) ** 2 / 2 - a * rate)
            self.distance = lambda c: (
                b * mpmath.sqrt(2 / mpmath.pi) * mpmath.exp(-(((a - c) / b) ** 2) / 2)
                + (a - c) * mpmath.erf((a - c) / b / mpmath.sqrt(2))
            )
        elif name == "Pareto":
            self.mean, self.variance = b * a / (b - 1), a**2 * b / (b - 1) ** 2 / (b - 2)
            self.log, self.entropy = log(a) + 1 / b, log(a / b) + 1 / b + 1
        elif name == "Uniform":
            width = b - a
            self.mean, self.variance, self.entropy = (a + b) / 2, width**2 / 12, log(width)
            self.log = (b * log(b) - a * log(a)) / width - 1
            self.log_complement = ((1 - a) * log(1 - a) - (1 - b) * log(1 - b)) / width - 1
            self.decay = lambda rate: (mpmath.exp(-a * rate) - mpmath.exp(-b * rate)) / rate / width
        else:
            raise ValueError(f"expected a class with moments, got {name}")

    def cross_entropy(self, name: str, *given: mpmath.mpf) -> mpmath.mpf:
        """Return -E log q(x) for x of this distribution."""
        log, (a, b) = mpmath.log, given if len(given) == 2 else (given[0], mpmath.mpf(0))
        if name == "Normal":
            return log(2 * mpmath.pi * b**2) / 2 + (self.variance + (self.mean - a) ** 2) / (2 * b**2)
        if name in ("Exponential", "Gamma"):
            a, b = (a, b) if name == "Gamma" else (mpmath.mpf(1), a)
            of_log = (a - 1) * self.log if name == "Gamma" else 0
            return mpmath.loggamma(a) - a * log(b) - of_log + b * self.mean
        if name == "Gumbel":
            return log(b) + (self.mean - a) / b + mpmath.exp(a / b) * self.decay(1 / b)
        if name == "Laplace":
            return log(2 * b) + self.distance(a) / b
        if name == "Beta":
            log_beta = mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)
            return log_beta - (a - 1) * self.log - (b - 1) * self.log_complement
        if name == "ContinuousBernoulli":
            other = Moments(name, a)
            return other.log_normalizer - other.logit * self.mean
        return log(b - a)  # a uniform distribution


def of_moments(p_name: str, q_name: str, counts: tuple[int, int], *values: mpmath.mpf) -> mpmath.mpf:
    """Return KL of two classes from their parameters, by the moments of p."""
    p = Moments(p_name, *values[: counts[0]])
    return p.cross_entropy(q_name, *values[counts[0] :]) - p.entropy


def independent_normal(library: Any, loc: Any, scale: Any) -> Any:
    """Return independent normal distributions along the last axis, or a normal distribution without axes."""
    normals = library.Normal(loc=loc, scale=scale)
    if not np.ndim(loc):
        return normals
    return f.Independent(base=normals, event_dims=1) if library is f else library.Independent(normals, 1)


def binomial(library: Any, probs: Any) -> Any:
    """Return a binomial distribution of 10 trials."""
    return library.Binomial(total_count=10, probs=probs)


LOCATION = {"loc": "real", "scale": "positive"}
CASES = {
    "Normal": Case("Normal", LOCATION, normal, scipy=stats.norm),
    "Independent(Normal)": Case("", LOCATION, normal, independent_normal),
    "LogNormal": Case("LogNormal", LOCATION, normal, scipy=lambda loc, scale: stats.lognorm(scale, 0, np.exp(loc))),
    "Laplace": Case("Laplace", LOCATION, laplace, scipy=stats.laplace),
    "Exponential": Case(
        "Exponential",
        {"rate": "positive"},
        lambda a, b: mpmath.log(a / b) + b / a - 1,
        scipy=lambda rate: stats.expon(0, 1 / rate),
    ),
    "Gamma": Case(
        "Gamma",
        {"concentration": "positive", "rate": "positive"},
        gamma,
        scipy=lambda shape, rate: stats.gamma(shape, 0, 1 / rate),
    ),
    "InverseGamma": Case(
        "InverseGamma",
        {"concentration": "positive", "rate": "positive"},
        gamma,
        scipy=lambda shape, rate: stats.invgamma(shape, 0, rate),
    ),
    "Chi2": Case("Chi2", {"df": "positive"}, lambda a, b: gamma(a / 2, 1, b / 2, 1), scipy=stats.chi2),
    "Beta": Case(
        "Beta",
        {"concentration1": "positive", "concentration0": "positive"},
        lambda a1, a0, b1, b0: dirichlet([a1, a0], [b1, b0]),
        scipy=stats.beta,
    ),
    "Dirichlet": Case("Dirichlet", {"concentration": "positives"}, dirichlet),
    "Poisson": Case("Poisson", {"rate": "positive"}, lambda a, b: a * mpmath.log(a / b) - a + b, scipy=stats.poisson),
    "Bernoulli(probs)": Case("Bernoulli", {"probs": "probability"}, bernoulli, scipy=stats.bernoulli),
    "Bernoulli(logits)": Case("Bernoulli", {"logits": "real"}, lambda a, b: bernoulli(logistic(a), logistic(b))),
    "Geometric": Case("Geometric", {"probs": "probability"}, lambda p, q: bernoulli(p, q) / p),
    "Categorical(logits)": Case("Categorical", {"logits": "logits"}, categorical),
    "OneHotCategorical(logits)": Case("OneHotCategorical", {"logits": "logits"}, categorical),
    "Uniform": Case(
        "Uniform",
        {"low": "low", "high": "high"},
        lambda a, b, c, e: mpmath.log((e - c) / (b - a)),
        scipy=lambda low, high: stats.uniform(low, high - low),
    ),
    "Binomial(10)": Case(
        "", {"probs": "probability"}, lambda p, q: 10 * bernoulli(p, q), binomial, partial(stats.binom, 10)
    ),
    "Gumbel": Case("Gumbel", LOCATION, gumbel, scipy=stats.gumbel_r),
    "Cauchy": Case("Cauchy", LOCATION, cauchy, scipy=stats.cauchy),
    "Pareto": Case(
        "Pareto",
        {"scale": "smaller", "alpha": "positive"},
        pareto,
        scipy=lambda scale, alpha: stats.pareto(alpha, 0, scale),
    ),
    "HalfNormal": Case(
        "HalfNormal",
        {"scale": "positive"},
        lambda a, b: normal(0, a, 0, b),
        scipy=lambda scale: stats.halfnorm(0, scale),
    ),
    "ContinuousBernoulli": Case("ContinuousBernoulli", {"probs": "probability"}, continuous_bernoulli),
    "MultivariateNormal(scale_tril), 20 components": Case(
        "MultivariateNormal", {"loc": "vector", "scale_tril": "factor"}, multivariate
    ),
    "MultivariateNormal(covariance_matrix), 20 components": Case(
        "MultivariateNormal", {"loc": "vector", "covariance_matrix": "covariance"}, covariances
    ),
    "LowRankMultivariateNormal, 20 components, rank 3": Case(
        "LowRankMultivariateNormal", {"loc": "vector", "cov_factor": "columns", "cov_diag": "diagonal"}, low_rank
    ),
}

# Pairs of classes with a finite KL, whose parameters are drawn by these kinds.
CROSS_KINDS = {
    "Pareto": {"scale": "positive", "alpha": "above 2"},
    "Uniform": {"low": "probability", "high": "above low"},
    "ContinuousBernoulli": {"probs": "probability"},
    "Bernoulli": {"probs": "probability"},
}
PAIRS = [
    ("Bernoulli", "Poisson"),
    *(("Beta", q) for q in ("ContinuousBernoulli", "Exponential", "Gamma", "Normal", "Uniform")),
    *(("ContinuousBernoulli", q) for q in ("Exponential", "Normal", "Uniform")),
    *(("Exponential", q) for q in ("Gamma", "Gumbel", "Normal")),
    *(("Gamma", q) for q in ("Exponential", "Gumbel", "Normal")),
    ("Gumbel", "Normal"),
    ("Laplace", "Normal"),
    *(("Normal", q) for q in ("Gumbel", "Laplace")),
    *(("Pareto", q) for q in ("Exponential", "Gamma", "Normal")),
    *(("Uniform", q) for q in ("Beta", "ContinuousBernoulli", "Exponential", "Gamma", "Gumbel", "Normal")),
]


def drawn(kind: str, z: torch.Tensor, before: list[torch.Tensor], p: list[Any]) -> torch.Tensor:
    """Return a parameter from standard normal numbers, the earlier parameters and, for q, the parameters of p."""
    index = len(before)
    if kind in ("positive", "positives", "diagonal"):
        return z.exp()
    if kind == "above 2":
        return 2.1 + z.exp()
    if kind == "smaller":
        return p[index] * (-z.abs()).exp() if p else z.exp()
    if kind == "probability":
        return z.sigmoid()
    if kind == "above low":
        return before[0] + (1 - before[0]) * z.sigmoid()
    if kind == "below 0":
        return -z.abs()
    if kind == "above 1":
        return 1 + z.abs()
    if kind == "low":
        return p[index] - z.abs() if p else z
    if kind == "high":
        return p[index] + z.abs() if p else before[0] + 1
    if kind in ("factor", "covariance"):
        factor = z.tril(-1) / 5 + torch.diag_embed((z.diagonal(dim1=-2, dim2=-1) / 5).exp())
        return factor if kind == "factor" else factor @ factor.mT
    return z


ROWS = ("logits", "positives")
EVENTS = {
    **dict.fromkeys(("vector", "diagonal"), (20,)),
    **dict.fromkeys(("factor", "covariance"), (20, 20)),
    "columns": (20, 3),
}


def parameters(
    kinds: tuple[dict[str, str], dict[str, str]], shape: tuple[int, ...], seed: int, distance: float | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the parameters of p and of q; q is independent of p without a distance."""
    generator = torch.Generator().manual_seed(seed)
    of_rows = any(kind in EVENTS for kind in kinds[0].values())
    normals, sides = [], ([], [])
    for side, names in zip(sides, kinds, strict=True):
        for index, kind in enumerate(names.values()):
            # The last axis of the shape is the axis of the categories or of the components.
            full = (*shape[:-1], *EVENTS[kind]) if of_rows else shape
            if kind in ROWS and not shape:
                full = (20,)
            z = torch.randn(full, generator=generator)
            if side is sides[1] and distance is not None:
                z = normals[index] + distance * z
            normals.append(z)
            given = sides[0] if side is sides[1] else []
            side.append(drawn(kind, z, side, given))
    return sides


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


# The libraries.


class Library(NamedTuple):
    """A library whose objects are timed.

    Args:
        build: Constructs a distribution from a case and tensors.
        own: The function that `kl` is compared with, of two distributions of the library; None for PyTorch's function.
        gradient: Called with a function of two lists of parameters and the tensors of p and q; returns a call that
            computes the gradient. None without gradients.
    """

    build: Callable[[Case, list[torch.Tensor]], Any]
    own: Callable[[Any, Any], Any] | None
    gradient: Callable[..., Callable[[], object]] | None


def torch_gradient(function: Callable[..., Any], p: list[Any], q: list[Any]) -> Callable[[], object]:
    """Return a call that computes the value and the gradient of a sum with PyTorch."""
    p, q = ([value.clone().requires_grad_() for value in side] for side in (p, q))

    def call() -> None:
        value = function(p, q).sum()
        if value.requires_grad:
            value.backward()

    return call


def jax_library(module: str) -> Library:
    """Return NumPyro or TensorFlow Probability on JAX."""
    import jax

    library = import_module(module)

    def gradient(function: Callable[..., Any], p: list[Any], q: list[Any]) -> Callable[[], object]:
        arrays = [[jax.numpy.asarray(value.numpy()) for value in side] for side in (p, q)]
        compiled = jax.jit(jax.grad(lambda sides: function(*sides).sum()))
        return lambda: jax.block_until_ready(compiled(arrays))

    def build(case: Case, values: list[Any]) -> Any:
        return case.of(library, [jax.numpy.asarray(x.numpy()) if isinstance(x, torch.Tensor) else x for x in values])

    own = library.kl_divergence
    return Library(build, lambda p, q: jax.block_until_ready(own(p, q)), gradient)


def scipy_build(case: Case, values: list[torch.Tensor]) -> Any:
    """Return the frozen distribution of SciPy, in float64."""
    assert case.scipy is not None
    return case.scipy(*(value.double().numpy() if value.ndim else float(value) for value in values))


TORCH = Library(lambda case, values: case.of(d, values), d.kl_divergence, torch_gradient)
LIBRARIES: dict[str, Callable[[], Library]] = {
    "kl": lambda: TORCH,
    "pairs": lambda: TORCH,
    "records": lambda: Library(
        lambda case, values: case._replace(name=RECORDS.get(case.name, case.name)).of(f, [x.numpy() for x in values]),
        None,
        None,
    ),
    "scipy": lambda: Library(scipy_build, None, None),
    "numpyro": lambda: jax_library("numpyro.distributions"),
    "tensorflow_probability": lambda: jax_library("tensorflow_probability.substrates.jax.distributions"),
}
RECORDS = {"Chi2": "ChiSquared"}

Cases = tuple[Case, Case]


def timed(library: Library, pair: Cases, shape: tuple[int, ...], repeats: int, *, gradient: bool = False) -> str:
    """Return the microseconds of the compared function and of kullback for one shape, and their ratio."""
    p, q = parameters((pair[0].kinds, pair[1].kinds), shape, 0, None)
    calls: dict[str, Callable[[], object]] = {}
    if gradient:
        assert library.gradient is not None
        assert library.own is not None
        for name, function in (("other", library.own), ("kullback", kl)):
            calls[name] = library.gradient(
                lambda x, y, function=function: function(library.build(pair[0], x), library.build(pair[1], y)), p, q
            )
    else:
        x, y = library.build(pair[0], p), library.build(pair[1], q)
        if library.own is None:
            other = TORCH.build(pair[0], p), TORCH.build(pair[1], q)
            calls["other"] = lambda: d.kl_divergence(*other)
        else:
            own = library.own
            calls["other"] = lambda: own(x, y)
        calls["kullback"] = lambda: kl(x, y)
    try:
        calls["other"]()
    except NotImplementedError:  # the library has no function for the class
        alone = seconds({"kullback": calls["kullback"]}, repeats)["kullback"]
        return f"- / {results.significant(alone * 1e6, 2)}"
    found = seconds(calls, repeats)
    digits = [results.significant(value * 1e6, 2) for value in found.values()]
    return f"{digits[0]} / {digits[1]} ({results.significant(found['kullback'] / found['other'], 2)})"


def errors(library: Library, pair: Cases, counts: int = 200) -> list[str]:
    """Return the largest relative errors of the library and of kullback; "-" for a library without a function."""
    of_rows = any(kind in EVENTS or kind in ROWS for kind in pair[0].kinds.values())
    near = 1e-3 if pair[0] is pair[1] else None
    counts = 20 if any(EVENTS.get(kind, ())[1:] for kind in pair[0].kinds.values()) else counts
    sides = parameters((pair[0].kinds, pair[1].kinds), (counts, 20) if of_rows else (counts,), 1, near)
    if pair[0].build is independent_normal:
        sides = tuple([value[:, None] for value in side] for side in sides)
    p, q = (library.build(case, values) for case, values in zip(pair, sides, strict=True))
    try:
        found = [None if library.own is None else library.own(p, q), kl(p, q)]
    except NotImplementedError:
        found = [None, kl(p, q)]
    worst = [0.0, 0.0]
    with mpmath.workdps(60):
        for i in range(counts):
            rows = [np.asarray(value[i], dtype=float).reshape(-1) for side in sides for value in side]
            exact = pair[0].truth(*([mpmath.mpf(x) for x in row] if of_rows else mpmath.mpf(row[0]) for row in rows))
            for k, value in enumerate(found):
                if value is not None and exact < LARGEST:
                    error = abs(float((mpmath.mpf(float(value[i])) - exact) / exact))
                    worst[k] = max(worst[k], error) if error == error else float("nan")
    return ["-" if value is None else results.significant(error, 1) for value, error in zip(found, worst, strict=True)]


def rows_of(table: str) -> dict[str, Cases]:
    """Return the rows of a table: a name, and the classes of p and q."""
    if table == "pairs":
        rows = {}
        for names in PAIRS:
            kinds = [CROSS_KINDS.get(name) or CASES[name].kinds for name in names]
            if names[1] == "Uniform":  # its interval must contain the support of p
                kinds[1] = {"low": "below 0", "high": "above 1"}
            truth = partial(of_moments, *names, tuple(map(len, kinds)))
            if names[0] == "Bernoulli":
                truth = bernoulli_poisson
            rows[" to ".join(names)] = tuple(Case(name, kind, truth) for name, kind in zip(names, kinds, strict=True))
        return rows
    return {name: (case, case) for name, case in CASES.items() if table != "scipy" or case.scipy is not None}


def bernoulli_poisson(p: Any, rate: Any) -> mpmath.mpf:
    """Return KL of a Bernoulli distribution to a Poisson distribution."""
    return p * mpmath.log(p / rate) + (1 - p) * mpmath.log(1 - p) + rate


def measured(table: str, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a table, and print each row."""
    library = LIBRARIES[table]()
    other = {"kl": "torch", "pairs": "torch", "records": "torch", "scipy": "torch"}.get(table, table)
    columns = ["pair" if table == "pairs" else "class"]
    columns += [f"{shape}, us: {other} / kullback (ratio)" for shape in SHAPES]
    columns += ["(64, 20) with gradients, us"] if library.gradient else []
    columns += ([f"error of {other}"] if library.own else []) + ["error of kullback"]
    rows = []
    print(results.markdown_row(columns), flush=True)
    shapes = [(shape, False) for shape in SHAPES] + ([((64, 20), True)] if library.gradient else [])
    for name, pair in rows_of(table).items():
        if options.only and options.only not in name:
            continue
        row = [name]
        for shape, gradient in shapes:
            if options.quick and shape == SHAPES[-1]:
                row.append("-")
                continue
            try:
                row.append(timed(library, pair, shape, options.repeats, gradient=gradient))
            except (NotImplementedError, TypeError, AttributeError, RuntimeError) as error:
                if options.verbose:
                    print(f"{name} {shape}: {type(error).__name__}: {error}", flush=True)
                row.append("-")
        if all(cell == "-" for cell in row[1:]):  # the library has no such class or no function for the pair
            continue
        row += errors(library, pair)[0 if library.own else 1 :]
        rows.append(row)
        print(results.markdown_row(row), flush=True)
    return columns, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tables", nargs="+", default=list(LIBRARIES), choices=LIBRARIES, metavar="NAME")
    parser.add_argument("--only", metavar="TEXT", help="rows whose name contains this text; nothing is stored")
    parser.add_argument("--quick", action="store_true", help="leave out the largest shape; nothing is stored")
    parser.add_argument("--verbose", action="store_true", help="print why a cell is empty")
    results.add_save_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    d.Distribution.set_default_validate_args(False)
    for table in options.tables:
        try:
            found = measured(table, options)
        except ModuleNotFoundError as error:
            print(f"{table}: {error}; this table is left out", flush=True)
            continue
        if not (options.no_save or options.quick or options.only):
            packages = {"numpyro": ("jax", "numpyro"), "tensorflow_probability": ("jax", "tensorflow-probability")}
            results.save("distributions", {table: found}, packages=("torch", "scipy", *packages.get(table, ())))


if __name__ == "__main__":
    main()
