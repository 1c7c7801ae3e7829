"""The shapes of KL and entropy: empty for an empty batch, and the shape to which the parameters broadcast."""

import numpy as np
import pytest
import torch

from kullback import families as f
from kullback.distributions import cross_entropy, entropy, kl
from kullback.errors import NoClosedFormError, ParameterError, ShapeError

from .test_float32_gradients import PAIRS, draw_pair

FAMILIES = list(dict.fromkeys(family for pair in PAIRS for family in pair))
PAIR_OF = {family: next(pair for pair in PAIRS if family in pair) for family in FAMILIES}


def name_of(value):
    return "-".join(kind.__name__ for kind in (value if isinstance(value, tuple) else (value,)))


def member_values(family):
    """The parameters of two members of the family by name, as arrays."""
    pair = PAIR_OF[family]
    return {
        name: np.asarray(x)[:2] for name, x in draw_pair(pair, np.random.default_rng(0))[pair.index(family)].items()
    }


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_an_empty_batch_has_an_empty_result(pair, library):
    p, q = draw_pair(pair, np.random.default_rng(0))
    p, q = ({name: library(np.asarray(value)[:0]) for name, value in side.items()} for side in (p, q))
    assert tuple(kl(pair[0](**p), pair[1](**q)).shape) == (0,)


EMPTY = {
    "Wishart": lambda: f.Wishart(df=np.ones(0), covariance_matrix=[[1.0]]),
    "InverseWishart": lambda: f.InverseWishart(df=np.ones(0), scale_matrix=[[1.0]]),
    "Dirichlet": lambda: f.Dirichlet(concentration=np.ones((0, 2))),
    "MultivariateNormal": lambda: f.MultivariateNormal(loc=np.ones((0, 2)), scale_tril=np.eye(2)),
    "Categorical": lambda: f.Categorical(probs=np.ones((0, 2))),
    "Multinomial": lambda: f.Multinomial(total_count=3, probs=np.ones((0, 2))),
    "LKJ": lambda: f.LKJ(dim=3, concentration=np.ones(0)),
    "VonMisesFisher": lambda: f.VonMisesFisher(mean_direction=[1.0, 0.0], concentration=np.ones(0)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_of_vectors_or_matrices_has_an_empty_result(name):
    member = EMPTY[name]()
    assert kl(member, member).shape == (0,)
    if name != "Multinomial":  # whose entropy has no closed form
        assert entropy(member).shape == (0,)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_one_parameter_of_a_batch_is_broadcast(family, library):
    values = member_values(family)
    members = [{name: value[i] for name, value in values.items()} for i in range(2)]
    for varied in values:
        # Both members have the other parameters of the first.
        batch = {name: library(value if name == varied else value[0]) for name, value in values.items()}
        single = [{name: member[name] if name == varied else members[0][name] for name in values} for member in members]
        for function in (entropy, lambda d: cross_entropy(d, d), lambda d: kl(d, d)):
            try:
                expected = [float(function(family(**member))) for member in single]
                got = function(family(**batch))
            except (NoClosedFormError, ParameterError):  # no form, or limits that are not in order
                continue
            except ShapeError:
                assert family is f.VonMisesFisher  # the length of a vector is an axis of the event
                continue
            assert tuple(got.shape) == (2,), varied
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9, err_msg=varied)


@pytest.mark.parametrize("library", [np.asarray, torch.tensor])
@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.event_axes], ids=name_of)
def test_the_kl_of_a_distribution_to_itself_is_0_at_every_magnitude(family, library):
    values = {name: np.float64(value[0]) for name, value in member_values(family).items()}
    for varied in values:
        for extreme in (5e-324, 1e-310, 1e-300, 1e-200, 1e200, 1e300, 1.7e308):
            changed = values | {varied: np.full_like(values[varied], extreme)}
            try:
                member = family(**{name: library(np.stack([value, value])) for name, value in changed.items()})
                same = family(**{name: library(np.stack([value, value])) for name, value in changed.items()})
                kls = kl(member, same)
            except (NoClosedFormError, ParameterError, ShapeError):
                continue
            np.testing.assert_array_equal(kls, 0, err_msg=f"{varied} {extreme}")


@pytest.mark.parametrize(
    "make",
    [
        lambda: f.Dirichlet(concentration=[]),
        lambda: f.Dirichlet(concentration=np.ones((3, 0))),
        lambda: f.Categorical(logits=[]),
        lambda: f.Categorical(probs=torch.ones(2, 0)),
        lambda: f.Multinomial(total_count=3, logits=[]),
        lambda: f.MultivariateNormal(loc=[], scale_tril=np.ones((0, 0))),
        lambda: f.VonMisesFisher(mean_direction=[], concentration=1.0),
        lambda: f.NormalMixture(weights=[], locs=[], scales=[]),
        lambda: f.Wishart(df=3.0, covariance_matrix=np.ones((0, 0))),
    ],
)
def test_a_distribution_without_components_is_refused(make):
    with pytest.raises(ShapeError, match="to have at least one entry, got"):
        make()


def test_a_kl_that_depends_on_one_parameter_has_the_shape_of_all():
    a = np.asarray([2.0, 3.0])
    same = f.Kumaraswamy(concentration1=a, concentration0=2.0)
    np.testing.assert_array_equal(kl(same, same), [0, 0])
    np.testing.assert_allclose(kl(same, f.Kumaraswamy(concentration1=a, concentration0=1.0)), [np.log(2) - 0.5] * 2)
