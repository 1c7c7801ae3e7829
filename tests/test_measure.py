"""measure: estimates for distributions of every library, their errors and statuses, and invalid arguments."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpyro import distributions as numpyro_distributions
from scipy import special, stats
from torch import distributions as td

from kullback import families
from kullback.densities.gaussian_mixtures import components
from kullback.distributions import register_kl
from kullback.errors import (
    ArrayTypeError,
    DistributionTypeError,
    NoClosedFormError,
    NotNormalizedError,
    ParameterError,
    ShapeError,
    SupportError,
)
from kullback.families import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Cauchy,
    Dirichlet,
    Gamma,
    Independent,
    Laplace,
    Logistic,
    LogNormal,
    MultivariateNormal,
    Normal,
    NormalMixture,
    Poisson,
    StudentT,
    Transformed,
    Uniform,
)
from kullback.fit.forward import fit_forward
from kullback.fit.reverse import fit_reverse
from kullback.measure import measure
from kullback.measure_entropy import measure_cross_entropy, measure_entropy

REFERENCE = Path(__file__).parent / "data" / "families.json"
inf = math.inf
NORMAL = Normal(loc=0.0, scale=1.0)
T5 = StudentT(df=5.0, loc=0.0, scale=1.0)
T5_NORMAL = 0.12476919412361027


def reference_cases():
    return json.loads(REFERENCE.read_text())["cases"]


def record(parameters):
    kind = getattr(families, "".join(word.capitalize() for word in parameters["family"].split("_")))
    return kind(**{name: float(value) for name, value in parameters.items() if name != "family"})


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{c['p']['family']}-{i}") for i, c in enumerate(reference_cases())]
)
def test_truth_is_within_the_error_of_the_estimate(case):
    p, q, truth = record(case["p"]), record(case["q"]), float(case["kl"])
    chosen, forced = measure(p, q), measure(p, q, method="quadrature")
    assert chosen.status in ("exact", "bounded")
    assert forced.status == "bounded"
    assert chosen.value == pytest.approx(truth, rel=1e-8, abs=1e-10 * max(truth, 1e-12))
    assert abs(chosen.value - forced.value) <= forced.error + 1e-12 * truth + 1e-8 * min(truth, 1e-10)


# Distributions of every library.


@pytest.mark.parametrize(
    ("p", "q", "truth"),
    [
        (T5, NORMAL, T5_NORMAL),
        (stats.t(df=5), stats.norm(), T5_NORMAL),
        (stats.t(df=5), stats.Normal(mu=0.0, sigma=1.0), T5_NORMAL),
        (td.StudentT(5.0), td.Normal(0.0, 1.0), T5_NORMAL),
        (td.StudentT(torch.tensor(5.0)), stats.norm(0, 1), T5_NORMAL),
        (stats.norm(loc=1), td.Normal(0.0, 1.0), 0.5),
        (stats.norm(0, 1), stats.Normal(mu=1.0, sigma=2.0), 0.4431471805599453),
        (stats.uniform(0, 1), stats.beta(0.5, 0.5), math.log(math.pi) - 1),
        (stats.gamma(2.0, loc=5.0), stats.gamma(2.0, loc=5.0, scale=2.0), 2 * math.log(2) - 1),
        (stats.poisson(3.0), stats.poisson(6.0), 3 - 3 * math.log(2)),
        (stats.geom(0.5), stats.geom(0.25), 2 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3))),
        (stats.exp(stats.Normal(mu=0.0, sigma=1.0)), LogNormal(loc=1.0, scale=1.0), 0.5),
        (stats.triang(0.5), stats.uniform(), math.log(2) - 0.5),
        (
            stats.rv_histogram(([1.0, 3.0], [0.0, 0.5, 1.0])),
            stats.uniform(),
            0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        ),
    ],
)
def test_objects_of_every_library(p, q, truth):
    estimate = measure(p, q)
    assert estimate.status in ("exact", "bounded")
    assert estimate.value == pytest.approx(truth, rel=1e-11, abs=estimate.error)


def torch_mixture(weights, locs, scales):
    return td.MixtureSameFamily(
        td.Categorical(torch.tensor(weights)), td.Normal(torch.tensor(locs), torch.tensor(scales))
    )


def test_mixtures_of_every_library():
    ours = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
    theirs = torch_mixture([0.5, 0.5], [0.0, 20.0], [2.0, 2.0])
    scipys = stats.Mixture([stats.Normal(mu=0.0, sigma=2.0), stats.Normal(mu=20.0, sigma=2.0)], weights=[0.5, 0.5])
    for mixture in (ours, theirs, scipys):
        estimate = measure(mixture, Normal(loc=5.0, scale=math.sqrt(5)))
        assert estimate.status == "bounded"
        assert estimate.value == pytest.approx(11.8184254582631204, rel=1e-12)
    # Components other than normals, by the log_prob of torch.
    laplaces = td.MixtureSameFamily(td.Categorical(torch.tensor([0.5, 0.5])), td.Laplace(torch.tensor([0.0, 0.0]), 1.0))
    assert measure(laplaces, stats.laplace()).value == pytest.approx(0.0, abs=1e-12)
    assert measure(laplaces, stats.laplace()).status == "bounded"


def test_torch_parameters_in_float32_are_computed_in_float64():
    weights = torch.tensor([0.3, 0.7])
    mixture = td.MixtureSameFamily(td.Categorical(weights), td.StudentT(torch.tensor([3.0, 4.0]), 0.0, 1.0))
    estimate = measure(mixture, td.Normal(0.0, 1.0))
    assert estimate.status == "bounded"
    assert estimate.error < 1e-12


def test_kl_of_independent_components_is_the_sum():
    p = Independent(base=StudentT(df=[3.0, 5.0], loc=0.0, scale=1.0), event_dims=1)
    q = Independent(base=Normal(loc=[0.0, 0.0], scale=[1.0, 1.0]), event_dims=1)
    parts = [measure(StudentT(df=df, loc=0.0, scale=1.0), NORMAL, method="quadrature").value for df in (3.0, 5.0)]
    assert measure(p, q).value == pytest.approx(sum(parts), rel=1e-11)
    forced = measure(p, q, method="quadrature")
    assert forced.value == pytest.approx(sum(parts), rel=1e-11)


# Infinite KL.


@pytest.mark.parametrize(
    ("p", "q", "where"),
    [
        (stats.norm(), stats.uniform(), "-inf < x < 0 and 1 < x < inf"),
        (stats.cauchy(), stats.norm(), "approaches -inf"),
        (stats.norm(), stats.truncnorm(-1, 2), "-inf < x < -1 and 2 < x < inf"),
        (stats.binom(12, 0.5), stats.binom(10, 0.5), "11 <= x <= 12"),
        (stats.poisson(3.0), stats.norm(), "p is discrete and q is continuous"),
        (td.Normal(0.0, 1.0), td.Uniform(-1.0, 1.0), "-inf < x < -1 and 1 < x < inf"),
    ],
)
def test_infinite_kl_states_where(p, q, where):
    estimate = measure(p, q)
    assert estimate.value == inf
    assert estimate.status == "exact"
    assert where in estimate.warnings[0]


MIXTURE = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 1.0], scales=[1.0, 2.0])
LINE = {"normal": NORMAL, "mixture": MIXTURE, "t": T5, "numpyro": numpyro_distributions.Laplace(0.0, 1.0)}
POSITIVE = {"gamma": Gamma(concentration=2.0, rate=1.0), "scipy": stats.lognorm(0.5), "torch": td.Exponential(1.0)}
INTERVAL = {"beta": Beta(concentration1=2.0, concentration0=3.0), "scipy": stats.uniform(), "torch": td.Beta(0.5, 0.5)}
COUNTS = {"poisson": Poisson(rate=2.0), "scipy": stats.nbinom(3, 0.4), "torch": td.Geometric(0.3)}
SUPPORTS = [LINE, POSITIVE, INTERVAL, COUNTS]


def pairs_of_supports():
    for i, first in enumerate(SUPPORTS):
        for j, second in enumerate(SUPPORTS):
            contained = i == j if 3 in (i, j) else i >= j
            for name, p in first.items():
                for other, q in second.items():
                    yield pytest.param(p, q, contained, id=f"{name}-{other}-{i}{j}")


@pytest.mark.parametrize(("p", "q", "contained"), list(pairs_of_supports()))
def test_every_pair_of_supports_has_a_value(p, q, contained):
    estimate = measure(p, q)
    low, high = estimate.interval
    assert 0 <= low <= estimate.value <= high
    if not contained:
        assert estimate.value == inf
        assert estimate.status == "exact"


def test_distributions_on_different_spaces_raise_one_line():
    plane = MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=np.eye(2))
    space = MultivariateNormal(loc=[0.0, 0.0, 0.0], covariance_matrix=np.eye(3))
    for p, q in ((plane, NORMAL), (NORMAL, plane), (plane, MIXTURE), (MIXTURE, plane), (plane, space)):
        with pytest.raises(ShapeError) as found:
            measure(p, q)
        assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("p", "q", "where"),
    [
        (
            td.OneHotCategorical(torch.tensor([0.5, 0.5])),
            td.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            "discrete",
        ),
        (
            td.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            td.OneHotCategorical(torch.tensor([0.5, 0.5])),
            "discrete",
        ),
        (td.Dirichlet(torch.ones(2)), td.MultivariateNormal(torch.zeros(2), torch.eye(2)), "p lie on the simplex"),
        (
            Dirichlet(concentration=[1.0, 2.0]),
            MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=np.eye(2)),
            "p lie on the simplex",
        ),
        (Categorical(probs=[0.5, 0.5]), NORMAL, "p is discrete and q is continuous"),
        (NORMAL, Categorical(probs=[0.5, 0.5]), "p is continuous and q is discrete"),
    ],
)
def test_measures_without_a_common_density_have_infinite_kl(p, q, where):
    estimate = measure(p, q)
    assert (estimate.value, estimate.status) == (inf, "exact")
    assert where in estimate.warnings[0]


def test_categories_are_counts():
    half = math.log(2) / 2
    assert measure(Categorical(probs=[0.5, 0.5]), Bernoulli(probs=0.25)).value == pytest.approx(
        half + math.log(2 / 3) / 2, rel=1e-14
    )
    truth = math.log(0.5) + 1 + 0 * half  # log Poisson(1) of 0 and 1 is -1
    assert measure(Categorical(probs=[0.5, 0.5]), Poisson(rate=1.0)).value == pytest.approx(truth, rel=1e-14)
    assert measure(Poisson(rate=1.0), Categorical(probs=[0.5, 0.5])).value == inf
    assert measure(Categorical(logits=[0.0, -inf, 0.0]), Categorical(logits=[0.0, 0.0, 0.0])).value == pytest.approx(
        math.log(1.5)
    )


# Monte Carlo.


def test_multivariate_distributions_are_estimated_from_samples():
    two = components([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [np.eye(2)] * 2)
    wide = MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=[[2.0, 0.0], [0.0, 1.0]])
    estimate = measure(two, wide)
    truth = 0.009743  # the KL of the first coordinate
    assert (estimate.status, estimate.method) == ("estimated", "Monte Carlo")
    assert abs(estimate.value - truth) < 5 * estimate.std_error < 0.002
    # The published example in which the variational approximation is negative.
    assert "variational approximation -0.219646" in estimate.warnings[0]
    assert "upper bound 0.346574" in estimate.warnings[0]


def test_multivariate_mixtures_of_torch():
    parts = td.MultivariateNormal(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.eye(2).expand(2, 2, 2))
    diagonal = td.Independent(td.Normal(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.ones(2, 2)), 1)
    wide = td.MultivariateNormal(torch.zeros(2), torch.diag(torch.tensor([2.0, 1.0])))
    weights = td.Categorical(torch.tensor([0.5, 0.5]))
    first, second = (measure(td.MixtureSameFamily(weights, part), wide) for part in (parts, diagonal))
    assert first.value == pytest.approx(second.value, rel=1e-9)
    assert abs(first.value - 0.009743) < 5 * first.std_error


def test_random_state_of_torch_is_unchanged():
    before = torch.random.get_rng_state()
    measure(td.StudentT(5.0), td.Normal(0.0, 1.0), method="Monte Carlo", draws=100)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_objects_with_log_prob_and_sample():
    class Die:
        def __init__(self, probs):
            self.probs = np.asarray(probs)

        def sample(self, count):
            return np.random.default_rng(0).choice(self.probs.size, count, p=self.probs)

        def log_prob(self, x):
            return np.log(self.probs)[x]

    estimate = measure(Die([0.5, 0.5]), Die([0.9, 0.1]))
    assert abs(estimate.value - 0.5 * math.log(0.25 / 0.09)) < 5 * estimate.std_error


class LogDensity:
    """A log-density without a sampler, under one of the names that libraries use."""

    def __init__(self, name, loc):
        setattr(self, name, lambda x: stats.norm.logpdf(x, loc))


@pytest.mark.parametrize("name", ["log_prob", "logpdf"])
def test_log_density_alone_can_be_q(name):
    estimate = measure(NORMAL, LogDensity(name, 1.0))
    assert estimate.status == "estimated"
    assert abs(estimate.value - 0.5) < 5 * estimate.std_error
    with pytest.raises(NoClosedFormError, match=r"a log-density of p, but no sampler; add sample\(count\)"):
        measure(LogDensity(name, 0.0), LogDensity(name, 1.0))


def test_density_without_its_normalizer_is_unreliable():
    class Shifted:
        def log_prob(self, x):
            return stats.norm.logpdf(x) + math.log(2)

        def sample(self, count):
            return np.random.default_rng(0).standard_normal(count)

    estimate = measure(stats.norm(), Shifted(), method="Monte Carlo")
    assert (estimate.status, estimate.interval) == ("unreliable", (0.0, inf))
    assert "the mean of q/p at draws of p is 2" in estimate.warnings[0]


def test_draws_of_torch_that_contradict_the_density_are_unreliable():
    one = td.Categorical(torch.ones(1))  # a mixture of one component, because KL of LKJCholesky has a closed form
    p, q = (td.MixtureSameFamily(one, td.LKJCholesky(3, torch.tensor([value]))) for value in (0.5, 2.0))
    estimate = measure(p, q)
    assert estimate.status == "unreliable"
    assert "the draws do not follow it" in estimate.warnings[0]


def test_registered_pair_has_precedence():
    class Mine:
        pass

    @register_kl(Mine, Mine)
    def _(p, q):
        return 0.25

    assert measure(Mine(), Mine()).value == 0.25


def test_methods_agree():
    by = {
        method: measure(NORMAL, Normal(loc=1.0, scale=2.0), method=method) for method in ("closed form", "quadrature")
    }
    draws = measure(NORMAL, Normal(loc=1.0, scale=2.0), method="Monte Carlo")
    assert by["closed form"].value == pytest.approx(by["quadrature"].value, rel=1e-14)
    assert abs(draws.value - by["quadrature"].value) < 5 * draws.std_error
    assert [estimate.status for estimate in (*by.values(), draws)] == ["exact", "bounded", "estimated"]


def test_deterministic_without_sampling():
    assert measure(stats.skewnorm(4.0), stats.norm()) == measure(stats.skewnorm(4.0), stats.norm())


# Invalid arguments.


@pytest.mark.parametrize(
    ("p", "q", "error", "words"),
    [
        (3, NORMAL, TypeError, "expected a distribution, got int"),
        (NORMAL, [0.5, 0.5], TypeError, "expected a distribution, got list"),
        ([0.5, 0.5], [0.5, 0.6], NotNormalizedError, "sum to 1"),
        (
            Normal(loc=[0.0, 1.0], scale=1.0),
            NORMAL,
            ShapeError,
            r"one distribution at a time, got a batch of shape \(2,\)",
        ),
        (td.Normal(torch.zeros(3), 1.0), td.Normal(0.0, 1.0), ShapeError, r"batch of shape \(3,\)"),
        (stats.norm([0, 1]), stats.skewnorm(1.0), ShapeError, r"loc has shape \(2,\)"),
        (stats.skewnorm([1.0, 2.0]), stats.norm(), ShapeError, r"skewnorm's a has shape \(2,\)"),
        (
            stats.skewnorm(1.0, scale=-1.0),
            stats.norm(),
            ParameterError,
            "parameters in the domain",
        ),
        (stats.norm(0, -1), stats.norm(), ParameterError, "scale to be > 0"),
        (stats.multivariate_t([0.0, 0.0]), stats.norm(), ShapeError, "log-densit"),
    ],
)
def test_invalid_arguments_raise(p, q, error, words):
    with pytest.raises(error, match=words):
        measure(p, q)


@pytest.mark.parametrize("options", [{"confidence": 2}, {"confidence": "x"}, {"draws": 1}, {"seed": -1}, {"seed": "x"}])
@pytest.mark.parametrize(
    "function", [measure, measure_cross_entropy, lambda p, _q, **options: measure_entropy(p, **options)]
)
def test_options_are_checked_where_a_closed_form_does_not_use_them(function, options):
    with pytest.raises(SupportError, match="expected"):
        function(Normal(loc=0.0, scale=1.0), Normal(loc=0.0, scale=2.0), **options)


@pytest.mark.parametrize("matrix", [[[1.0, 2.0], [2.0, 1.0]], [[1.0, 0.5], [0.2, 1.0]]])
@pytest.mark.parametrize("name", ["covariance_matrix", "precision_matrix"])
def test_the_matrix_that_was_given_is_named(name, matrix):
    p = MultivariateNormal(loc=[0.0, 0.0], **{name: matrix})
    for other in ("covariance_matrix", "precision_matrix", "scale_tril"):
        q = MultivariateNormal(loc=[0.0, 0.0], **{other: [[1.0, 0.0], [0.0, 1.0]]})
        with pytest.raises(ParameterError, match=f"expected p's {name} to be"):
            measure(p, q)


@pytest.mark.parametrize("error", [0.0, -1.0, math.nan])
def test_invalid_error_raises(error):
    with pytest.raises(SupportError, match="expected error > 0"):
        measure(T5, Cauchy(loc=0.0, scale=1.0), error=error)


# Extreme parameters.


def test_overflow_is_not_exact():
    estimate = measure(Normal(loc=0.0, scale=1e300), Normal(loc=0.0, scale=1e-300))
    assert (estimate.value, estimate.status) == (inf, "overflow")
    assert estimate.interval[0] == np.finfo(np.float64).max
    assert "above the largest number of float64" in estimate.warnings[0]
    assert measure(StudentT(df=2.0, loc=0.0, scale=1.0), NORMAL).status == "exact"


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-3, 1e3, 1e200, 1e300])
def test_kl_is_invariant_under_scaling(size):
    truth = 0.3181471805599453  # log 2 + 1/8 - 1/2
    p = NormalMixture(weights=[0.5, 0.5], locs=[0.0, 0.0], scales=[size, size])
    for each in (p, Normal(loc=0.0, scale=size)):
        estimate = measure(each, Normal(loc=0.0, scale=2 * size))
        assert abs(estimate.value - truth) <= estimate.error + 1e-15
    unit = measure(Logistic(loc=0.0, scale=1.0), NORMAL)
    scaled = measure(Logistic(loc=0.0, scale=size), Normal(loc=0.0, scale=size))
    assert abs(scaled.value - unit.value) <= scaled.error + 1e-13
    assert scaled.status in ("exact", "bounded")


def test_ends_of_float64_raise_one_line():
    with pytest.raises(SupportError, match=r"values span less than 1\.8e308") as found:
        measure(Logistic(loc=-1e308, scale=1e307), Cauchy(loc=1e308, scale=1e308))
    assert "\n" not in str(found.value)


def test_a_closed_form_holds_up_to_the_ends_of_float64():
    estimate = measure(Uniform(low=-1e308, high=1e308), Normal(loc=0.0, scale=1e308))
    assert estimate.value == pytest.approx(math.log(math.pi / 2) / 2 + 1 / 6, rel=1e-14)
    assert estimate.status == "exact"


def test_unavailable_method_raises():
    with pytest.raises(NoClosedFormError, match="no closed form for this pair"):
        measure(stats.skewnorm(1.0), stats.norm(), method="closed form")
    with pytest.raises(NoClosedFormError, match="no quadrature for this pair"):
        measure(Dirichlet(concentration=[1.0, 2.0]), Dirichlet(concentration=[2.0, 2.0]), method="quadrature")


def test_unknown_method_raises():
    with pytest.raises(SupportError, match="'quadrature', 'Monte Carlo' or None, got 'monte carlo'"):
        measure(NORMAL, NORMAL, method="monte carlo")


@pytest.mark.parametrize("library", [list, np.asarray, torch.tensor])
def test_probabilities_are_measured_as_categorical(library):
    estimate = measure(library([0.5, 0.5, 0.0]), library([0.25, 0.5, 0.25]))
    assert estimate.value == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert estimate.status == "exact"


def folded(loc, scale):
    normal = td.Normal(torch.tensor(loc, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    return td.TransformedDistribution(normal, td.AbsTransform())


def test_absolute_value_adds_densities():
    # torch.distributions gives 2, the KL of the bases.
    assert measure(folded(1.0, 1.0), folded(-1.0, 1.0)).value == pytest.approx(0, abs=1e-15)
    estimate = measure(folded(1.0, 1.0), folded(3.0, 2.0))
    scipys = measure(stats.foldnorm(1.0), stats.foldnorm(1.5, scale=2.0))
    assert estimate.value == pytest.approx(0.808050325297774160653427034, rel=1e-12)  # mpmath.quad
    assert abs(estimate.value - scipys.value) <= estimate.error + scipys.error
    # |x| + 1, whose density torch does not implement.
    moved = [td.TransformedDistribution(folded(loc, 1.0), td.AffineTransform(1.0, 1.0)) for loc in (1.0, -1.0)]
    assert measure(*moved).value == pytest.approx(0, abs=1e-15)
    ours = Transformed(base=Uniform(low=-1.0, high=2.0), transform="abs")
    steps = measure(ours, Uniform(low=0.0, high=2.0))
    truth = 2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)
    assert abs(steps.value - truth) <= steps.error + 1e-15


def test_kl_is_invariant_under_a_shared_transform():
    """In float64 tanh(40) is 1, so the transformed density has no tail."""
    loc, scale = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    bases = [torch.distributions.StudentT(5.0 * scale, loc + shift, scale) for shift in (0.0, 1.0)]
    plain = measure(*bases)
    for transform in (torch.distributions.TanhTransform(), torch.distributions.ExpTransform()):
        images = [torch.distributions.TransformedDistribution(base, [transform]) for base in bases]
        assert measure(*images) == plain
    squashed = [
        Transformed(base=StudentT(df=5.0, loc=x, scale=1.0), transform="t", invertible=True) for x in (0.0, 1.0)
    ]
    assert measure(*squashed) == plain
    both = [
        torch.distributions.Independent(
            torch.distributions.TransformedDistribution(
                torch.distributions.StudentT(torch.full((2,), df, dtype=torch.float64)),
                [torch.distributions.TanhTransform()],
            ),
            1,
        )
        for df in (5.0, 7.0)
    ]
    one = measure(*(StudentT(df=df, loc=0.0, scale=1.0) for df in (5.0, 7.0)))
    assert measure(*both).value == pytest.approx(2 * one.value, rel=1e-12)


def test_a_density_that_overflows_near_an_end_is_not_infinite():
    """SciPy's log-density of 1/x is inf below 1e-154."""
    gamma = stats.make_distribution(stats.gamma)
    for a, b in ((3.0, 3.0), (3.0, 2.0), (2.0, 4.0)):
        found = measure(1 / gamma(a=a), 1 / gamma(a=b))
        expected = float(special.gammaln(b) - special.gammaln(a) + (a - b) * special.digamma(a))
        assert found.status == "bounded"
        assert abs(found.value - expected) <= found.error + 1e-15


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_parameters_in_16_bits_are_computed_exactly(library):
    def half(*values):
        if library == "torch":
            return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.bfloat16)
        return jax.numpy.asarray(values if len(values) > 1 else values[0], dtype=jax.numpy.bfloat16)

    assert measure(half(0.5, 0.5), [0.25, 0.75]).value == pytest.approx(0.14384103622589045, rel=1e-15)
    p, q = families.Normal(loc=half(0.0), scale=half(1.0)), families.Laplace(loc=half(1.0), scale=half(1.0))
    truth = measure(families.Normal(loc=0.0, scale=1.0), families.Laplace(loc=1.0, scale=1.0))
    assert measure(p, q).value == truth.value
    assert measure(p, q, method="quadrature").value == pytest.approx(truth.value, rel=1e-13)
    assert measure_entropy(half(0.5, 0.5)).value == pytest.approx(math.log(2), rel=1e-15)
    entropy = measure_entropy(families.MultivariateNormal(loc=half(0.0, 1.0), scale_tril=[[1.0, 0.0], [0.0, 1.0]]))
    assert entropy.value == pytest.approx(1 + math.log(2 * math.pi), rel=1e-15)
    samples = half(*np.linspace(-2, 2, 9).tolist())
    assert float(fit_forward(families.Normal, samples=samples).distribution.scale) == pytest.approx(
        math.sqrt(5 / 3), rel=1e-12
    )
    assert fit_reverse(families.Normal, target=q).converged


def test_an_ordinary_sampling_error_does_not_seem_to_be_a_heavy_tail():
    # For two multivariate normals the upper bound is the KL. One interval in 20 lies above it or below it.
    rng = np.random.default_rng(0)
    p, q = (MultivariateNormal(loc=rng.normal(size=10), covariance_matrix=np.eye(10)) for _ in range(2))
    truth = float(((p.loc - q.loc) ** 2).sum() / 2)
    found = [measure(p, q, method="Monte Carlo", draws=2_000, seed=seed) for seed in range(100)]
    assert {estimate.status for estimate in found} == {"estimated"}
    outside = sum(not estimate.interval[0] <= truth <= estimate.interval[1] for estimate in found)
    assert 0 < outside < 15


def _measure_value(p, q):
    return measure(p, q).value


@pytest.mark.parametrize("transform", ["jit", "grad", "vmap"])
@pytest.mark.parametrize(
    "call",
    [
        lambda m: _measure_value(Normal(loc=m, scale=1.0), Normal(loc=0.0, scale=1.0)),
        lambda m: _measure_value(StudentT(df=5.0, loc=m, scale=1.0), Laplace(loc=0.0, scale=1.0)),
        lambda m: _measure_value(numpyro_distributions.StudentT(5.0, m, 1.0), numpyro_distributions.Laplace()),
        lambda m: _measure_value(jnp.stack([m / 2, 1 - m / 2]), jnp.array([0.5, 0.5])),
        lambda m: fit_forward(Normal, target=StudentT(df=5.0, loc=m, scale=1.0)).kl,
        lambda m: fit_forward(Normal, samples=jnp.stack([m, m + 1, m + 3])).distribution.loc,
    ],
    ids=["closed form", "quadrature", "numpyro", "arrays", "fit", "fit to samples"],
)
def test_a_transformation_of_jax_is_refused_by_name_instead_of_a_gradient_of_zero(transform, call):
    argument = jnp.ones(2) if transform == "vmap" else 1.0
    with pytest.raises(ArrayTypeError, match=r"expected an array outside of jax.jit, grad and vmap"):
        getattr(jax, transform)(call)(argument)


@pytest.mark.parametrize("transform", ["grad", "vmap"])
@pytest.mark.parametrize(
    "call",
    [
        lambda m: _measure_value(Normal(loc=m, scale=1.0), Normal(loc=0.0, scale=1.0)),
        lambda m: _measure_value(td.Normal(m, 1.0), td.Laplace(0.0, 1.0)),
        lambda m: _measure_value(torch.stack([m / 2, 1 - m / 2]), torch.tensor([0.5, 0.5])),
        lambda m: fit_forward(Normal, target=td.StudentT(5.0, m, 1.0)).kl,
    ],
    ids=["closed form", "quadrature", "arrays", "fit"],
)
def test_a_transformation_of_torch_is_refused_by_name(transform, call):
    argument = torch.ones(2 if transform == "vmap" else ())
    with pytest.raises(ArrayTypeError, match=r"expected an array outside of torch.func.grad, vmap and similar"):
        getattr(torch.func, transform)(call)(argument)


@pytest.mark.parametrize("pair", [(stats.gamma, stats.gamma(2.0)), (stats.poisson(2.0), stats.poisson)])
def test_a_family_of_scipy_without_parameters_is_named(pair):
    with pytest.raises(DistributionTypeError, match=r"give it its parameters, scipy\.stats\.\w+\(\.\.\.\)"):
        measure(*pair)


@pytest.mark.parametrize("count", [1_000_000, 1_234_567])
def test_the_values_where_q_is_zero_have_all_digits(count):
    estimate = measure(Poisson(rate=3.0), Binomial(total_count=count, probs=0.5))
    assert estimate.warnings == (f"q is 0 where p is not: {count + 1} <= x <= inf",)
