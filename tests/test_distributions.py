"""kl(p, q) of distributions: accuracy against quadrature, infinite values, gradients and errors."""

import json
import math
from itertools import product
from pathlib import Path

import jax
import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from kullback import families as f
from kullback.closed_forms import FORMS
from kullback.distributions import kl, register_kl
from kullback.errors import NoClosedFormError, ParameterError, ShapeError

from .oracles import families as oracle

REFERENCE = Path(__file__).parent / "data"
LIBRARIES = {
    "numpy": lambda value: np.asarray(value, dtype=np.float64),
    "torch": lambda value: torch.tensor(value, dtype=torch.float64),
    "jax": lambda value: jax.numpy.asarray(value, dtype=jax.numpy.float64),
}
inf = math.inf
# Of families that have none, by quadrature or summation.
NO_CLOSED_FORM = {"logistic", "student_t", "kumaraswamy"}
NO_CLOSED_PAIR = {("normal", "cauchy"), ("normal", "logistic"), ("normal", "student_t")}


def relative_error(got, truth):
    return abs(float((mpf(float(got)) - truth) / truth))


def record(family, parameters, library):
    kind = getattr(f, "".join(word.capitalize() for word in family.split("_")))
    return kind(**{name: library(value) for name, value in parameters.items()})


def floats(value):
    return [floats(entry) for entry in value] if isinstance(value, list) else float(value)


# Accuracy.


def nearness(p, q):
    """The smallest relative change of the parameters in a nearly equal case, or None."""
    changes = np.abs(np.asarray(q, float) / np.asarray(p, float) - 1) if np.shape(p) == np.shape(q) else np.ones(1)
    changes = changes[changes > 0]
    return float(changes.min()) if changes.size and changes.min() < 2e-3 else None


def reference_cases():
    for number, case in enumerate(json.loads((REFERENCE / "families.json").read_text())["cases"]):
        p, q = dict(case["p"]), dict(case["q"])
        names = p.pop("family"), q.pop("family")
        p, q = ({name: float(value) for name, value in side.items()} for side in (p, q))
        if names[0] == names[1] and names[0] in NO_CLOSED_FORM:
            continue
        if names not in NO_CLOSED_PAIR:
            delta = nearness(list(p.values()), list(q.values())) if names[0] == names[1] else None
            yield pytest.param(*names, p, q, mpf(case["kl"]), delta, id=f"{names[0]}-{names[1]}-{number}")
    for number, case in enumerate(json.loads((REFERENCE / "multivariate.json").read_text())["cases"]):
        p, q = ({name: floats(value) for name, value in case[side].items()} for side in "pq")
        delta = 1e-6 if "nearly" in case["note"] else None
        name = case["family"]
        yield pytest.param(name, name, p, q, mpf(case["kl"]), delta, id=f"{name}-{number}")


@pytest.mark.parametrize("kind", ["numpy", "torch", pytest.param("jax", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("p_family", "q_family", "p", "q", "truth", "delta"), list(reference_cases()))
def test_reference_values(p_family, q_family, p, q, truth, delta, kind):
    with jax.enable_x64(True):
        p, q = record(p_family, p, LIBRARIES[kind]), record(q_family, q, LIBRARIES[kind])
        # Rounding the reference's decimals to float64 changes the true KL, by more the closer p is to q.
        assert relative_error(kl(p, q), truth) < 1e-13 + (4e-16 / delta if delta else 0)


def on_the_line():
    return [pair for pair in FORMS if pair[0] in oracle.FAMILIES and pair[1] in oracle.FAMILIES]


def name_of(pair):
    return f"{pair[0].__name__}-{pair[1].__name__}"


@pytest.mark.parametrize("pair", on_the_line(), ids=name_of)
def test_every_pair_agrees_with_its_definition(pair):
    p, q = oracle.draw(*pair, np.random.default_rng(3))
    assert relative_error(kl(p, q), oracle.kl(p, q)) < 1e-12


# Multivariate and categorical families: textbook formulas in many digits, or enumeration of outcomes.


def positive_definite(rng, size):
    root = rng.normal(size=(size, size + 2))
    return root @ root.T / size


@mpmath.workdps(60)
def textbook_normal(p_loc, p_cov, q_loc, q_cov):
    shift, p_cov, q_cov = mpmath.matrix(q_loc - p_loc), mpmath.matrix(p_cov), mpmath.matrix(q_cov)
    inverse = q_cov**-1
    product = inverse * p_cov
    trace = mpmath.fsum(product[i, i] for i in range(len(p_loc)))
    quadratic = (shift.T * inverse * shift)[0]
    return (trace + quadratic - len(p_loc) - mpmath.log(mpmath.det(p_cov) / mpmath.det(q_cov))) / 2


@mpmath.workdps(60)
def textbook_wishart(p_df, p_cov, q_df, q_cov):
    size, p_df, q_df = len(p_cov), mpf(p_df), mpf(q_df)
    product = mpmath.matrix(q_cov) ** -1 * mpmath.matrix(p_cov)
    trace = mpmath.fsum(product[i, i] for i in range(size))
    kl = p_df / 2 * (trace - size) - q_df / 2 * mpmath.log(mpmath.det(product))
    for i in range(size):
        a, b = (p_df - i) / 2, (q_df - i) / 2
        kl += mpmath.loggamma(b) - mpmath.loggamma(a) - (b - a) * mpmath.digamma(a)
    return kl


@mpmath.workdps(60)
def textbook_dirichlet(a, b):
    a, b = list(map(mpf, a)), list(map(mpf, b))
    total_a, total_b = mpmath.fsum(a), mpmath.fsum(b)
    kl = mpmath.loggamma(total_a) - mpmath.loggamma(total_b)
    for x, y in zip(a, b, strict=True):
        kl += mpmath.loggamma(y) - mpmath.loggamma(x) + (x - y) * (mpmath.digamma(x) - mpmath.digamma(total_a))
    return kl


def enumerate_counts(categories, total):
    if categories == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in enumerate_counts(categories - 1, total - first):
            yield (first, *rest)


def near(rng, matrix, delta):
    """The matrix with entries changed by about delta, still symmetric."""
    factor = np.linalg.cholesky(matrix)
    change = rng.normal(size=matrix.shape)
    return matrix + delta * factor @ (change + change.T) @ factor.T / 2


def symmetric(matrix):
    return (matrix + matrix.T) / 2


def normal_case(rng, delta):
    size = 4
    p_loc, p_cov = rng.normal(size=size), symmetric(positive_definite(rng, size))
    q_loc, q_cov = p_loc + delta * rng.normal(size=size), symmetric(near(rng, p_cov, 0.2 * delta))
    return p_loc, p_cov, q_loc, q_cov


def multivariate_normal(rng, delta):
    p_loc, p_cov, q_loc, q_cov = normal_case(rng, delta)
    p, q = (f.MultivariateNormal(loc=loc, covariance_matrix=cov) for loc, cov in ((p_loc, p_cov), (q_loc, q_cov)))
    return p, q, textbook_normal(p_loc, p_cov, q_loc, q_cov)


def matrix_normal(rng, delta):
    p_loc, q_loc = (loc.reshape(3, 2) for loc in (lambda x: (x, x + delta * rng.normal(size=6)))(rng.normal(size=6)))
    rows, columns = (symmetric(positive_definite(rng, size)) for size in (3, 2))
    q_rows, q_columns = (symmetric(near(rng, cov, 0.2 * delta)) for cov in (rows, columns))
    p = f.MatrixNormal(loc=p_loc, row_covariance=rows, column_covariance=columns)
    q = f.MatrixNormal(loc=q_loc, row_covariance=q_rows, column_covariance=q_columns)

    def kronecker(a, b):
        return [[mpf(a[i, j]) * mpf(b[k, m]) for j in range(3) for m in range(2)] for i in range(3) for k in range(2)]

    truth = textbook_normal(p_loc.ravel(), kronecker(rows, columns), q_loc.ravel(), kronecker(q_rows, q_columns))
    return p, q, truth


def low_rank(rng, delta):
    p_loc, q_loc = (lambda x: (x, x + delta * rng.normal(size=5)))(rng.normal(size=5))
    p_factor, p_diagonal = rng.normal(size=(5, 2)), rng.uniform(0.5, 2, 5)
    q_factor = p_factor + 0.2 * delta * rng.normal(size=(5, 2))
    q_diagonal = p_diagonal * (1 + 0.2 * delta * rng.uniform(-1, 1, 5))
    p, q = (
        f.LowRankMultivariateNormal(loc=loc, cov_factor=factor, cov_diag=diagonal)
        for loc, factor, diagonal in ((p_loc, p_factor, p_diagonal), (q_loc, q_factor, q_diagonal))
    )

    def covariance(factor, diagonal):
        factor = mpmath.matrix(factor)
        return factor * factor.T + mpmath.diag(list(map(mpf, diagonal)))

    return p, q, textbook_normal(p_loc, covariance(p_factor, p_diagonal), q_loc, covariance(q_factor, q_diagonal))


def low_rank_of_full(rng, delta):
    p, q, _ = low_rank(rng, delta)
    cov = symmetric(q.cov_factor @ q.cov_factor.T + np.diag(q.cov_diag))
    p_cov = mpmath.matrix(p.cov_factor) * mpmath.matrix(p.cov_factor).T + mpmath.diag(list(map(mpf, p.cov_diag)))
    return p, f.MultivariateNormal(loc=q.loc, covariance_matrix=cov), textbook_normal(p.loc, p_cov, q.loc, cov)


def full_of_low_rank(rng, delta):
    p, q, _ = low_rank(rng, delta)
    cov = symmetric(p.cov_factor @ p.cov_factor.T + np.diag(p.cov_diag))
    q_cov = mpmath.matrix(q.cov_factor) * mpmath.matrix(q.cov_factor).T + mpmath.diag(list(map(mpf, q.cov_diag)))
    return f.MultivariateNormal(loc=p.loc, covariance_matrix=cov), q, textbook_normal(p.loc, cov, q.loc, q_cov)


def wishart(rng, delta):
    cov = symmetric(positive_definite(rng, 3))
    q_cov, df = symmetric(near(rng, cov, 0.2 * delta)), 4.5
    q_df = df * (1 + 0.3 * delta)
    p, q = f.Wishart(df=df, covariance_matrix=cov), f.Wishart(df=q_df, covariance_matrix=q_cov)
    return p, q, textbook_wishart(df, cov, q_df, q_cov)


def inverse_wishart(rng, delta):
    scale = symmetric(positive_definite(rng, 3))
    q_scale, df = symmetric(near(rng, scale, 0.2 * delta)), 4.5
    q_df = df * (1 + 0.3 * delta)
    p, q = f.InverseWishart(df=df, scale_matrix=scale), f.InverseWishart(df=q_df, scale_matrix=q_scale)
    inverses = (mpmath.matrix(matrix) ** -1 for matrix in (scale, q_scale))
    p_cov, q_cov = ([[matrix[i, j] for j in range(3)] for i in range(3)] for matrix in inverses)
    return p, q, textbook_wishart(df, p_cov, q_df, q_cov)


def dirichlet(rng, delta):
    a = rng.uniform(0.3, 6, 5)
    b = a * np.exp(delta * rng.normal(size=5))
    return f.Dirichlet(concentration=a), f.Dirichlet(concentration=b), textbook_dirichlet(a, b)


def lkj(rng, delta):
    """KL = (a - b) d log Z/da - log Z(a) + log Z(b), where Z normalises |X|^(a - 1)."""
    dim, a = 4, float(rng.uniform(0.5, 4))
    b = a * float(np.exp(delta * rng.normal()))

    def log_z(eta):
        """The product over the canonical partial correlations, which have independent beta distributions."""
        shapes = [(eta + mpf(dim - 1 - k) / 2, k) for k in range(1, dim)]
        return mpmath.fsum(
            (dim - k) * (2 * shape - 1) * mpmath.log(2) + (dim - k) * mpmath.log(mpmath.beta(shape, shape))
            for shape, k in shapes
        )

    p, q = mpf(a), mpf(b)
    truth = (p - q) * mpmath.diff(log_z, p) - log_z(p) + log_z(q)
    return f.LKJ(dim=dim, concentration=a), f.LKJ(dim=dim, concentration=b), truth


def simplexes(rng, delta, size=4):
    p = rng.dirichlet(np.ones(size))
    q = p * np.exp(delta * rng.normal(size=size))
    return p, q / q.sum()


def plain_kl(p, q):
    p, q = list(map(mpf, p)), list(map(mpf, q))
    total_p, total_q = mpmath.fsum(p), mpmath.fsum(q)
    return mpmath.fsum(x / total_p * mpmath.log(x * total_q / (y * total_p)) for x, y in zip(p, q, strict=True))


def categorical(rng, delta, kind=f.Categorical):
    p, q = simplexes(rng, delta)
    return kind(probs=p), kind(probs=q), plain_kl(p, q)


def one_hot(rng, delta):
    return categorical(rng, delta, f.OneHotCategorical)


def multinomial(rng, delta):
    p, q = simplexes(rng, delta, 3)
    truth = mpf(0)
    total_p, total_q = (mpmath.fsum(map(mpf, side)) for side in (p, q))
    for counts in enumerate_counts(3, 4):
        ways = mpmath.factorial(4)
        for count in counts:
            ways /= mpmath.factorial(count)
        mass_p = ways * mpmath.fprod((mpf(x) / total_p) ** c for x, c in zip(p, counts, strict=True))
        mass_q = ways * mpmath.fprod((mpf(x) / total_q) ** c for x, c in zip(q, counts, strict=True))
        truth += mass_p * mpmath.log(mass_p / mass_q)
    return f.Multinomial(total_count=4, probs=p), f.Multinomial(total_count=4, probs=q), truth


def von_mises(rng, delta):
    k, loc = float(rng.uniform(0.5, 20)), float(rng.normal())
    p, q = f.VonMises(loc=loc, concentration=k), f.VonMises(loc=loc + delta, concentration=k * (1 + 0.3 * delta))
    k1, k2, m1, m2 = (mpf(v) for v in (p.concentration, q.concentration, p.loc, q.loc))
    log_i0 = [mpmath.log(mpmath.besseli(0, v)) for v in (k1, k2)]
    truth = mpmath.quad(
        lambda x: (
            mpmath.exp(k1 * mpmath.cos(x - m1) - log_i0[0])
            / (2 * mpmath.pi)
            * (k1 * mpmath.cos(x - m1) - k2 * mpmath.cos(x - m2) + log_i0[1] - log_i0[0])
        ),
        mpmath.linspace(-mpmath.pi, mpmath.pi, 9),
    )
    return p, q, truth


def von_mises_fisher(rng, delta, dimension=5):
    m1 = rng.normal(size=dimension)
    m1 /= np.linalg.norm(m1)
    m2 = m1 + delta * rng.normal(size=dimension)
    m2 /= np.linalg.norm(m2)
    k1 = float(rng.uniform(0.5, 200))
    k2 = k1 * (1 + 0.3 * delta)
    order = mpf(dimension) / 2 - 1
    logs = [mpmath.log(mpmath.besseli(order, k)) - order * mpmath.log(k) for k in (mpf(k1), mpf(k2))]
    resultant = mpmath.besseli(order + 1, k1) / mpmath.besseli(order, k1)
    distance = mpmath.fsum((mpf(a) - mpf(b)) ** 2 for a, b in zip(m1, m2, strict=True))
    truth = logs[1] - logs[0] + (mpf(k1) - mpf(k2)) * resultant + mpf(k2) * resultant * distance / 2
    p = f.VonMisesFisher(mean_direction=m1, concentration=k1)
    return p, f.VonMisesFisher(mean_direction=m2, concentration=k2), truth


def hypergeometric(rng, delta):
    del rng, delta
    p, q = (f.Hypergeometric(population=n, successes=k, draws=5) for n, k in ((20, 8), (24, 7)))

    def masses(d):
        return [
            mpmath.binomial(d.successes, k) * mpmath.binomial(d.population - d.successes, d.draws - k) for k in range(6)
        ]

    return p, q, plain_kl(masses(p), masses(q))


def zipfian(rng, delta):
    a, b = mpf(float(rng.uniform(0.5, 2))), mpf(float(rng.uniform(0.5, 2)))
    p, q = (f.Zipfian(exponent=float(s), total_count=50) for s in (a, b))
    del delta
    return p, q, plain_kl(*([mpf(k) ** -s for k in range(1, 51)] for s in (a, b)))


def zipf(rng, delta):
    p = float(1 + rng.exponential())
    q = float(p + delta * rng.uniform(-0.9, 0.9) * (p - 1))
    a, b = mpf(p), mpf(q)
    truth = mpmath.log(mpmath.zeta(b) / mpmath.zeta(a)) - (b - a) * mpmath.zeta(a, derivative=1) / mpmath.zeta(a)
    return f.Zipf(exponent=p), f.Zipf(exponent=q), truth


OTHERS = {
    (f.Zipf, f.Zipf): zipf,
    (f.MultivariateNormal, f.MultivariateNormal): multivariate_normal,
    (f.LowRankMultivariateNormal, f.LowRankMultivariateNormal): low_rank,
    (f.LowRankMultivariateNormal, f.MultivariateNormal): low_rank_of_full,
    (f.MultivariateNormal, f.LowRankMultivariateNormal): full_of_low_rank,
    (f.MatrixNormal, f.MatrixNormal): matrix_normal,
    (f.Wishart, f.Wishart): wishart,
    (f.InverseWishart, f.InverseWishart): inverse_wishart,
    (f.Dirichlet, f.Dirichlet): dirichlet,
    (f.LKJ, f.LKJ): lkj,
    (f.Categorical, f.Categorical): categorical,
    (f.OneHotCategorical, f.OneHotCategorical): one_hot,
    (f.Multinomial, f.Multinomial): multinomial,
    (f.VonMises, f.VonMises): von_mises,
    (f.VonMisesFisher, f.VonMisesFisher): von_mises_fisher,
    (f.Hypergeometric, f.Hypergeometric): hypergeometric,
    (f.Zipfian, f.Zipfian): zipfian,
}


def test_every_pair_has_an_oracle():
    ours = {pair for pair in FORMS if all(issubclass(kind, f.Distribution) for kind in pair)}
    assert ours == set(on_the_line()) | OTHERS.keys()


@pytest.mark.parametrize("delta", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize("pair", OTHERS, ids=name_of)
def test_multivariate_and_categorical_pairs_match_their_oracle(pair, delta):
    with mpmath.workdps(50):
        p, q, truth = OTHERS[pair](np.random.default_rng(8), delta)
        # A covariance matrix that is formed explicitly is rounded.
        slack = 4e-15 if f.LowRankMultivariateNormal in pair else 4e-16
        assert relative_error(kl(p, q), truth) < 1e-12 + slack / delta


# Infinite, exactly where p has mass outside q's support or tails too heavy for it.


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (f.Normal(loc=0.0, scale=1.0), f.Gamma(concentration=1.0, rate=1.0), inf),
        (f.Laplace(loc=0.0, scale=1.0), f.Beta(concentration1=1.0, concentration0=1.0), inf),
        (f.Gamma(concentration=1.0, rate=1.0), f.Pareto(scale=0.1, alpha=1.0), inf),
        (f.Uniform(low=0.0, high=1.0), f.Uniform(low=0.0, high=0.5), inf),
        (f.Uniform(low=0.0, high=0.5), f.Uniform(low=0.0, high=1.0), math.log(2)),
        (f.Uniform(low=1.0, high=2.0), f.Pareto(scale=1.0, alpha=1.0), 2 * (2 * math.log(2) - 1)),
        (f.Uniform(low=1.0, high=2.0), f.Pareto(scale=1.1, alpha=1.0), inf),
        (f.Pareto(scale=1.0, alpha=1.0), f.Exponential(rate=1.0), inf),
        (f.Pareto(scale=1.0, alpha=2.0), f.Exponential(rate=1.0), math.log(2) - 1.5 + 2),
        (f.Pareto(scale=1.0, alpha=2.0), f.Normal(loc=0.0, scale=1.0), inf),
        (f.StudentT(df=2.0, loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1.0), inf),
        (f.Laplace(loc=0.0, scale=1.0), f.Gumbel(loc=0.0, scale=1.0), inf),
        (f.Poisson(rate=1.0), f.Binomial(total_count=100, probs=0.5), inf),
        (f.Poisson(rate=0.0), f.Bernoulli(probs=0.5), math.log(2)),
        (f.Poisson(rate=0.0), f.Poisson(rate=2.0), 2.0),
        (f.Poisson(rate=2.0), f.Poisson(rate=0.0), inf),
        (f.Binomial(total_count=3, probs=0.5), f.Binomial(total_count=2, probs=0.5), inf),
        (f.Binomial(total_count=3, probs=0.0), f.Binomial(total_count=2, probs=0.5), 2 * math.log(2)),
        (f.Bernoulli(probs=1.0), f.Bernoulli(probs=0.5), math.log(2)),
        (f.Bernoulli(probs=0.5), f.Bernoulli(probs=1.0), inf),
        (f.Bernoulli(probs=[0.0, 1.0]), f.Bernoulli(probs=[0.0, 1.0]), [0.0, 0.0]),
        (f.Geometric(probs=1.0), f.Geometric(probs=0.25), 2 * math.log(2)),
        (f.Multinomial(total_count=2, probs=[0.5, 0.5]), f.Multinomial(total_count=3, probs=[0.5, 0.5]), inf),
        (f.Zipfian(exponent=1.0, total_count=5), f.Zipfian(exponent=1.0, total_count=4), inf),
        (f.Normal(loc=0.0, scale=1.0), f.Poisson(rate=1.0), inf),
        (f.Kumaraswamy(concentration1=1.0, concentration0=1.0), f.Uniform(low=0.5, high=2.0), inf),
        (f.Categorical(probs=[0.5, 0.5, 0.0]), f.Categorical(probs=[0.5, 0.0, 0.5]), inf),
    ],
    ids=lambda value: type(value).__name__,
)
def test_infinite_exactly_where_the_supports_differ(p, q, expected):
    np.testing.assert_allclose(kl(p, q), expected, rtol=1e-14)


def test_binomial_with_fewer_trials():
    p, q = f.Binomial(total_count=[3, 5], probs=0.4), f.Binomial(total_count=5, probs=0.3)
    masses = [
        [mpmath.binomial(n, k) * mpf(x) ** k * (1 - mpf(x)) ** (n - k) for k in range(6)]
        for n, x in ((3, 0.4), (5, 0.3), (5, 0.4))
    ]
    truth = mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(*masses[:2], strict=True) if a)
    same = mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(masses[2], masses[1], strict=True))
    np.testing.assert_allclose(kl(p, q), [float(truth), float(same)], rtol=1e-13)


def test_alternative_covariance_parameters():
    rng = np.random.default_rng(4)
    for delta in (1.0, 1e-5):
        p_loc, p_cov, q_loc, q_cov = normal_case(rng, delta)
        truth = textbook_normal(p_loc, p_cov, q_loc, q_cov)
        forms = {
            "covariance_matrix": lambda cov: cov,
            "precision_matrix": lambda cov: symmetric(np.linalg.inv(cov)),
            "scale_tril": np.linalg.cholesky,
        }
        for first, second in product(forms, forms):
            p = f.MultivariateNormal(loc=p_loc, **{first: forms[first](p_cov)})
            q = f.MultivariateNormal(loc=q_loc, **{second: forms[second](q_cov)})
            # Converting between covariance parameters rounds.
            assert relative_error(kl(p, q), truth) < 1e-12 + 4e-14 / delta


def test_very_different_covariances():
    p_cov, q_cov = np.diag([1e-12, 1.0, 1e6]), np.diag([1.0, 1e-3, 1e6])
    truth = textbook_normal(np.zeros(3), p_cov, np.ones(3), q_cov)
    p, q = (
        f.MultivariateNormal(loc=np.zeros(3), covariance_matrix=p_cov),
        f.MultivariateNormal(loc=np.ones(3), covariance_matrix=q_cov),
    )
    assert relative_error(kl(p, q), truth) < 1e-14


@pytest.mark.parametrize("kind", LIBRARIES)
def test_invalid_covariances_raise(kind):
    library = LIBRARIES[kind]
    with jax.enable_x64(True):
        fine = f.MultivariateNormal(loc=library([0.0, 0.0]), covariance_matrix=library([[1.0, 0.0], [0.0, 1.0]]))
        for matrix, message in (
            ([[1.0, 2.0], [2.0, 1.0]], "positive definite, but its smallest eigenvalue is -1"),
            ([[1.0, 0.5], [0.0, 1.0]], "symmetric, but entries differ by 0.5"),
        ):
            bad = f.MultivariateNormal(loc=library([0.0, 0.0]), covariance_matrix=library(matrix))
            with pytest.raises(ParameterError, match=message):
                kl(bad, fine)
        with pytest.raises(ShapeError, match=r"shape \(..., 2, 2\)"):
            kl(f.MultivariateNormal(loc=library([0.0, 0.0]), covariance_matrix=library([[1.0]])), fine)
        wishart = f.Wishart(df=library(1.0), covariance_matrix=library([[1.0, 0.0], [0.0, 1.0]]))
        with pytest.raises(ParameterError, match="df > 1"):
            kl(wishart, wishart)


# Large parameters.


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_large_parameters_keep_their_accuracy(size):
    with mpmath.workdps(60):
        a, b = mpf(size), mpf(1.01 * size)
        p, q = f.Gamma(concentration=float(a), rate=float(a)), f.Gamma(concentration=float(b), rate=float(b))
        truth = mpmath.loggamma(b) - mpmath.loggamma(a) - (b - a) * mpmath.digamma(a)
        truth += b * mpmath.log(a / b) + b - a
        assert relative_error(kl(p, q), truth) < 1e-13
        vector = np.full(100, size)
        truth = textbook_dirichlet(vector, 1.01 * vector)
        dirichlets = f.Dirichlet(concentration=vector), f.Dirichlet(concentration=1.01 * vector)
        assert relative_error(kl(*dirichlets), truth) < 1e-12
        wide = (
            f.Wishart(df=size, covariance_matrix=np.eye(2)),
            f.Wishart(df=1.01 * size, covariance_matrix=np.eye(2) / 1.01),
        )
        truth = textbook_wishart(size, np.eye(2), 1.01 * size, np.eye(2) / 1.01)
        assert relative_error(kl(*wide), truth) < 1e-12
        loose, tight = f.StudentT(df=size, loc=0.0, scale=1.0), f.Normal(loc=0.0, scale=1.0)
        assert 0 < kl(loose, tight) < 2 / size**2
        for k in (1e3 * size, 1.001e3 * size):
            close = kl(f.VonMises(loc=0.0, concentration=1e3 * size), f.VonMises(loc=0.0, concentration=k))
            d = mpmath.log(mpf(k) / mpf(1e3 * size))
            assert abs(close - float(mpmath.expm1(d) - d) / 2) < 2e-5 / size


# Errors and user registrations.


def test_missing_closed_form_names_measure():
    p, q = f.Normal(loc=0.0, scale=1.0), f.Cauchy(loc=0.0, scale=1.0)
    with pytest.raises(NoClosedFormError, match=r"KL\(Normal \|\| Cauchy\).*kullback.measure"):
        kl(p, q)
    with pytest.raises(NotImplementedError):
        kl(p, q)
    counts = (f.NegativeBinomial(total_count=n, probs=0.5) for n in ([2.0, 3.0], 2.0))
    with pytest.raises(NoClosedFormError, match=r"p's total_count\[1\] is 3.0"):
        kl(*counts)
    half = f.Uniform(low=[0.0, 0.5], high=1.0), f.Kumaraswamy(concentration1=1.0, concentration0=1.0)
    with pytest.raises(NoClosedFormError):
        kl(*half)


def test_shapes_that_do_not_broadcast():
    with pytest.raises(ShapeError, match=r"Normal and Normal to broadcast, got shapes \(2,\) and \(\) and \(3,\)"):
        kl(f.Normal(loc=[0.0, 1.0], scale=1.0), f.Normal(loc=[0.0, 1.0, 2.0], scale=1.0))
    with pytest.raises(ShapeError, match="same number of categories"):
        kl(f.Categorical(probs=[0.5, 0.5]), f.Categorical(probs=[1.0]))
    with pytest.raises(ShapeError, match="same number of concentrations"):
        kl(f.Dirichlet(concentration=[0.5, 0.5]), f.Dirichlet(concentration=[1.0]))


def test_event_dims_must_match():
    base = f.Normal(loc=np.zeros(3), scale=1.0)
    with pytest.raises(NoClosedFormError):
        kl(f.Independent(base=base, event_dims=1), base)
    with pytest.raises(ShapeError):
        kl(f.Independent(base=base, event_dims=2), f.Independent(base=base, event_dims=2))


def test_register_kl():
    class Coin:
        pass

    class LuckyCoin(Coin):
        pass

    @register_kl(Coin, f.Normal)
    def coin_normal(p, q):
        return inf

    assert kl(Coin(), f.Normal(loc=0.0, scale=1.0)) == inf
    assert kl(LuckyCoin(), f.Normal(loc=0.0, scale=1.0)) == inf
    register_kl(LuckyCoin, f.Normal)(lambda p, q: 7.0)
    assert kl(LuckyCoin(), f.Normal(loc=0.0, scale=1.0)) == 7.0
    del FORMS[Coin, f.Normal], FORMS[LuckyCoin, f.Normal]
    with pytest.raises(TypeError, match="expected a distribution, got LuckyCoin"):
        kl(LuckyCoin(), f.Normal(loc=0.0, scale=1.0))
    with pytest.raises(ValueError, match=r"expected a pair without .* KL\(Normal \|\| Normal\) is built in"):
        register_kl(f.Normal, f.Normal)


def test_very_different_powers_keep_their_accuracy():
    p, q = f.Weibull(concentration=114.0, scale=1e-3), f.Weibull(concentration=3e-5, scale=3e6)
    with mpmath.workdps(60):
        ratio, scales = mpf(3e-5) / 114, mpmath.log(mpf(1e-3) / mpf(3e6))
        mean = mpmath.exp(mpf(3e-5) * scales) * mpmath.gamma(1 + ratio)
        truth = -mpmath.log(ratio) - mpf(3e-5) * scales + (ratio - 1) * mpmath.euler + mean - 1
    assert relative_error(kl(p, q), truth) < 1e-13


@pytest.mark.parametrize("k", [500.0, 822.4, 1e6])
def test_narrow_von_mises_against_a_wide_one(k):
    p, q = f.VonMises(loc=0.0, concentration=k), f.VonMises(loc=0.3, concentration=9.0)
    with mpmath.workdps(40):
        resultant = mpmath.besseli(1, k) / mpmath.besseli(0, k)
        logs = mpmath.log(mpmath.besseli(0, 9)) - mpmath.log(mpmath.besseli(0, k))
        truth = logs + resultant * (k - 9 * mpmath.cos(mpf(0.3)))
    assert relative_error(kl(p, q), truth) < 1e-13


@mpmath.workdps(40)
def log_hypergeometric(population, successes, draws, k):
    def choose(n, r):
        return mpmath.loggamma(n + 1) - mpmath.loggamma(r + 1) - mpmath.loggamma(n - r + 1)

    return choose(successes, k) + choose(population - successes, draws - k) - choose(population, draws)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        ((20, 7, 8), (20, 9, 8)),
        ((10, 8, 5), (14, 9, 5)),
        ((1000, 300, 100), (1000, 301, 100)),
        ((100_000, 500, 300), (100_000, 501, 301)),
        ((10, 2, 3), (100_000, 90_000, 50)),
    ],
)
def test_hypergeometric_counts_of_any_size_keep_their_accuracy(p, q):
    names = ("population", "successes", "draws")
    events = range(max(0, p[1] + p[2] - p[0]), min(p[1:]) + 1)
    with mpmath.workdps(40):
        logs = [(log_hypergeometric(*p, k), log_hypergeometric(*q, k)) for k in events]
        truth = mpmath.fsum(mpmath.exp(log_p) * (log_p - log_q) for log_p, log_q in logs)
    left, right = (f.Hypergeometric(**dict(zip(names, side, strict=True))) for side in (p, q))
    assert relative_error(kl(left, right), truth) < 1e-13


@pytest.mark.parametrize(
    ("n", "m", "p", "q"),
    [(5, 9, 0.3, 0.6), (3000, 3001, 0.9, 0.9), (200, 100_000, 0.5, 1e-3), (1, 2, 0.5, 0.5), (3, 4, 1.0, 0.5)],
)
def test_binomials_of_different_counts_keep_their_accuracy(n, m, p, q):
    with mpmath.workdps(40):

        def log_probability(count, probs, k):
            log_odds = [mpmath.log(x) if x else mpf(-1e9) for x in (probs, 1 - mpf(probs))]
            return mpmath.log(mpmath.binomial(count, k)) + k * log_odds[0] + (count - k) * log_odds[1]

        logs = [(log_probability(n, p, k), log_probability(m, q, k)) for k in range(n + 1)]
        truth = mpmath.fsum(mpmath.exp(log_p) * (log_p - log_q) for log_p, log_q in logs)
    got = kl(f.Binomial(total_count=n, probs=p), f.Binomial(total_count=m, probs=q))
    assert relative_error(got, truth) < 1e-13


@pytest.mark.slow
def test_gradients_of_zipf_variables_in_torch_and_jax():
    for a, b in ((1.7, 2.9), (2.5, 2.500001), (3.0, 3.0)):
        leaves = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (a, b)]
        assert torch.autograd.gradcheck(lambda a, b: kl(f.Zipf(exponent=a), f.Zipf(exponent=b)), leaves)
        by_torch = torch.autograd.grad(kl(*(f.Zipf(exponent=leaf) for leaf in leaves)), leaves)
        with jax.enable_x64(True):
            by_jax = jax.jit(jax.grad(lambda a, b: kl(f.Zipf(exponent=a), f.Zipf(exponent=b)), argnums=(0, 1)))(a, b)
        np.testing.assert_allclose(np.asarray(by_jax), [float(slope) for slope in by_torch], rtol=1e-12, atol=1e-18)


def test_arrays_raise_and_name_the_function_for_them():
    with pytest.raises(TypeError, match=r"got list; for arrays of probabilities see kullback\.kl_probs"):
        kl([0.5, 0.5], np.asarray([0.4, 0.6]))
