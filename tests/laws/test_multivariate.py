"""Laws of KL between multivariate distributions, categorical distributions and distributions of directions.

The marginal distribution of some components, or of grouped categories, is known for each family. By the chain rule, KL
of the joint distribution is KL of the marginal plus the expected KL of the conditional, so that it is at least KL of
the marginal. Every law is checked with the arrays of every library.
"""

import jax
import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from kullback import families as f
from kullback.closed_forms import FORMS
from kullback.distributions import kl

from ..oracles.univariate_densities import distribution_of, log_densities, nodes_and_weights
from .test_distributions import UNIVARIATE, expected_log_ratio

SEEDS = st.integers(0, 2**32 - 1)
LIBRARIES = {
    "numpy": lambda value: np.asarray(value, np.float64),
    "torch": lambda value: torch.tensor(np.asarray(value), dtype=torch.float64),
    "jax": lambda value: jax.numpy.asarray(value, jax.numpy.float64),
}


def kls(p, q):
    """KL from the arrays of each library."""

    def in_library(record, library):
        return type(record)(**{name: library(v) for name, v in vars(record).items() if v is not None})

    with jax.enable_x64(True):
        return [np.asarray(kl(in_library(p, library), in_library(q, library))) for library in LIBRARIES.values()]


def law(function):
    return settings(max_examples=2, phases=[Phase.generate])(given(seed=SEEDS)(function))


def name_of(pair):
    return "-".join(kind.__name__ for kind in pair)


def covariance(rng, size):
    root = rng.normal(size=(size, size + 2))
    matrix = root @ root.T / size
    return (matrix + matrix.T) / 2


def simplex(rng, *shape):
    probs = rng.dirichlet(np.full(shape[-1], 2.0), shape[:-1])
    return probs / probs.sum(axis=-1, keepdims=True)


def normal(rng, size):
    return f.MultivariateNormal(loc=rng.normal(size=size), covariance_matrix=covariance(rng, size))


def low_rank(rng, size):
    factor, diagonal = rng.normal(size=(size, 2)), rng.uniform(0.5, 2, size)
    return f.LowRankMultivariateNormal(loc=rng.normal(size=size), cov_factor=factor, cov_diag=diagonal)


def moments(d):
    if isinstance(d, f.LowRankMultivariateNormal):
        return d.loc, d.cov_factor @ d.cov_factor.T + np.diag(d.cov_diag)
    if isinstance(d, f.MatrixNormal):
        return np.ravel(d.loc), np.kron(d.row_covariance, d.column_covariance)
    return d.loc, d.covariance_matrix


def marginal_normal(d, kept):
    loc, cov = moments(d)
    return f.MultivariateNormal(loc=loc[kept], covariance_matrix=cov[np.ix_(kept, kept)])


def expected_conditional_kl(p, q, first, rest):
    """The expected KL between the conditional normal distributions of `rest` given `first`, whose means are linear."""
    (p_loc, p_cov), (q_loc, q_cov) = moments(p), moments(q)
    slopes, locs, covs = [], [], []
    for loc, cov in ((p_loc, p_cov), (q_loc, q_cov)):
        slope = cov[np.ix_(rest, first)] @ np.linalg.inv(cov[np.ix_(first, first)])
        slopes.append(slope)
        locs.append(loc[rest] + slope @ (p_loc[first] - loc[first]))
        covs.append(cov[np.ix_(rest, rest)] - slope @ cov[np.ix_(first, rest)])
    change, inverse = slopes[0] - slopes[1], np.linalg.inv(covs[1])
    spread = np.trace(inverse @ change @ p_cov[np.ix_(first, first)] @ change.T)
    shift = locs[0] - locs[1]
    logs = np.linalg.slogdet(covs[1])[1] - np.linalg.slogdet(covs[0])[1]
    return (np.trace(inverse @ covs[0]) - len(rest) + logs + shift @ inverse @ shift + spread) / 2


NORMALS = {
    (f.MultivariateNormal, f.MultivariateNormal): (normal, normal),
    (f.LowRankMultivariateNormal, f.LowRankMultivariateNormal): (low_rank, low_rank),
    (f.MultivariateNormal, f.LowRankMultivariateNormal): (normal, low_rank),
    (f.LowRankMultivariateNormal, f.MultivariateNormal): (low_rank, normal),
}


@pytest.mark.parametrize("pair", NORMALS, ids=name_of)
@law
def test_chain_rule_for_multivariate_normals(pair, seed):
    rng = np.random.default_rng(seed)
    p, q = (make(rng, 4) for make in NORMALS[pair])
    first, rest = (part.tolist() for part in np.split(rng.permutation(4), [2]))
    part = kl(marginal_normal(p, first), marginal_normal(q, first))
    # A linear map to fewer dimensions does not increase KL.
    matrix = rng.normal(size=(2, 4))
    image = kl(
        *(
            f.MultivariateNormal(loc=matrix @ loc, covariance_matrix=matrix @ cov @ matrix.T)
            for loc, cov in map(moments, (p, q))
        )
    )
    for whole in kls(p, q):
        assert image <= whole
        assert part <= whole
        assert part + expected_conditional_kl(p, q, first, rest) == pytest.approx(whole, rel=1e-9)


@pytest.mark.slow
@law
def test_chain_rule_for_matrix_normals(seed):
    rng = np.random.default_rng(seed)
    p, q = (
        f.MatrixNormal(
            loc=rng.normal(size=(3, 2)), row_covariance=covariance(rng, 3), column_covariance=covariance(rng, 2)
        )
        for _ in "pq"
    )
    top_p, top_q = (
        f.MatrixNormal(loc=d.loc[:1], row_covariance=d.row_covariance[:1, :1], column_covariance=d.column_covariance)
        for d in (p, q)
    )
    rest = expected_conditional_kl(p, q, [0, 1], [2, 3, 4, 5])
    top = kl(top_p, top_q)
    for whole in kls(p, q):
        assert top <= whole
        assert top + rest == pytest.approx(whole, rel=1e-9)


@law
def test_chain_rule_for_dirichlets(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(0.3, 6, (2, 5))
    sums = [np.asarray([x[:2].sum(), x[2:].sum()]) for x in (a, b)]
    between = kl(*(f.Dirichlet(concentration=x) for x in sums))
    within = sum(kl(*(f.Dirichlet(concentration=x[k]) for x in (a, b))) for k in (slice(2), slice(2, 5)))
    for whole in kls(f.Dirichlet(concentration=a), f.Dirichlet(concentration=b)):
        assert between <= whole
        assert whole == pytest.approx(between + within, rel=1e-11)


@pytest.mark.parametrize("kind", [f.Categorical, f.OneHotCategorical, f.Multinomial])
@law
def test_chain_rule_for_grouped_categories(kind, seed):
    rng = np.random.default_rng(seed)
    count = {"total_count": 7.0} if kind is f.Multinomial else {}
    p, q = simplex(rng, 2, 5)
    groups = [slice(2), slice(2, 5)]
    merged = [np.asarray([x[group].sum() for group in groups]) for x in (p, q)]
    between = kl(*(kind(probs=x / x.sum(), **count) for x in merged))
    within = [kl(*(kind(probs=x[group] / x[group].sum(), **count) for x in (p, q))) for group in groups]
    for whole in kls(kind(probs=p, **count), kind(probs=q, **count)):
        assert between <= whole
        # The expected number of draws in a group is its share of the draws.
        assert whole == pytest.approx(between + merged[0] @ within, rel=1e-11)
        assert whole == pytest.approx(count.get("total_count", 1) * stats.entropy(p, q), rel=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [f.Wishart, f.InverseWishart])
@law
def test_principal_submatrices_of_wisharts_have_smaller_kl(kind, seed):
    rng = np.random.default_rng(seed)
    dfs, matrices = rng.uniform(4.5, 9, 2), [covariance(rng, 3) for _ in "pq"]
    name = "covariance_matrix" if kind is f.Wishart else "scale_matrix"
    whole = kls(*(kind(df=df, **{name: matrix}) for df, matrix in zip(dfs, matrices, strict=True)))
    corners = []
    for size in (1, 2):
        # For the inverse Wishart each omitted row reduces the degrees of freedom by 1.
        lost = 0 if kind is f.Wishart else 3 - size
        corner = [kind(df=df - lost, **{name: m[:size, :size]}) for df, m in zip(dfs, matrices, strict=True)]
        corners.append(kl(*corner))
    assert 0 <= corners[0] <= corners[1] <= min(whole)
    # A 1 x 1 Wishart matrix is a gamma variable; a 1 x 1 inverse Wishart matrix is an inverse-gamma variable.
    simple = f.Gamma if kind is f.Wishart else f.InverseGamma
    if kind is f.Wishart:
        numbers = [simple(concentration=df / 2, rate=0.5 / m[0, 0]) for df, m in zip(dfs, matrices, strict=True)]
    else:
        numbers = [simple(concentration=df / 2 - 1, rate=m[0, 0] / 2) for df, m in zip(dfs, matrices, strict=True)]
    assert corners[0] == pytest.approx(kl(*numbers), rel=1e-11)


@pytest.mark.slow
@law
def test_chain_rule_for_wisharts(seed):
    """Bartlett decomposition of [[A, B], [B', d]]: given A, B is normal and d - B' A^-1 B is a gamma variable."""
    rng = np.random.default_rng(seed)
    dfs, matrices = rng.uniform(4.5, 9, 2), [covariance(rng, 3) for _ in "pq"]
    p, q = (f.Wishart(df=df, covariance_matrix=m) for df, m in zip(dfs, matrices, strict=True))
    corner = kl(*(f.Wishart(df=df, covariance_matrix=m[:2, :2]) for df, m in zip(dfs, matrices, strict=True)))
    slopes = [np.linalg.solve(m[:2, :2], m[:2, 2]) for m in matrices]
    residuals = [m[2, 2] - m[2, :2] @ slope for m, slope in zip(matrices, slopes, strict=True)]
    # Given A, B is normal with mean A slope and covariance residual A; E_p A = df V.
    change = slopes[0] - slopes[1]
    expected = dfs[0] * change @ matrices[0][:2, :2] @ change / (2 * residuals[1])
    ratio = residuals[0] / residuals[1]
    expected += ratio - 1 - np.log(ratio)  # of two dimensions
    gammas = [f.Gamma(concentration=(df - 2) / 2, rate=0.5 / value) for df, value in zip(dfs, residuals, strict=True)]
    for whole in kls(p, q):
        assert whole == pytest.approx(corner + expected + kl(*gammas), rel=1e-9)


def circle(loc, concentration, x):
    return stats.vonmises(concentration, loc=loc).logpdf(x)


@law
def test_binned_von_mises_and_von_mises_fisher_on_the_circle(seed):
    rng = np.random.default_rng(seed)
    angles, strengths = rng.uniform(-np.pi, np.pi, 2), rng.uniform(0.1, 8, 2)
    on_circle = [f.VonMises(loc=a, concentration=k) for a, k in zip(angles, strengths, strict=True)]
    vectors = [
        f.VonMisesFisher(mean_direction=np.asarray([np.cos(a), np.sin(a)]), concentration=k)
        for a, k in zip(angles, strengths, strict=True)
    ]
    # Coarse and fine bins of the circle.
    fine = np.unique([*np.linspace(-np.pi, np.pi, 4001), *angles])
    x, width = (fine[1:] + fine[:-1]) / 2, np.diff(fine)
    masses = [np.exp(circle(a, k, x)) * width for a, k in zip(angles, strengths, strict=True)]
    cuts = np.sort(rng.choice(fine.size - 1, 5, replace=False))
    coarse = [np.add.reduceat(np.roll(mass, -cuts[0]), [0, *(cuts[1:] - cuts[0])]) for mass in masses]
    binned = [float(stats.entropy(*side)) for side in (coarse, masses)]
    for one, two in zip(kls(*on_circle), kls(*vectors), strict=True):
        assert binned[0] <= one * (1 + 1e-9)
        assert binned[1] == pytest.approx(one, rel=1e-4, abs=1e-12)
        assert two == pytest.approx(one, rel=1e-9)


@law
def test_projections_of_von_mises_fisher_to_one_axis(seed):
    rng = np.random.default_rng(seed)
    axes, strengths = rng.normal(size=(2, 3)), rng.uniform(0.2, 8, 2)
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    # For equal mean directions KL equals KL of the projections to it, whose densities are proportional to e^(k t).
    heights = kl(*(f.ContinuousBernoulli(logits=2 * k) for k in strengths))
    same = kl(*(f.VonMisesFisher(mean_direction=axes[0], concentration=k) for k in strengths))
    assert heights == pytest.approx(same, rel=1e-9)
    # For different mean directions the projection to the mean direction of p has a smaller KL.
    p, q = (f.VonMisesFisher(mean_direction=a, concentration=k) for a, k in zip(axes, strengths, strict=True))
    t, weights = np.polynomial.legendre.leggauss(200)
    logs_p = strengths[0] * t
    cosine = axes[0] @ axes[1]
    inside = strengths[1] * np.sqrt(np.maximum((1 - cosine**2) * (1 - t**2), 0))
    logs_q = strengths[1] * cosine * t + np.log(np.i0(inside))
    logs_p, logs_q = (logs - logsumexp(logs, b=weights) for logs in (logs_p, logs_q))
    projected = float(weights @ expected_log_ratio(logs_p, logs_q))
    # p is uniform around the axis, so that the conditional KL is the mean of log I_0; the mean cosine is 0.
    around = float(weights @ (np.exp(logs_p) * np.log(np.i0(inside))))
    for whole in kls(p, q):
        assert projected <= whole * (1 + 1e-9)
        assert projected + around == pytest.approx(whole, rel=1e-8)


# Joint convexity and the chain rule for mixtures, for families whose outcomes can be enumerated or integrated.


def two_dimensional(make):
    def case(rng):
        four = [make(rng, 2) for _ in range(4)]
        steps = np.linspace(-40, 40, 801)
        x = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        logs = [stats.multivariate_normal(*moments(d)).logpdf(x) for d in four]
        return four, np.asarray(logs), np.full(len(x), (steps[1] - steps[0]) ** 2)

    return case


def column(rng, size):
    return f.MatrixNormal(
        loc=rng.normal(size=(size, 1)), row_covariance=covariance(rng, size), column_covariance=[[1.5]]
    )


def low_rank_and_normals(rng):
    makers = [normal, normal, low_rank, low_rank]
    return two_dimensional(lambda *given: makers.pop()(*given))(rng)


def normals_and_low_rank(rng):
    makers = [low_rank, low_rank, normal, normal]
    return two_dimensional(lambda *given: makers.pop()(*given))(rng)


def of_categories(kind):
    def case(rng):
        probs = simplex(rng, 4, 5)
        return [kind(probs=row) for row in probs], np.log(probs), np.ones(5)

    return case


def of_multinomials(rng):
    probs = simplex(rng, 4, 3)
    counts = np.asarray([(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)])
    logs = [stats.multinomial(4, row).logpmf(counts) for row in probs]
    return [f.Multinomial(total_count=4.0, probs=row) for row in probs], np.asarray(logs), np.ones(len(counts))


def of_univariate(make):
    """A test case of a family whose special case is a univariate distribution."""

    def case(rng):
        four, distributions = zip(
            *((d, distribution_of(plain)) for d, plain in (make(rng) for _ in range(4))), strict=True
        )
        x, weights = nodes_and_weights(distributions, [])
        return list(four), log_densities(distributions, x), weights

    return case


def two_category_dirichlet(rng):
    a, b = (float(x) for x in rng.uniform(1.2, 5, 2))
    return f.Dirichlet(concentration=[a, b]), f.Beta(concentration1=a, concentration0=b)


def two_by_two_lkj(rng):
    """(1 + r)/2 of the correlation r has a symmetric beta distribution."""
    a = float(rng.uniform(1.2, 5))
    return f.LKJ(dim=2, concentration=a), f.Beta(concentration1=a, concentration0=a)


def one_by_one_wishart(rng):
    df, v = (float(x) for x in rng.uniform(3, 8, 2))
    return f.Wishart(df=df, covariance_matrix=[[v]]), f.Gamma(concentration=df / 2, rate=0.5 / v)


def one_by_one_inverse_wishart(rng):
    df, v = (float(x) for x in rng.uniform(3, 8, 2))
    return f.InverseWishart(df=df, scale_matrix=[[v]]), f.InverseGamma(concentration=df / 2, rate=v / 2)


def of_hypergeometric(rng):
    d = f.Hypergeometric(population=float(rng.integers(30, 40)), successes=float(rng.integers(8, 20)), draws=6.0)
    return d, d


def circular(rng, vectors=False):
    angles, strengths = rng.uniform(-np.pi, np.pi, 4), rng.uniform(0.1, 8, 4)
    x = np.linspace(-np.pi, np.pi, 400, endpoint=False)
    logs = [stats.vonmises(k, loc=a).logpdf(x) for a, k in zip(angles, strengths, strict=True)]
    four = [
        f.VonMisesFisher(mean_direction=[np.cos(a), np.sin(a)], concentration=k)
        if vectors
        else f.VonMises(loc=a, concentration=k)
        for a, k in zip(angles, strengths, strict=True)
    ]
    return four, np.asarray(logs), np.full(400, np.pi / 200)


CASES = {
    (f.MultivariateNormal, f.MultivariateNormal): two_dimensional(normal),
    (f.LowRankMultivariateNormal, f.LowRankMultivariateNormal): two_dimensional(low_rank),
    (f.MultivariateNormal, f.LowRankMultivariateNormal): normals_and_low_rank,
    (f.LowRankMultivariateNormal, f.MultivariateNormal): low_rank_and_normals,
    (f.MatrixNormal, f.MatrixNormal): two_dimensional(column),
    (f.Categorical, f.Categorical): of_categories(f.Categorical),
    (f.OneHotCategorical, f.OneHotCategorical): of_categories(f.OneHotCategorical),
    (f.Multinomial, f.Multinomial): of_multinomials,
    (f.Dirichlet, f.Dirichlet): of_univariate(two_category_dirichlet),
    (f.LKJ, f.LKJ): of_univariate(two_by_two_lkj),
    (f.Wishart, f.Wishart): of_univariate(one_by_one_wishart),
    (f.InverseWishart, f.InverseWishart): of_univariate(one_by_one_inverse_wishart),
    (f.Hypergeometric, f.Hypergeometric): of_univariate(of_hypergeometric),
    (f.VonMises, f.VonMises): circular,
    (f.VonMisesFisher, f.VonMisesFisher): lambda rng: circular(rng, vectors=True),
}


def test_every_registered_pair_is_covered():
    assert {pair for pair in FORMS if all(issubclass(kind, f.Distribution) for kind in pair)} == {*UNIVARIATE, *CASES}


@pytest.mark.slow
@pytest.mark.parametrize("pair", CASES, ids=name_of)
@law
def test_chain_rule_and_joint_convexity_for_mixtures(pair, seed):
    rng = np.random.default_rng(seed)
    (p, other_p, q, other_q), logs, weights = CASES[pair](rng)
    assert (type(p), type(q)) == pair
    has_mass = logs[:2].max(axis=0) > -700  # p has no mass elsewhere
    logs, weights = logs[:, has_mass], weights[has_mass]
    weight = rng.uniform(0.1, 0.9)
    labels = np.log([weight, 1 - weight])[:, None]
    log_p, log_q = labels + logs[:2], labels + logs[2:]
    both_p, both_q = logsumexp(log_p, axis=0), logsumexp(log_q, axis=0)
    mixtures = weights @ expected_log_ratio(both_p, both_q)
    inside = weights @ (np.exp(both_p) * expected_log_ratio(log_p - both_p, log_q - both_q).sum(axis=0))
    for one, two in zip(kls(p, q), kls(other_p, other_q), strict=True):
        whole = weight * one + (1 - weight) * two
        assert mixtures <= whole * (1 + 1e-9)
        assert mixtures + inside == pytest.approx(whole, rel=1e-7)
