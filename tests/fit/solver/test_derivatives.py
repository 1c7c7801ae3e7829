"""The derivatives of KL between a target and families of location and scale, against quadrature and exact minima."""

import math

import numpy as np
import pytest

from kullback import families as f
from kullback import fit_reverse
from kullback.densities.from_families import as_density
from kullback.densities.quadrature import kl_quadrature
from kullback.fit.solver.objectives import univariate_objective
from kullback.fit.solver.parametrisation import parametrise

TARGETS = {
    f.Cauchy: f.StudentT(df=1.5, loc=0.3, scale=2.0),
    f.Gumbel: f.Gumbel(loc=-0.2, scale=0.8),
    f.Logistic: f.NormalMixture(weights=[0.4, 0.6], locs=[-1.0, 2.0], scales=[1.0, 0.5]),
    f.LogNormal: f.Gamma(concentration=2.0, rate=0.7),
    f.Normal: f.NormalMixture(weights=[0.4, 0.6], locs=[-1.0, 2.0], scales=[1.0, 0.5]),
}


@pytest.mark.parametrize("fixed", [{}, {"scale": 1.1}], ids=["free", "scale fixed"])
@pytest.mark.parametrize("alpha", [0.0, 1.0], ids=["reverse", "forward"])
@pytest.mark.parametrize("family", TARGETS, ids=lambda family: family.__name__)
def test_gradient_and_hessian_equal_differences_of_integrals(family, alpha, fixed):
    target = as_density(TARGETS[family])
    parametrisation = parametrise(family, family(loc=0.4, scale=1.1), fixed)
    vector = parametrisation.to_vector(family(loc=0.4, scale=1.1))
    objective = univariate_objective(parametrisation, target, alpha=alpha)
    objective.quadratic_model(vector + 0.05)  # its nodes also serve the next vector
    model = objective.quadratic_model(vector)

    def kl(at):
        member = as_density(parametrisation.to_distribution(np.asarray(at)))
        return kl_quadrature(*((target, member) if alpha else (member, target)), error=1e-13).value

    inverse = np.linalg.inv(model.basis)
    gradient, hessian = inverse.T @ model.gradient, inverse.T @ model.hessian @ inverse
    assert model.value == pytest.approx(kl(vector), abs=1e-13)
    h = 2e-3
    for i, step in enumerate(h * np.eye(vector.size)):
        values = [kl(vector + k * step) for k in (-2, -1, 0, 1, 2)]
        assert gradient[i] == pytest.approx(np.dot([1, -8, 0, 8, -1], values) / (12 * h), abs=1e-8)
        assert hessian[i, i] == pytest.approx(np.dot([-1, 16, -30, 16, -1], values) / (12 * h * h), abs=1e-6)
    if vector.size == 2:
        corners = [kl(vector + h * np.asarray(at)) for at in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
        assert hessian[0, 1] == pytest.approx(np.dot([1, -1, -1, 1], corners) / (4 * h * h), abs=1e-4)


def test_a_minimum_is_exact_where_the_density_of_the_target_underflows():
    # E_q[log p] = -m - e^(s^2/2 - m), so that the minimum is at m = s^2/2 and s = 1.
    fit = fit_reverse(f.Normal, target=f.Gumbel(loc=0.0, scale=1.0))
    assert (fit.distribution.loc, fit.distribution.scale) == pytest.approx((0.5, 1.0), abs=1e-14)
    # KL = -log(2 pi e)/2 + m + e^(s^2/2 - m)
    assert fit.kl == pytest.approx(1.5 - 0.5 * math.log(2 * math.pi * math.e), abs=1e-14)
