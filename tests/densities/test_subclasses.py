"""Subclasses of a library's classes: those that override the density have no closed form of their parent."""

import math
from typing import Any

import numpy as np
import numpyro.distributions as n
import pytest
import torch
from scipy import stats
from torch import distributions as d

from kullback import kl, measure
from kullback.densities.resolve import as_family
from kullback.errors import NoClosedFormError

ZERO, ONE = torch.zeros(()), torch.ones(())


class Named(d.Normal):
    """A subclass with a method that does not concern the density."""

    def describe(self) -> str:
        return "normal"

    def __repr__(self) -> str:
        return "Named()"


class Shifted(d.Normal):
    """The normal with 3 added to every draw."""

    def log_prob(self, value: Any) -> Any:
        return super().log_prob(value - 3.0)

    def rsample(self, sample_shape: Any = ()) -> Any:
        return super().rsample(torch.Size(sample_shape)) + 3.0

    def sample(self, sample_shape: Any = ()) -> Any:
        return super().sample(torch.Size(sample_shape)) + 3.0


class FurtherShifted(Shifted):
    """A subclass of a subclass that overrides the density."""


class LogProbOnly(d.Normal):
    def log_prob(self, value: Any) -> Any:
        return super().log_prob(value - 3.0)


class MeanOnly(d.Gamma):
    @property
    def mean(self) -> Any:
        return self.concentration


class ShiftedLogNormal(d.LogNormal):
    def log_prob(self, value: Any) -> Any:
        return super().log_prob(value / 2) - math.log(2)

    def rsample(self, sample_shape: Any = ()) -> Any:
        return 2 * super().rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Any:
        return 2 * super().sample(torch.Size(sample_shape))


class Squashed(d.TransformedDistribution):
    """A transformed distribution to which a mean is added, as several libraries of reinforcement learning have."""

    def __init__(self, loc: Any) -> None:
        super().__init__(d.Normal(loc, torch.ones_like(loc)), [d.TanhTransform(cache_size=1)])

    @property
    def mean(self) -> Any:
        return self.base_dist.loc.tanh()


class NumPyroNamed(n.Normal):
    pass


class NumPyroShifted(n.Normal):
    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        return super().log_prob(value - 3.0)

    def sample(self, key: Any, sample_shape: Any = ()) -> Any:
        return super().sample(key, sample_shape) + 3.0


class SciPyNamed(type(stats.norm)):
    pass


class SciPyWide(type(stats.norm)):
    def _logpdf(self, x: Any) -> Any:
        return super()._logpdf(x / 2) - math.log(2)


class SciPyVariable(stats.Normal):
    def logpdf(self, x: Any, /, *, method: Any = None) -> Any:
        return super().logpdf(x - 3.0, method=method)


ORDINARY = [
    (Named(ZERO, ONE), d.Normal(ONE, ONE), 0.5),
    (Squashed(ZERO), Squashed(ONE), 0.5),
    (NumPyroNamed(0.0, 1.0), n.Normal(1.0, 1.0), 0.5),
    (SciPyNamed(name="named")(0.0, 1.0), stats.norm(1.0, 1.0), 0.5),
]
OVERRIDING = [
    *(Shifted(ZERO, ONE), FurtherShifted(ZERO, ONE), LogProbOnly(ZERO, ONE), MeanOnly(ONE, ONE)),
    *(ShiftedLogNormal(ZERO, ONE), d.Independent(Shifted(torch.zeros(2), torch.ones(2)), 1)),
    *(NumPyroShifted(0.0, 1.0), SciPyWide(name="wide")(0.0, 1.0), SciPyVariable(mu=0.0, sigma=1.0)),
    d.TransformedDistribution(Shifted(ZERO, ONE), [d.ExpTransform()]),
    d.MixtureSameFamily(d.Categorical(torch.ones(2)), Shifted(torch.zeros(2), torch.ones(2))),
]


@pytest.mark.parametrize(("p", "q", "expected"), ORDINARY, ids=lambda value: type(value).__name__)
def test_an_ordinary_subclass_keeps_the_closed_form(p: Any, q: Any, expected: float) -> None:
    assert float(kl(p, q)) == pytest.approx(expected, rel=1e-6)
    assert measure(p, q).status == "exact"


@pytest.mark.parametrize("distribution", OVERRIDING, ids=lambda value: type(value).__name__)
def test_a_subclass_that_overrides_the_density_has_no_closed_form(distribution: Any) -> None:
    with pytest.raises(NoClosedFormError, match=r"overrides \w+ of its base class|no closed form"):
        as_family(distribution)
    with pytest.raises(NoClosedFormError):
        kl(distribution, distribution)


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        (Shifted(ZERO, ONE), d.Normal(ZERO, ONE), 4.5),
        (d.Normal(ZERO, ONE), Shifted(ZERO, ONE), 4.5),
        (d.Normal(ZERO, ONE), LogProbOnly(ZERO, ONE), 4.5),
        (d.Normal(ONE, 2 * ONE), FurtherShifted(ZERO, ONE), -math.log(2) + (4 + 4) / 2 - 0.5),
        (ShiftedLogNormal(ZERO, ONE), d.LogNormal(ZERO, ONE), math.log(2) ** 2 / 2),
        (NumPyroShifted(0.0, 1.0), n.Normal(0.0, 1.0), 4.5),
        (stats.norm(0.0, 1.0), SciPyWide(name="wide")(0.0, 1.0), math.log(2) + 1 / 8 - 0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_overriding_density_is_measured(p: Any, q: Any, expected: float) -> None:
    estimate = measure(p, q)
    assert estimate.status != "exact"
    assert estimate.value == pytest.approx(expected, rel=1e-6)


def test_draws_that_contradict_an_overriding_density_are_found() -> None:
    p = d.Independent(LogProbOnly(torch.zeros(2), torch.ones(2)), 1)
    estimate = measure(p, d.Independent(d.Normal(torch.zeros(2), torch.ones(2)), 1), draws=2000)
    assert estimate.status == "unreliable"
    assert np.isinf(estimate.interval[1])  # pyright: ignore[reportOptionalSubscript]
