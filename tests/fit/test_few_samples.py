"""Fits of mixtures to few samples, whose likelihood has no maximum or whose empirical Fisher metric is singular."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from kullback import fit_forward
from kullback.errors import SupportError
from kullback.families import Dirichlet, NormalMixture, OneHotCategorical, StudentT
from kullback.fit.solver import multistart, objectives


@pytest.fixture
def members(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The members whose densities a fit constructs, which take most of its time."""
    constructed: list[Any] = []
    as_density = objectives.as_density
    monkeypatch.setattr(objectives, "as_density", lambda member: constructed.append(member) or as_density(member))
    return constructed


@pytest.mark.parametrize("samples", [[1.0, 2.0, 3.0, 10.0], [1.0, 1.0, 2.0, 2.0]])
def test_a_likelihood_without_a_maximum_is_refused_with_the_reason(samples: list[float], members: list[Any]) -> None:
    with pytest.raises(SupportError, match="increases without bound as the scale of a component at the sample"):
        fit_forward(NormalMixture, samples=samples, components=2)
    assert len(members) < 10_000


@pytest.mark.slow
def test_a_local_maximum_of_few_samples_is_found() -> None:
    x = np.array([0.0, 0.0, 1.0, 5.0, 6.0, 7.0])
    fit = fit_forward(NormalMixture, samples=x, components=2)

    def cross_entropy(v: np.ndarray) -> float:
        weight, scales = 1 / (1 + np.exp(-v[0])), np.exp(v[3:])
        parts = np.stack([stats.norm.pdf(x, v[1 + k], scales[k]) for k in range(2)])
        return -float(np.log(np.array([weight, 1 - weight]) @ parts).mean())

    expected = optimize.minimize(cross_entropy, [0.0, 0.3, 6.0, -0.7, -0.2], method="BFGS", tol=1e-10)
    assert fit.converged
    assert fit.minima[0].cross_entropy == pytest.approx(expected.fun, rel=1e-9)
    np.testing.assert_allclose(fit.distribution.locs, expected.x[1:3], rtol=1e-5)


def test_descents_end_after_a_number_of_members(members: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multistart, "_MAX_EVALUATIONS", 10**6)
    fit_forward(NormalMixture, samples=[0.0, 0.1, 1.0, 5.0, 6.0, 7.0], components=2)
    assert len(members) < 1500


@pytest.mark.parametrize(
    ("family", "samples", "message"),
    [
        (OneHotCategorical, [[0.2, 0.8], [0.5, 0.5]], r"one 1 and otherwise 0, but samples\[0\] is \[0.2, 0.8\]"),
        (OneHotCategorical, [[1, 0, 0], [1, 1, 0]], r"samples\[1\] is \[1.0, 1.0, 0.0\] with sum 2"),
        (Dirichlet, [[0.5, 0.5], [0.2, 0.3]], r"positive with sum 1, but samples\[1\] is \[0.2, 0.3\] with sum 0.5"),
        (Dirichlet, [[0.0, 1.0], [0.5, 0.5]], r"positive with sum 1, but samples\[0\]"),
        (Dirichlet, [[-0.2, 1.2], [0.5, 0.5]], r"positive with sum 1, but samples\[0\]"),
    ],
)
def test_vectors_outside_the_support_are_named(family, samples, message):
    with pytest.raises(SupportError, match=message):
        fit_forward(family, samples=samples)


def test_vectors_in_float32_are_fitted():
    torch.manual_seed(0)
    x = torch.distributions.Dirichlet(torch.tensor([1.0, 2.0, 3.0])).sample((200,))
    exact = x.double() / x.double().sum(-1, keepdim=True)
    fits = [fit_forward(Dirichlet, samples=samples).distribution.concentration for samples in (x, exact)]
    np.testing.assert_allclose(fits[0], fits[1], rtol=1e-6)


@pytest.mark.parametrize(("samples", "tolerance"), [([-1, 1], 1e-3), ([1, 2], 1e-3), ([1, 2, 3, 4], 1e-9)])
def test_a_likelihood_that_grows_towards_the_normal_is_followed(samples: list[float], tolerance: float) -> None:
    """At the first start of the first two, no log-density depends on the scale to first order."""
    fit = fit_forward(StudentT, samples=samples)
    assert not fit.converged
    limit = stats.norm.entropy(scale=np.std(samples))
    assert fit.diagnostics["cross_entropy"] == pytest.approx(limit, abs=tolerance)
