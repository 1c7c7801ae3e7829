"""A fit ends after a bounded number of evaluations, and then states that it has not converged."""

import math
import time

import numpy as np
import pytest

from kullback import families as f
from kullback.fit import fit_forward
from kullback.fit.solver.trust_region import QuadraticModel, minimise


@pytest.mark.slow
def test_a_fit_to_a_density_that_nodes_do_not_resolve_ends():
    started = time.process_time()
    fit = fit_forward(f.Cauchy, target=f.Kumaraswamy(concentration1=1e-8, concentration0=0.5))
    assert time.process_time() - started < 60
    assert not fit.converged
    assert math.isfinite(fit.kl)


def test_a_descent_ends_after_the_given_evaluations():
    class Slope:
        def quadratic_model(self, vector):
            return QuadraticModel(-float(vector[0]), np.asarray([-1.0]), np.zeros((1, 1)), np.eye(1), 10)

    descent = minimise(Slope(), np.zeros(1), max_evaluations=55)
    assert not descent.converged
    assert descent.evaluations == 60
