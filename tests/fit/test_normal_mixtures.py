"""Forward fits of mixtures of univariate normals, against expectation-maximisation by scikit-learn and exact optima."""

from itertools import pairwise

import mpmath as mp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from kullback import families as f
from kullback import fit_forward
from kullback.densities.from_families import as_density
from kullback.fit.solver.objectives import CrossEntropyObjective, univariate_objective
from kullback.fit.solver.parametrisation import parametrise

RNG = np.random.default_rng(0)
SAMPLES = {
    "gamma": np.random.default_rng(1).gamma(2, 1, 1000),
    "exponential": RNG.exponential(1, 500),
    "two scales": np.r_[RNG.normal(0, 1, 900), RNG.normal(0, 5, 100)],
    "overlap": np.r_[RNG.normal(0, 1, 500), RNG.normal(2, 1, 500)],
    "student": RNG.standard_t(3, 600),
}


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_fit_is_as_likely_as_expectation_maximisation_from_k_means(name, count):
    x = SAMPLES[name]
    fit = fit_forward(f.NormalMixture, samples=x, components=count)
    others = [GaussianMixture(count, random_state=seed).fit(x[:, None]) for seed in range(3)]
    assert fit.converged
    assert fit.cross_entropy <= min(-other.score(x[:, None]) for other in others) + 1e-9
    assert min(fit.distribution.weights) > 1e-3
    assert max(fit.distribution.scales) < 10 * x.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_more_components_are_not_less_likely(name):
    values = [
        fit_forward(f.NormalMixture, samples=SAMPLES[name][:300], components=k).cross_entropy for k in range(1, 6)
    ]
    assert all(more <= fewer + 1e-9 for fewer, more in pairwise(values))


@pytest.mark.slow
@pytest.mark.parametrize(
    "target",
    [
        f.NormalMixture(weights=[0.3, 0.3, 0.4], locs=[0.0, 5.0, 10.0], scales=[1.0, 1.0, 1.0]),
        f.NormalMixture(weights=[0.2, 0.5, 0.3], locs=[-3.0, 0.0, 1.0], scales=[1.0, 0.3, 2.0]),
        f.NormalMixture(weights=[0.3, 0.3, 0.4], locs=[1e6, 1e6 + 1, 1e6 + 2], scales=[1e-3, 1.0, 0.1]),
    ],
)
def test_a_mixture_is_recovered_with_as_many_components_and_with_more(target):
    fit = fit_forward(f.NormalMixture, target=target, components=3)
    assert fit.converged
    assert fit.kl == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(fit.distribution.locs, target.locs, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(fit.distribution.scales, target.scales, rtol=1e-6)
    assert fit_forward(f.NormalMixture, target=target, components=4).kl < 1e-11


def test_samples_whose_squares_overflow_are_fitted():
    x = np.random.default_rng(0).gamma(2, 1, 200)
    fits = [fit_forward(f.NormalMixture, samples=unit * x, components=2) for unit in (1.0, 1e300, 1e-290)]
    for fit, unit in zip(fits, (1.0, 1e300, 1e-290), strict=True):
        assert fit.cross_entropy - np.log(unit) == pytest.approx(fits[0].cross_entropy, abs=1e-8)


@pytest.mark.parametrize("fixed", [{}, {"weights": [0.2, 0.5, 0.3]}, {"scales": [1.0, 0.3, 2.0]}])
@pytest.mark.parametrize("outlier", [3.0, 1e6])
def test_derivatives_of_the_cross_entropy_equal_differences_in_40_digits(fixed, outlier):
    """An outlier has a log-density of -1e12, whose products of scores cancel in float64."""
    member = f.NormalMixture(weights=[0.2, 0.5, 0.3], locs=[-3.0, 0.0, 1.0], scales=[1.0, 0.3, 2.0])
    x = np.array([-4.0, -2.5, 0.1, 0.4, 1.0, outlier])
    parametrisation = parametrise(f.NormalMixture, member, fixed)
    vector = parametrisation.to_vector(member)
    model = CrossEntropyObjective(parametrisation, x, np.full(6, 1 / 6)).quadratic_model(vector)
    inverse = np.linalg.inv(model.basis)
    gradient, hessian = inverse.T @ model.gradient, inverse.T @ model.hessian @ inverse
    free = [name for name in ("weights", "locs", "scales") if name not in fixed]

    def cross_entropy(*at):
        logits, at = ([*at[:2], 0], at[2:]) if "weights" in free else ([mp.log(w) for w in (0.2, 0.5, 0.3)], at)
        locs, at = at[:3], at[3:]
        scales = [mp.exp(a) for a in at] if "scales" in free else [mp.mpf(s) for s in (1.0, 0.3, 2.0)]
        total = mp.fsum(mp.exp(logit) for logit in logits)
        parts = list(zip(logits, locs, scales, strict=True))

        def density(y):
            return mp.fsum(mp.exp(a) / total * mp.npdf((y - m) / s) / s for a, m, s in parts)

        return -mp.fsum(mp.log(density(mp.mpf(float(y)))) for y in x) / 6

    with mp.workdps(40):
        at, size = [mp.mpf(float(v)) for v in vector], len(vector)
        for i in range(size):
            order = [int(k == i) for k in range(size)]
            expected = float(mp.diff(cross_entropy, tuple(at), tuple(order)))
            assert gradient[i] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        for i, j in ((0, 0), (0, 1), (1, size - 1), (size - 1, size - 1), (2, 2)):
            order = [int(k == i) + int(k == j) for k in range(size)]
            expected = float(mp.diff(cross_entropy, tuple(at), tuple(order)))
            assert hessian[i, j] == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_derivatives_of_the_divergence_equal_differences_of_its_values(alpha):
    """The values are of the general objective of smooth families, at neighbours of the member."""
    member = f.NormalMixture(weights=[0.3, 0.7], locs=[-1.0, 0.5], scales=[1.0, 0.4])
    parametrisation = parametrise(f.NormalMixture, member, {})
    vector = parametrisation.to_vector(member)
    objective = univariate_objective(parametrisation, as_density(f.StudentT(df=3.0, loc=0.2, scale=1.0)), alpha=alpha)
    model = objective.quadratic_model(vector)
    inverse = np.linalg.inv(model.basis)
    gradient, hessian = inverse.T @ model.gradient, inverse.T @ model.hessian @ inverse
    h = 1e-3
    steps = h * np.eye(vector.size)

    def value(*shifts):
        return objective.quadratic_model(vector + sum(shifts)).value

    for i, a in enumerate(steps):
        slope = (8 * (value(a) - value(-a)) - value(2 * a) + value(-2 * a)) / (12 * h)
        assert gradient[i] == pytest.approx(slope, abs=1e-9)
        for j, b in enumerate(steps):
            mixed = (value(a, b) - value(a, -b) - value(-a, b) + value(-a, -b)) / (4 * h * h)
            assert hessian[i, j] == pytest.approx(mixed, abs=1e-5)
