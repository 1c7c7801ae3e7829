"""scipy.stats: frozen distributions and random variables as families, checked by their densities."""

import math

import mpmath
import numpy as np
import pytest
from scipy import integrate, stats

from kullback import families as f
from kullback.densities import from_scipy
from kullback.densities.resolve import as_family
from kullback.distributions import kl
from kullback.errors import NoClosedFormError, ParameterError
from kullback.measure import measure

from ..oracles import families as oracle
from ..oracles.reference_cases import cases, record_class, relative_error, tolerance

inf = math.inf
FROZEN = {
    "beta": lambda concentration1, concentration0: stats.beta(concentration1, concentration0),
    "binomial": lambda total_count, probs: stats.binom(total_count, probs),
    "cauchy": lambda loc, scale: stats.cauchy(loc, scale),
    "dirichlet": lambda concentration: stats.dirichlet(concentration),
    "exponential": lambda rate: stats.expon(scale=1 / rate),
    "gamma": lambda concentration, rate: stats.gamma(concentration, scale=1 / rate),
    "geometric": lambda probs: stats.geom(probs),
    "gumbel": lambda loc, scale: stats.gumbel_r(loc, scale),
    "half_normal": lambda scale: stats.halfnorm(scale=scale),
    "inverse_gamma": lambda concentration, rate: stats.invgamma(concentration, scale=rate),
    "inverse_gaussian": lambda mean, shape: stats.invgauss(mean / shape, scale=shape),
    "laplace": lambda loc, scale: stats.laplace(loc=loc, scale=scale),
    "log_normal": lambda loc, scale: stats.lognorm(scale, scale=math.exp(loc)),
    "logistic": lambda loc, scale: stats.logistic(loc, scale),
    "multivariate_normal": lambda loc, covariance_matrix: stats.multivariate_normal(loc, covariance_matrix),
    "negative_binomial": lambda total_count, probs: stats.nbinom(total_count, 1 - probs),
    "normal": lambda loc, scale: stats.norm(loc, scale),
    "pareto": lambda scale, alpha: stats.pareto(alpha, scale=scale),
    "poisson": lambda rate: stats.poisson(rate),
    "rayleigh": lambda scale: stats.rayleigh(scale=scale),
    "student_t": lambda df, loc, scale: stats.t(df, loc, scale),
    "uniform": lambda low, high: stats.uniform(low, high - low),
    "von_mises": lambda loc, concentration: stats.vonmises(concentration, loc),
    "weibull": lambda scale, concentration: stats.weibull_min(concentration, scale=scale),
    "wishart": lambda df, covariance_matrix: stats.wishart(df, covariance_matrix),
}
# The conversions of the reference parameters to SciPy's and back are rounded.
CONVERTED = {"exponential", "gamma", "inverse_gaussian", "log_normal", "negative_binomial", "uniform"}


@pytest.mark.parametrize(("p_family", "q_family", "p", "q", "truth", "delta"), cases(FROZEN))
def test_reference_values(p_family, q_family, p, q, truth, delta):
    frozen = FROZEN[p_family](**p), FROZEN[q_family](**q)
    if not oracle.has_closed_form(record_class(p_family), record_class(q_family), p, q):
        with pytest.raises(NoClosedFormError, match="measure"):
            kl(*frozen)
        return
    got = kl(*frozen)
    roundings = 12e-16 if {p_family, q_family} & CONVERTED else 4e-16
    assert relative_error(got, truth) < tolerance(delta, roundings)
    assert isinstance(got, np.ndarray | np.float64)


OLD = {
    "arcsine": stats.arcsine(),
    "bernoulli": stats.bernoulli(0.3),
    "beta": stats.beta(2.0, 0.5),
    "binom": stats.binom(7, 0.3),
    "cauchy": stats.cauchy(1.0, 2.0),
    "chi2": stats.chi2(3.0, scale=2.0),
    "erlang": stats.erlang(3, scale=2.0),
    "expon": stats.expon(scale=2.0),
    "gamma": stats.gamma(2.5, 0.0, 2.0),
    "geom, from 0": stats.geom(0.3, loc=-1),
    "gumbel_r": stats.gumbel_r(1.0, 2.0),
    "halfcauchy": stats.halfcauchy(scale=2.0),
    "halfnorm": stats.halfnorm(scale=2.0),
    "invgamma": stats.invgamma(2.5, scale=2.0),
    "invgauss": stats.invgauss(0.7, scale=2.0),
    "laplace": stats.laplace(1.0, 2.0),
    "levy": stats.levy(scale=2.0),
    "logistic": stats.logistic(1.0, 2.0),
    "lognorm": stats.lognorm(s=0.7, scale=2.0),
    "maxwell": stats.maxwell(scale=2.0),
    "nbinom": stats.nbinom(3, 0.3),
    "nbinom, mostly none": stats.nbinom(3, 0.7),
    "norm": stats.norm(loc=1.0, scale=2.0),
    "pareto": stats.pareto(2.5, scale=0.3),
    "poisson": stats.poisson(2.5),
    "powerlaw": stats.powerlaw(2.5),
    "rayleigh": stats.rayleigh(scale=2.0),
    "t": stats.t(3.0, 1.0, 2.0),
    "uniform": stats.uniform(-1.0, 4.0),
    "wald": stats.wald(scale=2.0),
    "weibull_min": stats.weibull_min(1.5, scale=2.0),
}
GAMMA, GUMBEL, NORMAL = (stats.make_distribution(family) for family in (stats.gamma, stats.gumbel_r, stats.norm))
NEW = {
    "Normal": stats.Normal(mu=1.0, sigma=2.0),
    "Normal itself": stats.Normal(),
    "shifted and scaled": 1.0 - 2.0 * stats.Normal(mu=1.0, sigma=0.5),
    "Uniform": stats.Uniform(a=-1.0, b=3.0),
    "a negative Uniform": 3.0 - 2.0 * stats.Uniform(a=0.0, b=2.0),
    "Logistic": 2.0 * stats.Logistic() + 1.0,
    "Binomial": stats.Binomial(n=7, p=0.3),
    "made of norm": 3.0 * NORMAL() - 1.0,
    "made of gamma": 3.0 * GAMMA(a=2.5),
    "made of nbinom": stats.make_distribution(stats.nbinom)(n=3, p=0.3),
    "made of gumbel_l, negative": -stats.make_distribution(stats.gumbel_l)(),
    "exp": stats.exp(stats.Normal(mu=0.5, sigma=0.7)),
}


@pytest.mark.parametrize("distribution", [*OLD.values(), *NEW.values()], ids=[*OLD, *NEW])
def test_record_has_the_same_density(distribution):
    record = as_family(distribution)
    family = oracle.FAMILIES[type(record)]
    counts = family.kind == "counts"
    for x in ((0, 1) if isinstance(record, f.Bernoulli) else (0, 1, 2, 3)) if counts else (0.37, 0.61, 0.93):
        with mpmath.workdps(30):
            parameters = {name: mpmath.mpf(float(v)) for name, v in vars(record).items() if v is not None}
            if "logits" in parameters:
                parameters["probs"] = 1 / (1 + mpmath.exp(-parameters.pop("logits")))
            truth = float(family.log_density(mpmath.mpf(x), **parameters))
        theirs = distribution.logpmf(x) if counts else distribution.logpdf(x)
        assert theirs == pytest.approx(truth, rel=1e-10)


def test_records_of_discrete_families():
    assert vars(as_family(stats.hypergeom(M=20, n=7, N=12))) == {"population": 20, "successes": 7, "draws": 12}
    assert as_family(stats.zipf(2.5)).exponent == 2.5
    assert vars(as_family(stats.zipfian(1.5, 10))) == {"exponent": 1.5, "total_count": 10}
    assert vars(as_family(stats.f(3.0, 4.0))) == {"df1": 3.0, "df2": 4.0}


def test_small_failure_probabilities_keep_their_accuracy():
    # The KL is n KL(Bernoulli(p) || Bernoulli(q)) / p; in float64, 1 - 1e-30 is 1.
    got = kl(stats.nbinom(3, 1e-30), stats.nbinom(3, 2e-30))
    assert got == pytest.approx(3 * (1 - math.log(2)), rel=1e-12)
    assert kl(stats.nbinom(3, 0.5), stats.nbinom(3, 1.0)) == inf
    assert kl(stats.nbinom(3, 1.0), stats.nbinom(3, 0.5)) == pytest.approx(3 * math.log(2), rel=1e-14)


def test_geometric_distributions_of_trials_and_of_failures_differ():
    one, other = stats.geom(0.3), stats.geom(0.4)
    truth = math.log(0.3 / 0.4) + (0.7 / 0.3) * math.log(0.7 / 0.6)
    assert kl(one, other) == pytest.approx(truth, rel=1e-13)
    assert kl(stats.geom(0.3, loc=-1), f.Geometric(probs=0.4)) == pytest.approx(truth, rel=1e-13)
    with pytest.raises(NoClosedFormError, match="measure"):
        kl(one, f.Geometric(probs=0.4))


def test_transformed_random_variables():
    p, q = stats.Normal(mu=0.0, sigma=1.0), stats.Normal(mu=1.0, sigma=2.0)
    truth = kl(p, q)
    assert truth == pytest.approx(math.log(2) - 0.25, rel=1e-14)
    assert kl(stats.exp(p), stats.exp(q)) == truth
    assert kl(stats.exp(p), stats.lognorm(2.0, scale=math.e)) == pytest.approx(truth, rel=1e-14)
    gammas = GAMMA(a=2.0), GAMMA(a=3.0)
    assert kl(*map(stats.log, gammas)) == kl(*gammas) > 0
    gumbels = GUMBEL(), 2.0 * GUMBEL() + 1.0
    assert kl(*(-g for g in gumbels)) == pytest.approx(kl(*gumbels), rel=1e-14)
    assert kl(-gumbels[0], stats.gumbel_l()) == 0


@pytest.mark.parametrize(
    "variable",
    [
        abs(stats.Normal()),
        stats.truncate(stats.Normal(), 0.0, 1.0),
        stats.order_statistic(stats.Normal(), r=1, n=3),
        1.0 / stats.exp(stats.Normal()),
        -GAMMA(a=2.0),
        GAMMA(a=2.0) + 1.0,
        stats.Mixture([stats.Normal(), stats.Uniform(a=0.0, b=1.0)], weights=[0.5, 0.5]),
        stats.make_distribution(stats.johnsonsu)(a=1.0, b=2.0),
    ],
    ids=repr,
)
def test_random_variables_without_a_record_raise(variable):
    with pytest.raises(NoClosedFormError, match=r"kullback\.measure"):
        kl(variable, variable)


def test_folded_normals_raise():
    # |N(1, 1)| and |N(-1, 1)| are the same distribution; the KL of the bases is 2.
    with pytest.raises(NoClosedFormError, match="FoldedDistribution"):
        kl(abs(stats.Normal(mu=1.0, sigma=1.0)), abs(stats.Normal(mu=-1.0, sigma=1.0)))


@pytest.mark.parametrize(
    "frozen",
    [
        stats.gamma(2.0, loc=1.0),
        stats.expon(1.0),
        stats.weibull_min(2.0, loc=[0.0, 1.0]),
        stats.beta(2.0, 3.0, scale=2.0),
        stats.f(2.0, 3.0, scale=2.0),
        stats.poisson(2.0, loc=1),
        stats.geom(0.5, loc=3),
        stats.vonmises(2.0, scale=2.0),
        stats.johnsonsu(1.0, 2.0),
        stats.skellam(1.0, 2.0),
        stats.multivariate_t([0.0, 1.0]),
        stats.gaussian_kde([0.0, 1.0, 3.0]),
        stats.rv_histogram(np.histogram([1.0, 2.0, 3.0])),
    ],
    ids=lambda frozen: frozen.dist.name if hasattr(frozen, "dist") else type(frozen).__name__,
)
def test_distributions_without_a_record_raise(frozen):
    with pytest.raises(NoClosedFormError, match=r"kullback\.measure"):
        kl(frozen, frozen)


def test_a_von_mises_distribution_on_the_line_has_its_own_interval():
    """scipy.stats.vonmises_line has the class of vonmises, but its support is one period around loc."""
    p, q = stats.vonmises_line(4.0, loc=1.0), stats.norm(1.0, 1.0)
    expected = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), *p.support(), epsabs=1e-12)[0]
    assert measure(p, q).value == pytest.approx(expected, rel=1e-8)
    assert measure(p, stats.vonmises_line(5.0)).value == np.inf
    assert kl(stats.vonmises_line(4.0), stats.vonmises_line(5.0)) == kl(stats.vonmises(4.0), stats.vonmises(5.0))
    with pytest.raises(NoClosedFormError, match="vonmises_line with loc other than 0"):
        kl(p, stats.vonmises_line(5.0))


def test_a_periodic_density_on_the_whole_line_is_refused():
    for pair in ((stats.vonmises(4.0, scale=3.0), stats.norm()), (stats.norm(), stats.vonmises(4.0, scale=0.5))):
        with pytest.raises(ParameterError, match=r"expected scipy\.stats\.vonmises with scale 1"):
            measure(*pair)


def test_invalid_arguments_raise():
    with pytest.raises(TypeError, match=r"scipy\.stats\.norm itself; give it its parameters"):
        kl(stats.norm, stats.norm)
    with pytest.raises(TypeError, match="kl_probs"):
        from_scipy.as_family([0.5, 0.5])
    with pytest.raises(ParameterError, match=r"scale to be > 0 and finite, but it is -1\.0"):
        kl(stats.norm(0.0, -1.0), stats.norm())
    with pytest.raises(ParameterError, match="concentration"):
        kl(stats.gamma([1.0, -1.0]), stats.gamma(1.0))
    singular = stats.multivariate_normal([0.0, 0.0], np.ones((2, 2)), allow_singular=True)
    with pytest.raises(ParameterError, match="positive definite"):
        kl(singular, singular)


def test_batches_and_dtypes():
    assert kl(stats.norm([[0.0], [1.0]], 1.0), stats.norm(0.0, [1.0, 2.0, 3.0])).shape == (2, 3)
    assert kl(stats.gamma([1.0, 2.0]), stats.expon()).shape == (2,)
    single = np.float32(1)
    assert type(kl(stats.norm(single, single), stats.norm(2 * single, single))) is np.float64
    assert kl(stats.norm(np.zeros(2, np.float32), single), stats.norm(single, single)).dtype == np.float32
    assert kl(stats.Normal(mu=[0.0, 1.0], sigma=1.0), stats.norm()).tolist() == [0.0, 0.5]


def test_equal_ends_of_supports_stay_equal():
    # 0.1 + (1 - 0.1) need not be 1; random variables store both ends.
    for low in np.linspace(0.01, 0.99, 99):
        assert kl(stats.Uniform(a=low, b=1.0), stats.Uniform(a=0.005, b=1.0)) < inf


def test_multivariate_and_matrix_distributions():
    rng = np.random.default_rng(1)
    root = rng.normal(size=(3, 5))
    cov = root @ root.T
    pairs = {
        stats.multivariate_normal(np.zeros(3), cov): f.MultivariateNormal(loc=np.zeros(3), covariance_matrix=cov),
        stats.multivariate_normal(0.0, 2.0): f.MultivariateNormal(loc=[0.0], covariance_matrix=[[2.0]]),
        stats.wishart(5, cov): f.Wishart(df=5, covariance_matrix=cov),
        stats.invwishart(5, cov): f.InverseWishart(df=5, scale_matrix=cov),
        stats.dirichlet([1.0, 2.0]): f.Dirichlet(concentration=[1.0, 2.0]),
        stats.multinomial(3, [0.2, 0.8]): f.Multinomial(total_count=3, probs=[0.2, 0.8]),
        stats.matrix_normal(np.zeros((3, 2)), cov): f.MatrixNormal(
            loc=np.zeros((3, 2)), row_covariance=cov, column_covariance=np.eye(2)
        ),
        stats.vonmises_fisher([0.0, 1.0], 2.0): f.VonMisesFisher(mean_direction=[0.0, 1.0], concentration=2.0),
    }
    for frozen, record in pairs.items():
        assert type(as_family(frozen)) is type(record)
        assert kl(frozen, record) == pytest.approx(0.0, abs=1e-13)
    precise = stats.multivariate_normal([0.0, 0.0], stats.Covariance.from_precision([[4.0, 0.0], [0.0, 1.0]]))
    assert kl(precise, stats.multivariate_normal([0.0, 0.0])) == pytest.approx(math.log(2) + 0.125 - 0.5, rel=1e-14)


def test_inverse_wishart_matches_scipy():
    # The mean of log p - log q over samples of p, within five standard errors.
    p, q = stats.invwishart(6, [[1.0, 0.3], [0.3, 2.0]]), stats.invwishart(7, np.eye(2))
    x = np.moveaxis(p.rvs(20000, random_state=np.random.default_rng(0)), 0, -1)
    ratios = p.logpdf(x) - q.logpdf(x)
    assert kl(p, q) == pytest.approx(ratios.mean(), abs=5 * ratios.std() / math.sqrt(ratios.size))


def test_discrete_distributions_given_by_values():
    p, q, other = (
        stats.rv_discrete(values=(values, probs))
        for values, probs in (([1, 4], [0.5, 0.5]), ([1, 4], [0.25, 0.75]), ([1, 5], [0.5, 0.5]))
    )
    truth = 0.5 * math.log(4 / 3)
    assert kl(p, q) == pytest.approx(truth, rel=1e-14)
    assert kl(p(), q()) == pytest.approx(truth, rel=1e-14)
    with pytest.raises(NoClosedFormError, match="measure"):
        kl(p, other)


def test_mixture_of_normals_has_a_record():
    mixture = stats.Mixture([stats.Normal(), stats.Normal(mu=20.0, sigma=2.0)], weights=[0.25, 0.75])
    record = as_family(mixture)
    assert isinstance(record, f.NormalMixture)
    assert (list(record.weights), list(record.locs), list(record.scales)) == ([0.25, 0.75], [0.0, 20.0], [1.0, 2.0])


def test_mixed_libraries():
    assert kl(stats.norm(0.0, 1.0), stats.Normal(mu=1.0, sigma=1.0)) == 0.5
    assert kl(f.Gamma(concentration=2.0, rate=1.0), stats.gamma(2.0)) == 0
    assert kl(stats.norm(), stats.expon()) == inf
