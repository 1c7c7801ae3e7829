"""Forward, reverse and alpha fits against reference projections, other optimisers, closed forms and grids."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import optimize, stats
from sklearn.datasets import load_diabetes, load_digits

from kullback import families as f
from kullback import fit_alpha, fit_forward, fit_reverse, measure
from kullback.errors import ParameterError, SupportError
from kullback.fit.targets import normalise
from kullback.samples.pareto_k import pareto_k

CASES = json.loads((Path(__file__).parents[1] / "data" / "projections.json").read_text())["cases"]
TWO_MODES = f.NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])


def mixture(case: dict) -> f.NormalMixture:
    columns = {name: [float(part[name]) for part in case["target"]] for name in ("weight", "loc", "scale")}
    return f.NormalMixture(weights=columns["weight"], locs=columns["loc"], scales=columns["scale"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_reference_projections(case):
    target = mixture(case)
    forward = fit_forward(f.Normal, target=target)
    for name in ("loc", "scale"):
        assert getattr(forward.distribution, name) == pytest.approx(float(case["forward"][name]), rel=1e-12)
    assert forward.kl == pytest.approx(float(case["forward"]["kl"]), rel=1e-12)
    reverse = fit_reverse(f.Normal, target=target)
    assert reverse.converged
    for point in case["reverse_stationary_points"]:
        near = [minimum for minimum in reverse.minima if abs(minimum.distribution.loc - point["loc"]) < 1e-3]
        assert len(near) == 1
        assert near[0].distribution.loc == pytest.approx(point["loc"], abs=2e-7)
        assert near[0].distribution.scale == pytest.approx(point["scale"], abs=2e-7)
        assert near[0].kl == pytest.approx(point["kl"], abs=1e-11)
    assert len(reverse.minima) == len(case["reverse_stationary_points"])
    assert reverse.kl == pytest.approx(case["reverse_best"]["kl"], abs=1e-12)


@pytest.mark.parametrize(
    ("loc", "reverse_to"), [(-30.0, 0.0), (50.0, 20.0), (0.0, 0.0), (20.0, 20.0), (5.0, 0.0), (10.0, 10.0)]
)
def test_fits_from_six_starts(loc, reverse_to):
    """Far left, far right, at each mode, off the centre, and at the centre, where the reverse descent stays."""
    start = f.Normal(loc=loc, scale=5**0.5)
    forward = fit_forward(f.Normal, target=TWO_MODES, start=start)
    assert forward.path[0].distribution.loc == loc
    last = forward.path[-1].distribution
    assert (last.loc, last.scale) == pytest.approx((10.0, 10.198039027185570), abs=1e-7)
    reverse = fit_reverse(f.Normal, target=TWO_MODES, start=start)
    last = reverse.path[-1].distribution
    assert last.loc == pytest.approx(reverse_to, abs=1e-4)
    assert last.scale == pytest.approx(8.4451438 if reverse_to == 10 else 2.0000223, abs=1e-6)
    assert start in next(m for m in reverse.minima if abs(m.distribution.loc - reverse_to) < 1e-3).basin
    for path, is_forward in ((forward.path, True), (reverse.path, False)):
        kls = [step.kl for step in path]
        assert all(after <= before + 1e-12 for before, after in pairwise(kls))
        for step in path[:3]:
            pair = (TWO_MODES, step.distribution) if is_forward else (step.distribution, TWO_MODES)
            assert step.kl == pytest.approx(measure(*pair).value, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_reverse_fit_finds_every_minimum_on_a_grid(seed):
    """KL on a dense grid by another quadrature rule; SciPy refines each local minimum of the grid."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 5))
    weights, locs, scales = rng.dirichlet(np.full(count, 2.0)), rng.uniform(-10, 10, count), rng.uniform(0.3, 2, count)
    z = np.linspace(-8.5, 8.5, 3001)
    mass = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()

    def kl(loc: float, log_scale: float) -> float:
        x = loc + math.exp(log_scale) * z
        logs = np.log(weights / scales) - 0.5 * np.log(2 * np.pi) - 0.5 * ((x[:, None] - locs) / scales) ** 2
        return -0.5 * math.log(2 * math.pi) - log_scale - 0.5 - float(np.logaddexp.reduce(logs, axis=1) @ mass)

    means, widths = np.linspace(-13, 13, 61), np.linspace(-2, 3, 26)
    table = np.asarray([[kl(m, w) for w in widths] for m in means])
    expected = []
    for i, j in np.ndindex(table.shape):
        if table[i, j] == table[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].min() and 0 < i < 60 and 0 < j < 25:
            end = optimize.minimize(lambda at: kl(*at), [means[i], widths[j]], method="BFGS", options={"gtol": 1e-8})
            if all(np.abs(end.x - other).max() > 1e-3 for other, _ in expected):
                expected.append((end.x, end.fun))
    minima = fit_reverse(f.Normal, target=f.NormalMixture(weights=weights, locs=locs, scales=scales)).minima
    found = np.asarray([(minimum.distribution.loc, math.log(minimum.distribution.scale)) for minimum in minima])
    for point, value in expected:
        nearest = int(np.abs(found - point).max(axis=1).argmin())
        assert np.abs(found[nearest] - point).max() < 1e-4
        assert minima[nearest].kl == pytest.approx(value, abs=1e-8)


def test_reverse_fit_to_an_unnormalised_log_prob():
    gamma = fit_reverse(f.Gamma, log_prob=lambda x: 2 * np.log(x) - 3 * x + 5, support=(0.0, math.inf))
    assert (gamma.distribution.concentration, gamma.distribution.rate) == pytest.approx((3.0, 3.0), rel=1e-8)
    evidence = 5 + math.lgamma(3) - 3 * math.log(3)
    assert gamma.diagnostics["log_evidence"] == pytest.approx(evidence, rel=1e-10)
    assert gamma.diagnostics["evidence_bound"] == pytest.approx(evidence, rel=1e-10)
    far = fit_reverse(f.Normal, log_prob=lambda x: -((x - 1e4) ** 2) / 18)
    assert (far.distribution.loc, far.distribution.scale) == pytest.approx((1e4, 3.0), rel=1e-9)
    tensors = fit_reverse(f.Normal, log_prob=lambda x: -2 * torch.log1p(x * x))
    exact = optimize.minimize_scalar(
        lambda s: -math.log(s) + 2 * stats.norm(0, s).expect(lambda x: math.log1p(x * x)),
        bounds=(0.3, 2), method="bounded", options={"xatol": 1e-9},
    )  # fmt: skip
    assert tensors.distribution.scale == pytest.approx(exact.x, abs=1e-5)


def test_discrete_and_bounded_families():
    poisson = fit_reverse(f.Poisson, target=f.NegativeBinomial(total_count=3.0, probs=0.4))
    k = np.arange(200)
    logs = stats.nbinom(3, 0.6).logpmf(k)
    best = optimize.minimize_scalar(
        lambda rate: float(stats.poisson(rate).pmf(k) @ (stats.poisson(rate).logpmf(k) - logs)),
        bounds=(0.5, 5), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    assert poisson.distribution.rate == pytest.approx(best.x, abs=1e-6)
    # At both ends of the uniform, the normal's log-density is its mean over the uniform minus 1: loc +- 12^0.5.
    uniform = fit_reverse(f.Uniform, target=f.Normal(loc=1.0, scale=2.0)).distribution
    assert (uniform.low, uniform.high) == pytest.approx((1 - 12**0.5, 1 + 12**0.5), abs=1e-6)
    beta = fit_forward(f.Uniform, target=f.Beta(concentration1=2.0, concentration0=3.0)).distribution
    assert (beta.low, beta.high) == (0.0, 1.0)


LIKELIHOODS = {
    "Normal": (stats.norm(1, 2), lambda d: stats.norm(d.loc, d.scale)),
    "Gamma": (stats.gamma(3, scale=0.5), lambda d: stats.gamma(d.concentration, scale=1 / d.rate)),
    "Beta": (stats.beta(2, 5), lambda d: stats.beta(d.concentration1, d.concentration0)),
    "Weibull": (stats.weibull_min(1.7, scale=2), lambda d: stats.weibull_min(d.concentration, scale=d.scale)),
    "Laplace": (stats.laplace(1, 2), lambda d: stats.laplace(d.loc, d.scale)),
    "StudentT": (stats.t(4, 1, 2), lambda d: stats.t(d.df, d.loc, d.scale)),
    "Gumbel": (stats.gumbel_r(1, 2), lambda d: stats.gumbel_r(d.loc, d.scale)),
    "InverseGaussian": (stats.invgauss(0.7, scale=2), lambda d: stats.invgauss(d.mean / d.shape, scale=d.shape)),
    "VonMises": (stats.vonmises(2.5, loc=1), lambda d: stats.vonmises(d.concentration, loc=d.loc)),
    "ChiSquared": (stats.chi2(5), lambda d: stats.chi2(d.df)),
    "Poisson": (stats.poisson(3.2), lambda d: stats.poisson(d.rate)),
    "Geometric": (stats.geom(0.3, loc=-1), lambda d: stats.geom(d.probs, loc=-1)),
    "NegativeBinomial": (stats.nbinom(3, 0.4), lambda d: stats.nbinom(d.total_count, 1 - d.probs)),
    "Zipf": (stats.zipf(2.5), lambda d: stats.zipf(d.exponent)),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_no_neighbour_has_a_larger_likelihood(name):
    """SciPy's likelihood at the fit, and with each parameter changed by 0.1 percent."""
    law, as_scipy = LIKELIHOODS[name]
    x = law.rvs(400, random_state=3)
    fit = fit_forward(getattr(f, name), samples=x)

    def likelihood(member) -> float:
        frozen = as_scipy(member)
        return float((frozen.logpmf if hasattr(frozen.dist, "pmf") else frozen.logpdf)(x).mean())

    top = likelihood(fit.distribution)
    assert fit.diagnostics["cross_entropy"] == pytest.approx(-top, rel=1e-9)
    assert math.isnan(fit.kl)
    parameters = {key: value for key, value in vars(fit.distribution).items() if value is not None}
    for key, value in parameters.items():
        for step in (0.999, 1.001):
            assert likelihood(type(fit.distribution)(**{**parameters, key: value * step})) <= top + 1e-12


def test_alpha_fits_interpolate_between_the_directions():
    target = f.NormalMixture(weights=[0.7, 0.3], locs=[0.0, 4.0], scales=[1.0, 1.0])
    fits = [fit_alpha(f.Normal, target=target, alpha=a) for a in (0.0, 0.05, 0.5, 0.95, 1.0)]
    for end, other in (
        (fits[0], fit_reverse(f.Normal, target=target)),
        (fits[-1], fit_forward(f.Normal, target=target)),
    ):
        assert end.distribution.loc == pytest.approx(other.distribution.loc, abs=1e-8)
        assert end.distribution.scale == pytest.approx(other.distribution.scale, abs=1e-8)
        assert end.kl == pytest.approx(other.kl, abs=1e-12)
    scales = [one.distribution.scale for one in fits]
    assert scales == sorted(scales)
    x = np.linspace(-30, 30, 60_001)
    p = 0.7 * stats.norm(0, 1).pdf(x) + 0.3 * stats.norm(4, 1).pdf(x)
    best = optimize.minimize(
        lambda at: (1 - (p**0.5 * stats.norm(at[0], math.exp(at[1])).pdf(x) ** 0.5).sum() * 0.001) / 0.25, [1.0, 0.5],
        method="BFGS", options={"gtol": 1e-9},
    )  # fmt: skip
    half = fits[2].distribution
    assert (half.loc, math.log(half.scale)) == pytest.approx(tuple(best.x), abs=1e-5)
    with pytest.raises(SupportError, match="alpha"):
        fit_alpha(f.Normal, target=target, alpha=1.5)


def test_torch_families_give_torch_distributions():
    fit = fit_reverse(td.Normal, target=td.Gumbel(0.0, 1.0))
    assert type(fit.distribution) is td.Normal
    # E_q[log p] = -m - e^(s^2/2 - m), so that the minimum is at m = s^2/2 and s = 1.
    assert (float(fit.distribution.loc), float(fit.distribution.scale)) == pytest.approx((0.5, 1.0), abs=1e-9)
    assert type(fit_forward(td.Gamma, samples=torch.tensor([1.0, 2.0, 5.0])).distribution) is td.Gamma


# ---- multivariate families ----


def test_two_dimensional_normal_fitted_to_a_curved_density():
    def banana(x):
        return -0.5 * (x[:, 0] ** 2 / 4 + (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2)

    fit = fit_reverse(
        f.MultivariateNormal, log_prob=banana, start=f.MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=np.eye(2))
    )
    assert fit.diagnostics["log_evidence"] == pytest.approx(math.log(4 * math.pi), abs=1e-10)
    # E[log q - log p] in closed form for mean (0, m) and variances a and b, with E x^4 = 3 a^2.
    exact = optimize.minimize(
        lambda at: -0.5 * (at[1] + at[2]) - 1 - math.log(2 * math.pi) + 0.5 * (math.exp(at[1]) / 4 + math.exp(at[2])
        + at[0] ** 2 - at[0] * math.exp(at[1]) + 0.75 * math.exp(2 * at[1])) + math.log(4 * math.pi), [0.3, 0.0, 0.0],
        method="BFGS", options={"gtol": 1e-10},
    )  # fmt: skip
    assert fit.kl == pytest.approx(exact.fun, abs=1e-9)
    assert fit.distribution.loc == pytest.approx([0.0, exact.x[0]], abs=1e-5)
    assert np.diag(fit.distribution.covariance_matrix) == pytest.approx(np.exp(exact.x[1:]), rel=1e-5)


@pytest.mark.parametrize("correlation", [-0.8, 0.0])
def test_low_rank_fit_in_two_dimensions_is_exact(correlation):
    covariance = np.asarray([[4.0, 2 * correlation], [2 * correlation, 1.0]])
    target = f.MultivariateNormal(loc=[1.0, -2.0], covariance_matrix=covariance)
    start = f.LowRankMultivariateNormal(loc=[0.0, 0.0], cov_factor=[[0.5], [0.1]], cov_diag=[1.0, 1.0])
    fit = fit_reverse(f.LowRankMultivariateNormal, target=target, start=start)
    one = fit.distribution
    assert type(one) is f.LowRankMultivariateNormal
    assert one.cov_factor.shape == (2, 1)
    assert one.loc == pytest.approx([1.0, -2.0], abs=1e-8)
    np.testing.assert_allclose(one.cov_factor @ one.cov_factor.T + np.diag(one.cov_diag), covariance, atol=1e-8)
    assert fit.kl == pytest.approx(0, abs=1e-10)
    assert fit.path[0].distribution.cov_diag.min() > 0
    with pytest.raises(ParameterError, match="the rank of the factor, from 1 to 2, got None"):
        fit_reverse(f.LowRankMultivariateNormal, target=target)


def test_forward_fit_has_the_moments_of_a_multivariate_mixture():
    locs = torch.tensor([[-4.0, 0.0, 1.0], [3.0, 1.0, 0.0]]).double()
    parts = td.MultivariateNormal(locs, torch.eye(3).double())
    target = td.MixtureSameFamily(td.Categorical(torch.tensor([0.3, 0.7]).double()), parts)
    fit = fit_forward(f.MultivariateNormal, target=target)
    assert fit.distribution.loc == pytest.approx(target.mean.numpy(), rel=1e-6)
    assert np.diag(fit.distribution.covariance_matrix) == pytest.approx(target.variance.numpy(), rel=1e-6)


@pytest.mark.slow
def test_stochastic_gradients_in_five_dimensions():
    root = np.random.default_rng(0).normal(size=(5, 5))
    target = f.MultivariateNormal(loc=np.arange(5.0), covariance_matrix=root @ root.T + np.eye(5))
    fit = fit_reverse(f.MultivariateNormal, target=target, steps=3000)
    assert fit.distribution.loc == pytest.approx(np.arange(5.0), abs=0.01)
    assert abs(fit.kl) < 1e-4  # the variance of the gradient vanishes at the target
    assert fit.diagnostics["pareto_k"] < 0.3
    low_rank = fit_forward(f.LowRankMultivariateNormal, target=target, components=2)
    independent_kl = measure(target, f.MultivariateNormal(
        loc=np.arange(5.0), covariance_matrix=np.diag(np.diag(root @ root.T + np.eye(5))))).value  # fmt: skip
    assert 0 < low_rank.kl < 0.1 * independent_kl
    reverse = fit_reverse(f.LowRankMultivariateNormal, target=target, components=2, steps=1500)
    assert 0 < reverse.kl < 0.1 * independent_kl


@pytest.mark.slow
def test_zuko_flows_in_both_directions():
    import zuko

    def banana(x):
        return -0.5 * (x[:, 0] ** 2 / 4 + (x[:, 1] - 0.5 * x[:, 0] ** 2) ** 2)

    torch.manual_seed(0)
    flow = zuko.flows.NSF(2, transforms=2, hidden_features=[32])
    fit = fit_reverse(flow, log_prob=banana, steps=250, draws=128, learning_rate=1e-2)
    diagnostics, evidence = fit.diagnostics, math.log(4 * math.pi)
    assert evidence - 0.25 < diagnostics["evidence_bound"] < evidence + 4 * diagnostics["std_error"]
    assert fit.distribution is flow
    law = td.MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.6], [0.6, 2.0]]))
    x = law.sample((2000,))
    torch.manual_seed(0)
    forward = fit_forward(
        zuko.flows.MAF(2, transforms=1, hidden_features=[16]), samples=x, steps=250, learning_rate=2e-2
    )
    assert forward.diagnostics["cross_entropy"] == pytest.approx(float(-law.log_prob(x).mean()), abs=0.03)


def test_posterior_of_a_pyro_model():
    import pyro
    import pyro.distributions as pd
    from pyro import poutine

    data = torch.tensor([1.0, 2.0, 4.0]).double()

    def model():
        mean = pyro.sample("mean", pd.Normal(torch.zeros(()).double(), 10.0))
        pyro.sample("x", pd.Normal(mean[..., None], 1.5).expand([*mean.shape, 3]).to_event(1), obs=data)

    def log_joint(z):
        nodes = poutine.trace(poutine.condition(model, data={"mean": z})).get_trace().nodes
        return nodes["mean"]["fn"].log_prob(z) + nodes["x"]["fn"].log_prob(data)

    fit = fit_reverse(pd.Normal, log_prob=log_joint)
    precision = 1 / 100 + 3 / 1.5**2
    assert float(fit.distribution.scale) == pytest.approx(precision**-0.5, rel=1e-6)
    assert float(fit.distribution.loc) == pytest.approx(7 / 1.5**2 / precision, rel=1e-6)
    covariance = 1.5**2 * np.eye(3) + 100
    assert fit.diagnostics["evidence_bound"] == pytest.approx(
        stats.multivariate_normal(np.zeros(3), covariance).logpdf(data.numpy()), abs=1e-8
    )


# ---- supervised learning equals the forward fit ----


def minimise_loss(loss, *shape: int) -> np.ndarray:
    """The parameters that minimise a loss, by full-batch L-BFGS."""
    parameters = torch.zeros(*shape, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [parameters], lr=1, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        value = loss(parameters)
        value.backward()
        return value

    optimiser.step(closure)
    return parameters.detach().numpy()


def test_common_losses_train_the_forward_fit():
    classes = load_digits().target
    logits = minimise_loss(
        lambda z: torch.nn.functional.cross_entropy(z.expand(len(classes), 10), torch.from_numpy(classes)), 10
    )
    probs = fit_forward(f.Categorical, samples=classes).distribution.probs
    assert np.exp(logits) / np.exp(logits).sum() == pytest.approx(probs, abs=1e-8)
    y = load_diabetes().target
    mean = minimise_loss(lambda m: ((torch.from_numpy(y) - m) ** 2).mean(), 1)
    assert fit_forward(f.Normal, samples=y).distribution.loc == pytest.approx(mean[0], rel=1e-10)
    laplace = fit_forward(f.Laplace, samples=y).distribution
    grid = np.unique(y)
    assert np.abs(y - laplace.loc).mean() == pytest.approx(min(np.abs(y - m).mean() for m in grid), rel=1e-12)
    assert laplace.scale == pytest.approx(np.abs(y - np.median(y)).mean(), rel=1e-12)


# ---- diagnostics and errors ----


def test_pareto_k_of_known_tails():
    rng = np.random.default_rng(0)
    for k in (0.2, 0.5, 0.9):
        weights = np.log1p(stats.genpareto(k).rvs(20_000, random_state=rng))
        assert pareto_k(weights) == pytest.approx(k, abs=0.15)
    assert pareto_k(np.zeros(100)) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_reverse(f.Normal, samples=[1.0, 2.0]), "needs log p at samples of q"),
        (lambda: fit_forward(f.Normal, log_prob=lambda x: -x * x), "an unnormalised log-density does not give"),
        (lambda: fit_forward(f.Normal), "neither"),
        (lambda: fit_reverse(f.Normal), "neither"),
        (lambda: fit_forward(f.Normal, samples=[1.0], target=TWO_MODES), "both"),
        (lambda: fit_forward(f.Normal, samples=[1.0, math.nan]), r"samples\[1\]"),
        (lambda: fit_forward(f.Normal, samples=[2.0, 2.0]), "differ"),
        (lambda: fit_forward(f.Gamma, samples=[1.0, -2.0]), r"samples\[1\] is -2.0"),
        (lambda: fit_forward(f.Poisson, samples=[1, 2.5]), r"samples\[1\] is 2.5"),
        (lambda: fit_forward(f.Normal, target=f.Cauchy(loc=0.0, scale=1.0)), "finite"),
        (lambda: fit_reverse(f.Cauchy, target=f.Normal(loc=0.0, scale=1.0)), "tails too heavy"),
        (
            lambda: fit_reverse(f.Normal, target=f.Gamma(concentration=2.0, rate=1.0)),
            "mass outside the target's support",
        ),
        (lambda: fit_reverse(f.Normal, log_prob=lambda x: x), "finite integral"),
        (lambda: fit_reverse(f.Normal, log_prob=lambda x: x * np.nan), "nan"),
    ],
)
def test_errors_of_impossible_fits(call, message):
    with pytest.raises(SupportError, match=message):
        call()


def test_errors_name_the_missing_argument():
    with pytest.raises(ParameterError, match="total_count"):
        fit_forward(f.Binomial, samples=[1, 2, 3])
    assert fit_forward(f.Binomial, samples=[1, 2, 3], fixed={"total_count": 10}).distribution.probs == pytest.approx(
        0.2
    )
    with pytest.raises(TypeError, match="family"):
        fit_forward(3, samples=[1.0])
    with pytest.raises(TypeError, match="unexpected"):
        fit_forward(f.Normal, samples=[1.0, 2.0], sample=3)


def test_rounding_creates_no_modes_of_a_log_density():
    # Near its maximum a log-density repeats the same float, and rounding errors create local maxima there.
    target = f.NormalMixture(weights=[0.7, 0.3], locs=[0.0, 6.0], scales=[1.0, 1.0])
    density = stats.Mixture([stats.Normal(mu=0, sigma=1), stats.Normal(mu=6, sigma=1)], weights=[0.7, 0.3])
    found = normalise(density.logpdf, (-math.inf, math.inf)).density
    assert [round(location, 3) for location, _ in found.anchors] == [0.0, 6.0]
    expected = [minimum.distribution.loc for minimum in fit_reverse(f.Normal, target=target).minima]
    fit = fit_reverse(f.Normal, log_prob=lambda x: 3 + density.logpdf(x))
    assert [minimum.distribution.loc for minimum in fit.minima] == pytest.approx(expected, abs=1e-6)
    assert len(expected) == 2


@pytest.mark.parametrize(
    ("family", "samples", "match"),
    [
        (
            f.InverseGaussian,
            [1.0],
            "expected two or more samples that differ, got one sample: .* pass samples that differ",
        ),
        (f.Pareto, [-1.0, 2.0], "expected samples above 0 for Pareto, but the least is -1.0"),
        (f.Zipf, [0.5, 1.0, 2.0], "inside Zipf's support"),
        (f.Zipfian, [1.0, 2.0, 4.0], "total_count in fixed="),
    ],
)
def test_errors_of_samples_outside_the_family(family, samples, match):
    with pytest.raises((SupportError, ParameterError), match=match):
        fit_forward(family, samples=samples)


def test_reverse_fit_of_a_bernoulli_to_a_poisson():
    """The minimum is the Poisson restricted to {0, 1}: q(1)/q(0) = p(1)/p(0)."""
    fit = fit_reverse(f.Bernoulli, target=f.Poisson(rate=3.0))
    assert fit.distribution.probs == pytest.approx(0.75, abs=1e-9)
    assert fit.kl == pytest.approx(3 - math.log(4), abs=1e-12)


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_independent_normal_of_a_normal_target_is_exact_in_more_than_two_dimensions(size, seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size))
    covariance, loc = root @ root.T + 0.1 * np.eye(size), rng.normal(size=size)
    fit = fit_reverse(f.Independent, target=f.MultivariateNormal(loc=loc, covariance_matrix=covariance))
    precision = np.linalg.inv(covariance)
    # KL = (sum_i L_ii s_i^2 - sum_i log s_i^2 + log det S - d) / 2 has its minimum at s_i^2 = 1 / L_ii.
    truth = (np.log(np.diag(precision)).sum() + np.linalg.slogdet(covariance)[1]) / 2
    assert fit.kl == pytest.approx(truth, rel=1e-9)
    assert fit.estimate.status == "exact"
    np.testing.assert_allclose(fit.distribution.base.scale, np.diag(precision) ** -0.5, rtol=1e-9)
    np.testing.assert_allclose(fit.distribution.base.loc, loc)
    trained = fit_reverse(f.Independent, target=f.MultivariateNormal(loc=loc, covariance_matrix=covariance), steps=200)
    assert trained.estimate.status == "exact"  # the KL of this fit, which is above the minimum
    assert trained.kl > fit.kl
