"""Fits of normals of vectors and of their mixtures, against closed forms, the line, enumeration and scikit-learn."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import optimize, stats
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

from kullback import families as f
from kullback import fit_forward, fit_reverse, measure
from kullback.errors import ParameterError, ShapeError, SupportError
from kullback.fit.gaussian.mixtures import MixtureChart

FAR = json.loads((Path(__file__).parents[2] / "data" / "projections.json").read_text())["cases"][0]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def mixture(weights, locs, covariances):
    return td.MixtureSameFamily(
        td.Categorical(tensor(weights)), td.MultivariateNormal(tensor(locs), tensor(covariances))
    )


def beside(weights, locs, scales, loc, scale):
    """A mixture on the line, times a normal: what is nearest to it by reverse KL is a product too."""
    k = len(locs)
    both = td.Normal(tensor([locs, [loc] * k]).T, tensor([scales, [scale] * k]).T)
    return td.MixtureSameFamily(td.Categorical(tensor(weights)), td.Independent(both, 1))


THREE = mixture(
    [0.5, 0.3, 0.2],
    [[0.0, 0.0], [4.0, 1.0], [1.0, 5.0]],
    [[[1.0, 0.5], [0.5, 2.0]], [[0.5, -0.2], [-0.2, 0.5]], [[1.0, 0.0], [0.0, 1.0]]],
)


def test_independent_normals_under_a_correlated_one():
    """Mean field: the scales are those of the precision's diagonal, KL the correlation's share of the entropy."""
    covariance = np.asarray([[4.0, 1.5], [1.5, 1.0]])
    target = f.MultivariateNormal(loc=[1.0, -2.0], covariance_matrix=covariance)
    fit = fit_reverse(f.Independent, target=target)
    precision = np.diag(np.linalg.inv(covariance))
    assert type(fit.distribution) is f.Independent
    assert fit.distribution.base.loc == pytest.approx([1.0, -2.0], abs=1e-9)
    assert fit.distribution.base.scale == pytest.approx(1 / np.sqrt(precision), rel=1e-9)
    exact = 0.5 * math.log(np.linalg.det(covariance) * precision.prod())
    assert fit.kl == pytest.approx(exact, abs=1e-12)
    assert abs(fit.kl - exact) <= fit.estimate.error < 1e-11
    covers = fit_forward(f.Independent, target=target)
    assert covers.distribution.base.scale == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-12)
    assert covers.kl == pytest.approx(0.5 * math.log(4.0 * 1.0 / np.linalg.det(covariance)), rel=1e-12)


@pytest.mark.parametrize("family", [f.Independent, f.MultivariateNormal])
def test_every_minimum_of_the_line_is_one_in_the_plane(family):
    weights, locs, scales = ([float(part[name]) for part in FAR["target"]] for name in ("weight", "loc", "scale"))
    fit = fit_reverse(family, target=beside(weights, locs, scales, 3.0, 0.5))
    assert len(fit.minima) == len(FAR["reverse_stationary_points"]) == 3
    line = fit_reverse(f.Normal, target=f.NormalMixture(weights=weights, locs=locs, scales=scales))
    for known in FAR["reverse_stationary_points"]:
        [found] = [one for one in fit.minima if abs(loc(one.distribution)[0] - known["loc"]) < 1]
        assert found.kl == pytest.approx(known["kl"], abs=1e-9)
        assert loc(found.distribution) == pytest.approx([known["loc"], 3.0], abs=1e-6)
        assert scale(found.distribution) == pytest.approx([known["scale"], 0.5], abs=1e-6)
        [exact] = [one.distribution for one in line.minima if abs(one.distribution.loc - known["loc"]) < 1]
        assert loc(found.distribution) == pytest.approx([exact.loc, 3.0], abs=1e-8)
        assert scale(found.distribution) == pytest.approx([exact.scale, 0.5], abs=1e-8)


def loc(member):
    return np.asarray(member.base.loc if isinstance(member, f.Independent) else member.loc)


def scale(member):
    if isinstance(member, f.Independent):
        return np.asarray(member.base.scale)
    return np.sqrt(np.diag(member.covariance_matrix))


def test_a_mixture_in_the_plane_is_that_of_the_line_where_the_target_is_a_product():
    weights, locs, scales = [0.5, 0.3, 0.2], [-4.0, 1.0, 5.0], [1.0, 0.7, 1.2]
    line = fit_reverse(f.NormalMixture, target=f.NormalMixture(weights=weights, locs=locs, scales=scales), components=2)
    parts = td.Independent(td.Normal(tensor([[-4.0, 3.0], [2.0, 3.0]]), tensor([[1.0, 0.5], [2.0, 0.5]])), 1)
    start = td.MixtureSameFamily(td.Categorical(tensor([0.5, 0.5])), parts)
    plane = fit_reverse(td.MixtureSameFamily, target=beside(weights, locs, scales, 3.0, 0.5), start=start)
    assert plane.kl == pytest.approx(line.kl, abs=1e-10)
    best = plane.distribution
    assert type(best) is td.MixtureSameFamily
    assert type(best.component_distribution) is td.Independent
    assert best.mixture_distribution.probs.numpy() == pytest.approx(np.asarray(line.distribution.weights), abs=1e-8)
    assert best.component_distribution.mean[:, 0].numpy() == pytest.approx(np.asarray(line.distribution.locs), abs=1e-7)
    assert best.component_distribution.mean[:, 1].numpy() == pytest.approx([3.0, 3.0], abs=1e-8)


def test_mixtures_of_torch_on_the_line_are_those_of_records():
    target = f.NormalMixture(weights=[0.5, 0.3, 0.2], locs=[-4.0, 1.0, 5.0], scales=[1.0, 0.7, 1.2])
    ours = fit_reverse(f.NormalMixture, target=target, components=2)
    fit = fit_reverse(td.MixtureSameFamily, target=target, components=2)
    assert fit.kl == ours.kl
    assert fit.distribution.component_distribution.loc.numpy() == pytest.approx(np.asarray(ours.distribution.locs))
    samples = np.random.default_rng(0).normal(size=200)
    assert type(fit_forward(td.MixtureSameFamily, samples=samples, components=2).distribution) is td.MixtureSameFamily


def test_mixtures_of_two_under_one_of_three_have_a_minimum_for_each_pair():
    fit = fit_reverse(td.MixtureSameFamily, target=THREE, components=2)
    assert len(fit.minima) == 3
    assert [one.kl for one in fit.minima] == sorted(one.kl for one in fit.minima)
    # E_q[log q - log p] of SciPy's densities on a grid, and no way down from there.
    axis = np.linspace(-16, 20, 721)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    log_p = scipy_log_density(THREE, grid)

    def kl(mixture):
        log_q = scipy_log_density(mixture, grid)
        return float((np.exp(log_q) * (log_q - log_p)).sum() * (axis[1] - axis[0]) ** 2)

    best = fit.distribution
    assert kl(best) == pytest.approx(fit.kl, abs=1e-9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        moved = td.MixtureSameFamily(
            td.Categorical(logits=best.mixture_distribution.logits + 0.02 * torch.from_numpy(rng.normal(size=2))),
            td.MultivariateNormal(
                best.component_distribution.mean + 0.02 * torch.from_numpy(rng.normal(size=(2, 2))),
                best.component_distribution.covariance_matrix * math.exp(0.02 * rng.normal()),
            ),
        )
        assert kl(moved) > fit.kl


def scipy_log_density(mixture, x):
    parts = mixture.component_distribution
    logs = [
        math.log(weight) + stats.multivariate_normal(mean, covariance).logpdf(x)
        for weight, mean, covariance in zip(
            mixture.mixture_distribution.probs.tolist(),
            parts.mean.numpy(),
            parts.covariance_matrix.numpy(),
            strict=True,
        )
    ]
    return np.logaddexp.reduce(logs)


def test_a_mixture_finds_itself_in_both_directions():
    two = mixture([0.4, 0.6], [[0.0, 0.0], [3.0, 2.0]], [[[1.0, 0.3], [0.3, 0.5]], [[0.5, 0.0], [0.0, 1.0]]])
    for fit in (fit_reverse, fit_forward):
        found = fit(td.MixtureSameFamily, target=two, components=2)
        assert found.kl == pytest.approx(0, abs=1e-12)
        parts = found.distribution.component_distribution
        assert parts.mean.numpy() == pytest.approx(two.component_distribution.mean.numpy(), abs=1e-6)
        assert parts.covariance_matrix.numpy() == pytest.approx(
            two.component_distribution.covariance_matrix.numpy(), abs=1e-6
        )


def test_the_likelihood_of_a_mixture_is_scikit_learns():
    x = load_iris().data
    fit = fit_forward(td.MixtureSameFamily, samples=x, components=2)
    peer = GaussianMixture(2, tol=1e-12, max_iter=10_000, n_init=5, random_state=0, reg_covar=0).fit(x)
    assert fit.converged
    assert fit.diagnostics["cross_entropy"] <= -peer.score(x) + 1e-9
    order = np.argsort(peer.means_[:, 0])
    assert fit.distribution.mixture_distribution.probs.numpy() == pytest.approx(peer.weights_[order], abs=1e-5)
    assert fit.distribution.component_distribution.mean.numpy() == pytest.approx(peer.means_[order], abs=1e-4)
    assert math.isnan(fit.kl)


def test_samples_may_count_differently():
    x = load_iris().data[:, :2]
    weights = np.where(np.arange(150) < 50, 2.0, 1.0)
    twice = np.concatenate([x, x[:50]])
    for family in (td.MixtureSameFamily, td.Independent, f.MultivariateNormal):
        settings = {"components": 2} if family is td.MixtureSameFamily else {}
        weighted = fit_forward(family, samples=x, weights=weights, **settings)
        repeated = fit_forward(family, samples=twice, **settings)
        assert weighted.diagnostics["cross_entropy"] == pytest.approx(repeated.diagnostics["cross_entropy"], abs=1e-10)


def test_independent_normals_of_many_dimensions_by_gradients():
    root = np.random.default_rng(0).normal(size=(4, 4))
    covariance = root @ root.T + np.eye(4)
    target = f.MultivariateNormal(loc=np.arange(4.0), covariance_matrix=covariance)
    fit = fit_reverse(td.Independent, target=target, steps=1500)
    assert type(fit.distribution) is td.Independent
    assert fit.distribution.mean.numpy() == pytest.approx(np.arange(4.0), abs=0.05)
    exact = np.diag(np.linalg.inv(covariance)) ** -0.5
    assert fit.distribution.stddev.numpy() == pytest.approx(exact, rel=0.03)


def test_mixtures_of_many_dimensions_by_gradients_end_in_a_minimum_for_each_start():
    """Three far normals: a mixture of two sits on two of them, and KL is the log of what they weigh."""
    weights, locs = [0.5, 0.3, 0.2], 12.0 * np.eye(3)
    target = mixture(weights, locs.tolist(), [np.diag([1.0, 0.5, 0.25]).tolist()] * 3)

    def start(*which):
        return mixture([0.5, 0.5], locs[list(which)].tolist(), [np.eye(3).tolist()] * 2)

    fit = fit_reverse(
        td.MixtureSameFamily, target=target, start=start(1, 2), starts=[start(0, 1), start(1, 0)], steps=600
    )
    assert [len(one.basin) for one in fit.minima] == [2, 1]
    for one, kept in zip(fit.minima, ([0.5, 0.3], [0.3, 0.2]), strict=True):
        assert one.kl == pytest.approx(-math.log(sum(kept)), abs=1e-3)
        assert sorted(one.distribution.mixture_distribution.probs.tolist(), reverse=True) == pytest.approx(
            [kept[0] / sum(kept), kept[1] / sum(kept)], abs=1e-3
        )
    assert fit.path[0].distribution.mixture_distribution.probs.tolist() == [0.5, 0.5]
    found = fit_reverse(td.MixtureSameFamily, target=target, components=3, steps=500)
    assert found.kl == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize(("count", "size", "independent"), [(1, 2, False), (2, 2, True), (3, 3, False)])
def test_the_expansion_is_that_of_the_sum(count, size, independent):
    chart = MixtureChart(count, size, independent)
    entries = size if independent else size * (size + 1) // 2
    rng = np.random.default_rng(0)
    vector = 0.5 * rng.normal(size=count - 1 + count * (size + entries))
    x, weight = rng.normal(size=(40, size)), rng.dirichlet(np.ones(40))

    def total(at):
        return -float(weight @ chart.log_density(at, x))

    gradient, hessian, _ = chart.expansion(vector, x, -weight, weight)
    assert gradient == pytest.approx(optimize.approx_fprime(vector, total, 1e-7), abs=1e-5)
    for i, step in enumerate(1e-5 * np.eye(vector.size)):
        ahead, behind = (chart.expansion(vector + sign * step, x, -weight, weight)[0] for sign in (1, -1))
        assert hessian[i] == pytest.approx((ahead - behind) / 2e-5, abs=1e-7)


def test_a_funnel_too_wide_for_its_integral_is_fitted_all_the_same():
    """Neal's: the best normal has variances 18/11 and exp(-9/11), by hand."""
    fit = fit_reverse(
        f.MultivariateNormal,
        log_prob=lambda x: -(x[:, 0] ** 2) / 18 - x[:, 0] / 2 - x[:, 1] ** 2 * np.exp(-x[:, 0]) / 2,
        start=f.MultivariateNormal(loc=[1.0, 0.0], covariance_matrix=np.eye(2)),
    )
    neck, mouth = 18 / 11, math.exp(-9 / 11)
    np.testing.assert_allclose(fit.distribution.covariance_matrix, np.diag([neck, mouth]), atol=1e-8)
    bound = -neck / 18 - 0.5 + 0.5 * math.log(neck * mouth) + 1 + math.log(2 * math.pi)
    assert fit.diagnostics["evidence_bound"] == pytest.approx(bound, abs=1e-9)
    assert math.isnan(fit.kl)
    assert math.isnan(fit.diagnostics["log_evidence"])
    assert fit.estimate.status == "unreliable"
    assert fit.path[-1].kl == pytest.approx(-bound, abs=1e-9)


def test_the_integral_of_rosenbrocks_valley():
    fit = fit_reverse(
        f.MultivariateNormal,
        log_prob=lambda x: -((1 - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2) / 2,
        start=f.MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=np.eye(2)),
    )
    exact = math.log(2 * math.pi / 10)
    assert abs(fit.diagnostics["log_evidence"] - exact) <= fit.estimate.error < 1e-9
    assert fit.kl == pytest.approx(exact - fit.diagnostics["evidence_bound"], abs=1e-12)


def test_scipys_vectors_are_targets():
    covariance = [[2.0, 0.3], [0.3, 1.0]]
    fit = fit_reverse(f.MultivariateNormal, target=stats.multivariate_normal([0.0, 1.0], covariance))
    assert fit.distribution.loc == pytest.approx([0.0, 1.0], abs=1e-8)
    np.testing.assert_allclose(fit.distribution.covariance_matrix, covariance, atol=1e-8)


def test_what_ends_is_covered_forward_and_cannot_be_fitted_in_reverse():
    box = td.Independent(td.Uniform(torch.zeros(2).double(), torch.ones(2).double()), 1)
    with pytest.raises(SupportError, match="it is inf at each"):
        fit_reverse(f.Independent, target=box)
    assert fit_forward(f.Independent, target=box).kl == pytest.approx(math.log(2 * math.pi * math.e / 12), abs=1e-3)
    assert measure(td.MultivariateNormal(torch.zeros(2), torch.eye(2)), box).value == math.inf


def test_what_is_asked_wrongly():
    with pytest.raises(ParameterError, match="how many components the mixture is to have"):
        fit_reverse(td.MixtureSameFamily, target=THREE)
    with pytest.raises(ParameterError, match=r"starts that all have as many, got \[3, 4\]"):
        fit_reverse(td.MixtureSameFamily, target=THREE, start=THREE, components=4)
    gammas = f.Independent(base=f.Gamma(concentration=[1.0, 2.0], rate=1.0), event_dims=1)
    with pytest.raises(ParameterError, match="Independent of normals"):
        fit_reverse(f.Independent, target=THREE, start=gammas)
    with pytest.raises(ParameterError, match="none can be"):
        fit_reverse(f.Independent, target=THREE, fixed={"loc": 0.0})
    with pytest.raises(SupportError, match="of vectors, as the family's members are, got Normal"):
        fit_reverse(f.Independent, target=f.Normal(loc=0.0, scale=1.0))
    line = np.stack([np.arange(9.0), 2 * np.arange(9.0)], axis=1)
    for family, settings in ((f.MultivariateNormal, {}), (td.MixtureSameFamily, {"components": 2})):
        with pytest.raises(SupportError, match="they lie on a plane"):
            fit_forward(family, samples=line, **settings)
    assert fit_forward(f.Independent, samples=line).distribution.base.loc == pytest.approx([4.0, 8.0])
    with pytest.raises(ShapeError, match=r"shape \(n,\) for Normal, whose draws are numbers, got \(9, 2\)"):
        fit_forward(f.Normal, samples=line)
    with pytest.raises(SupportError, match="an entry does not vary"):
        fit_forward(f.Independent, samples=np.ones((5, 2)))
