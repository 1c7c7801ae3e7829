"""Transformed distributions, mixtures of different supports, point masses and masks, in every library."""

import math
from typing import ClassVar

import jax.numpy as jnp
import mpmath
import numpy as np
import pyro.distributions as pyro
import pytest
import torch
import zuko
from numpyro import distributions as nd
from numpyro.distributions import transforms as nt
from scipy import stats
from torch import distributions as td

from kullback import families as f
from kullback.densities.composites import affine_image, mixture_density
from kullback.densities.from_families import as_density
from kullback.densities.quadrature import kl_quadrature
from kullback.densities.shared_transforms import same_transform, without_shared_transforms
from kullback.errors import NoClosedFormError
from kullback.measure import measure

inf = math.inf
T5_NORMAL = 0.12476919412361027
QUARTERS = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)  # of weights 1/2, 1/2 and 1/4, 3/4


def assert_bounded(estimate, truth):
    assert estimate.status in ("exact", "bounded"), estimate
    assert abs(estimate.value - truth) <= estimate.error + 1e-14 * (1 + truth)
    assert 0 <= estimate.interval[0] <= estimate.value <= estimate.interval[1]


# Affine images.


def torch_image(base, *parts):
    return td.TransformedDistribution(base, list(parts))


def numpyro_image(base, *parts):
    return nd.TransformedDistribution(base, list(parts))


IMAGES = {
    "torch": (lambda loc, scale: torch_image(td.Exponential(1.0), td.AffineTransform(loc, scale))),
    "numpyro": (lambda loc, scale: numpyro_image(nd.Exponential(1.0), nt.AffineTransform(loc, scale))),
    "torch, twice": (
        lambda loc, scale: torch_image(
            td.Exponential(1.0), td.AffineTransform(0.0, scale), td.AffineTransform(loc, 1.0)
        )
    ),
    "scipy": lambda loc, scale: stats.make_distribution(stats.expon)() * scale + loc,
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_affine_images_of_exponentials(image):
    assert_bounded(measure(image(1.0, 1.0), image(1.0, 2.0)), math.log(2) - 0.5)
    assert_bounded(measure(image(1.0, 2.0), image(1.0, 1.0)), 1 - math.log(2))
    assert_bounded(measure(image(0.0, -1.0), image(0.0, -2.0)), math.log(2) - 0.5)
    shifted = measure(image(3.0, 1.0), image(1.0, 2.0))
    assert_bounded(shifted, math.log(2) - 0.5 + 1.0)
    left = measure(image(1.0, 1.0), image(3.0, 1.0))
    assert (left.value, left.status) == (inf, "exact")
    assert "1 < x < 3" in left.warnings[0]


def test_affine_images_keep_the_accuracy_of_the_base():
    for base, loc, scale in (
        (f.Beta(concentration1=0.05, concentration0=0.05), 0.3, 1e-7),
        (f.Gamma(concentration=0.1, rate=3.0), -7.1, 3.3),
    ):
        other = type(base)(**{name: 1.5 * value for name, value in vars(base).items()})
        plain = kl_quadrature(as_density(base), as_density(other))
        images = [affine_image(as_density(each), loc, scale) for each in (base, other)]
        moved = kl_quadrature(*images)
        assert moved.status == "bounded"
        assert moved.value == pytest.approx(plain.value, rel=1e-12)


def test_affine_images_of_counts():
    def images(*affine):
        return [
            torch_image(td.Poisson(rate), td.AffineTransform(*each))
            for rate, each in zip((2.0, 3.0), affine, strict=True)
        ]

    truth = 2 * math.log(2 / 3) + 1
    assert measure(*images((1.0, 2.0), (1.0, 2.0))).value == pytest.approx(truth, rel=1e-6)
    assert_bounded(measure(*images((1.0, 1.0), (0.0, 1.0))), _poisson_shifted())
    with pytest.raises(NoClosedFormError, match="map of counts to whole numbers"):
        measure(*images((1.0, 2.0), (0.0, 2.0)))


def _poisson_shifted():
    """KL of 1 + Poisson(2) from Poisson(3)."""
    k = np.arange(80)
    return float(np.sum(stats.poisson(2).pmf(k) * (stats.poisson(2).logpmf(k) - stats.poisson(3).logpmf(k + 1))))


# Shared maps.

SHARED = {
    "exp": [td.ExpTransform()],
    "sigmoid of affine": [td.AffineTransform(1.0, 2.0), td.SigmoidTransform()],
    "power of exp": [td.ExpTransform(), td.PowerTransform(torch.tensor(3.0))],
    "softplus": [td.SoftplusTransform()],
    "composition": [td.ComposeTransform([td.TanhTransform(), td.AffineTransform(0.0, 5.0)])],
    "equal objects": None,
}


@pytest.mark.parametrize("parts", SHARED.values(), ids=SHARED)
def test_shared_maps_of_torch(parts):
    def image(base):
        made = parts or [td.AffineTransform(torch.tensor(1.0), torch.tensor(2.0)), td.SigmoidTransform()]
        return torch_image(base, *made)

    assert_bounded(measure(image(td.StudentT(5.0)), image(td.Normal(0.0, 1.0))), T5_NORMAL)
    # Only the outer map is shared; 2 x + 1 of q is a normal with scale 4.
    p, q = (
        torch_image(td.StudentT(5.0), td.AffineTransform(1.0, 2.0), *(parts or [])),
        torch_image(td.Normal(1.0, 2.0), *(parts or [])),
    )
    assert_bounded(measure(p, q), T5_NORMAL)


@pytest.mark.parametrize(
    ("t_image", "n_image", "size"),
    [
        (td.StickBreakingTransform, nt.StickBreakingTransform, 2),
        (td.CorrCholeskyTransform, nt.CorrCholeskyTransform, 3),
        (None, nt.OrderedTransform, 2),
    ],
)
def test_shared_maps_of_vectors(t_image, n_image, size):
    pairs = [(nd.StudentT(5.0 * jnp.ones(size)), nd.Normal(jnp.zeros(size), 1.0), n_image, numpyro_image)]
    if t_image:
        pairs.append((td.StudentT(5.0 * torch.ones(size)), td.Normal(torch.zeros(size), 1.0), t_image, torch_image))
    for p, q, image, transformed in pairs:
        assert_bounded(measure(transformed(p, image()), transformed(q, image())), size * T5_NORMAL)


def test_independent_components_under_a_shared_map():
    p, q = (
        td.Independent(torch_image(base, td.ExpTransform(), td.AffineTransform(0.0, 2.0)), 1)
        for base in (td.StudentT(5.0 * torch.ones(2)), td.Normal(torch.zeros(2), 1.0))
    )
    assert_bounded(measure(p, q), 2 * T5_NORMAL)


def test_maps_that_are_not_injective_are_kept():
    p, q = (torch_image(td.Normal(loc, 1.0), td.PowerTransform(torch.tensor(2.0))) for loc in (1.0, -1.0))
    assert without_shared_transforms(p, q) is None
    squares = [
        torch_image(torch_image(td.Normal(loc, 1.0), td.ExpTransform()), td.PowerTransform(torch.tensor(2.0)))
        for loc in (1.0, -1.0)
    ]
    assert_bounded(measure(*squares), 2.0)


def test_equality_of_maps():
    assert same_transform(td.CorrCholeskyTransform(), td.CorrCholeskyTransform())
    assert same_transform(td.ExpTransform().inv, td.ExpTransform().inv)
    assert not same_transform(td.ExpTransform().inv, td.TanhTransform().inv)
    assert not same_transform(td.AffineTransform(0.0, 1.0), td.AffineTransform(0.0, 2.0))
    assert not same_transform(td.AffineTransform(torch.zeros(2), 1.0), td.AffineTransform(torch.zeros(3), 1.0))
    matrices = [td.LowerCholeskyTransform(), td.LowerCholeskyTransform()]
    assert same_transform(*matrices)
    assert not same_transform(
        nt.LowerCholeskyAffine(jnp.zeros(2), jnp.eye(2)), nt.LowerCholeskyAffine(jnp.ones(2), jnp.eye(2))
    )


# Mixtures.


def torch_uniforms(*weights):
    return td.MixtureSameFamily(
        td.Categorical(torch.tensor(weights, dtype=torch.float64)),
        td.Uniform(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])),
    )


def numpyro_uniforms(*weights):
    return nd.MixtureGeneral(nd.Categorical(jnp.asarray(weights)), [nd.Uniform(0.0, 1.0), nd.Uniform(2.0, 3.0)])


def scipy_uniforms(*weights):
    return stats.Mixture([stats.Uniform(a=0.0, b=1.0), stats.Uniform(a=2.0, b=3.0)], weights=weights)


def histogram(*weights):
    return stats.rv_histogram(([weights[0], 0.0, weights[1]], [0.0, 1.0, 2.0, 3.0]))


MIXTURES = {"torch": torch_uniforms, "numpyro": numpyro_uniforms, "scipy": scipy_uniforms, "histogram": histogram}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_mixtures_of_uniforms(mixture):
    p, q, whole = mixture(0.5, 0.5), mixture(0.25, 0.75), f.Uniform(low=0.0, high=3.0)
    assert_bounded(measure(p, q), QUARTERS)
    assert_bounded(measure(p, whole), math.log(1.5))
    gap = measure(whole, q)
    assert (gap.value, gap.status) == (inf, "exact")
    assert "q is 0 where p is not: 1 < x < 2" in gap.warnings[0]
    low = measure(f.Uniform(low=0.25, high=0.75), q)
    assert_bounded(low, math.log(2) + math.log(4))
    assert measure(f.Uniform(low=1.25, high=1.75), q).value == inf


def test_mixture_of_shifted_exponentials():
    mixture = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.5, 0.5])),
        torch_image(td.Exponential(torch.ones(2)), td.AffineTransform(torch.tensor([0.0, 5.0]), torch.ones(2))),
    )
    with mpmath.workdps(25):

        def log_mixture(x):
            return mpmath.log((mpmath.exp(-x) + (mpmath.exp(5 - x) if x > 5 else 0)) / 2)

        def term(x):
            return mpmath.exp(-x / 2) / 2 * (mpmath.log(mpmath.mpf(1) / 2) - x / 2 - log_mixture(x))

        truth = float(mpmath.quad(term, [0, 2, 5]) + mpmath.quad(term, [5, 10, 20, 60, inf]))
    assert_bounded(measure(td.Exponential(0.5), mixture), truth)


def test_mixtures_of_vectors_with_different_supports():
    mixture = td.MixtureSameFamily(
        td.Categorical(torch.tensor([0.5, 0.5])),
        td.Independent(td.Uniform(torch.tensor([[0.0, 0.0], [2.0, 2.0]]), torch.tensor([[1.0, 1.0], [3.0, 3.0]])), 1),
    )
    whole = td.Independent(td.Uniform(torch.zeros(2), 3 * torch.ones(2)), 1)
    assert measure(mixture, whole).value == pytest.approx(math.log(4.5), rel=1e-6)
    assert measure(whole, mixture).value == inf


DISCRETE = {
    "bernoulli": lambda: (td.Bernoulli(torch.tensor([0.2, 0.4])), td.Bernoulli(0.5)),
    "categorical": lambda: (td.Categorical(torch.tensor([[0.8, 0.2], [0.6, 0.4]])), td.Categorical(torch.ones(2) / 2)),
    "one-hot": lambda: (
        td.OneHotCategorical(torch.tensor([[0.8, 0.2], [0.6, 0.4]])),
        td.OneHotCategorical(torch.ones(2) / 2),
    ),
}


@pytest.mark.parametrize("make", DISCRETE.values(), ids=DISCRETE)
def test_mixtures_of_discrete_components(make):
    components, plain = make()
    mixture = td.MixtureSameFamily(td.Categorical(torch.tensor([0.5, 0.5])), components)
    truth = math.log(2) + 0.3 * math.log(0.3) + 0.7 * math.log(0.7)
    estimate = measure(mixture, plain)
    assert abs(estimate.value - truth) < 1e-6 + (5 * estimate.std_error if estimate.status == "estimated" else 0)


def test_mixture_of_counts_and_densities_raises():
    with pytest.raises(NoClosedFormError, match="all discrete or all continuous"):
        mixture_density([0.5, 0.5], [as_density(f.Poisson(rate=1.0)), as_density(f.Normal(loc=0.0, scale=1.0))])


# Point masses and masks.


def numpyro_delta(x):
    return nd.Delta(x)


def pyro_delta(x):
    return pyro.Delta(torch.tensor(x))


@pytest.mark.parametrize("delta", [numpyro_delta, pyro_delta])
def test_point_masses(delta):
    assert measure(delta(2.0), delta(2.0)).value == 0
    assert measure(delta(2.0), delta(1.0)).value == inf
    assert measure(delta(2.0), f.Poisson(rate=1.0)).value == pytest.approx(1 + math.log(2), rel=1e-14)
    assert measure(delta(0.5), f.Poisson(rate=1.0)).value == inf
    assert measure(delta(2.0), stats.norm()).value == inf
    assert measure(stats.norm(), delta(2.0)).value == inf
    assert measure(td.Bernoulli(1.0), delta(1.0)).value == 0
    assert measure(td.Bernoulli(0.5), delta(1.0)).value == inf
    for estimate in (measure(delta(2.0), stats.norm()), measure(delta(2.0), f.Poisson(rate=1.0))):
        assert estimate.status == "exact"


def test_point_mass_with_a_density_raises():
    with pytest.raises(NoClosedFormError, match=r"log_density 0, got 1\.0"):
        measure(nd.Delta(0.0, log_density=1.0), f.Poisson(rate=1.0))


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (nd.Normal().mask(False), nd.Normal(1.0).mask(False)),
        (nd.Normal(), nd.Normal(1.0).mask(False)),
        (nd.Normal(jnp.zeros(2)).mask(jnp.asarray([True, False])).to_event(1), nd.Normal(jnp.ones(2)).to_event(1)),
        (pyro.Normal(0.0, 1.0).mask(False), pyro.Normal(1.0, 1.0)),
        (
            pyro.Normal(torch.zeros(2), 1.0).mask(torch.tensor([True, False])).to_event(1),
            pyro.Normal(torch.zeros(2), 1.0).to_event(1),
        ),
    ],
)
def test_masked_distributions_raise(p, q):
    with pytest.raises(NoClosedFormError, match="whose log_prob is 0 where the mask is false") as found:
        measure(p, q)
    assert "\n" not in str(found.value)


def test_expanded_distributions():
    p, q = (nd.Normal(loc, 1.0).expand((2,)).to_event(1) for loc in (0.0, 1.0))
    assert measure(p, q).value == 1.0
    p, q = (
        numpyro_image(base, nt.ExpTransform()).expand((2,)).to_event(1)
        for base in (nd.StudentT(5.0), nd.Normal(0.0, 1.0))
    )
    assert_bounded(measure(p, q), 2 * T5_NORMAL)


# Distributions in float32.


class Flow(td.Distribution):
    """A normal distribution whose log_prob is computed by a module in float32."""

    arg_constraints: ClassVar = {}
    support = td.constraints.real

    def __init__(self, loc, hidden=False):
        module = torch.nn.Linear(1, 1)
        with torch.no_grad():
            module.weight.fill_(1.0)
            module.bias.fill_(-loc)
        self.loc = torch.tensor(loc)
        if hidden:
            self.map = lambda x: module(x)
        else:
            self.map = module
        super().__init__(validate_args=False)

    def sample(self, sample_shape=()):
        return torch.randn(torch.Size(sample_shape)) + self.loc

    def log_prob(self, value):
        z = self.map(value[..., None])[..., 0]
        return -z * z / 2 - 0.5 * math.log(2 * math.pi)


def test_modules_are_evaluated_in_float64():
    for p, q in ((Flow(0.0), Flow(1.0)), (Flow(0.0), stats.norm(1.0)), (td.Normal(0.0, 1.0), Flow(1.0))):
        assert_bounded(measure(p, q), 0.5)


def test_densities_that_require_float32_have_its_error():
    for p, q in (
        (Flow(0.0, True), Flow(1.0, True)),
        (Flow(0.0, True), stats.norm(1.0)),
        (stats.norm(), Flow(1.0, True)),
    ):
        estimate = measure(p, q)
        assert abs(estimate.value - 0.5) <= estimate.error < 1e-4
        assert estimate.status == "unreliable"
        assert measure(p, q, error=1e-4).status == "bounded"


def test_flows_of_zuko():
    torch.manual_seed(0)
    p, q = (zuko.flows.MAF(features=2, transforms=1, hidden_features=(8,))() for _ in range(2))
    normal = td.MultivariateNormal(torch.zeros(2), torch.eye(2))
    for first, second in ((p, q), (p, normal), (normal, q)):
        estimate = measure(first, second)
        with torch.no_grad():
            x = first.sample((50_000,))
            ratio = first.log_prob(x) - second.log_prob(x)
        error = float(ratio.std()) / math.sqrt(50_000)
        assert abs(estimate.value - float(ratio.mean())) < 6 * math.hypot(error, estimate.std_error)


# Kernel density estimates.


def test_kernel_density_estimates_are_mixtures_of_normals():
    data = np.random.default_rng(0).normal(size=200)
    kde, normal = stats.gaussian_kde(data, weights=np.linspace(1, 2, 200)), stats.norm()
    x = np.linspace(-8, 8, 20001)
    step, p, q = x[1] - x[0], kde.logpdf(x), normal.logpdf(x)
    forward, reverse = float(np.sum(np.exp(p) * (p - q)) * step), float(np.sum(np.exp(q) * (q - p)) * step)
    for estimate, truth in ((measure(kde, normal), forward), (measure(normal, kde), reverse)):
        assert estimate.status == "bounded"
        assert estimate.value == pytest.approx(truth, rel=1e-8)
    assert measure(kde, kde).value < 1e-28
    plane = stats.gaussian_kde(np.random.default_rng(0).normal(size=(2, 50)))
    wide = f.MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=np.eye(2))
    for first, second in ((plane, wide), (wide, plane), (plane, plane)):
        assert measure(first, second, draws=2000).method == "Monte Carlo"
