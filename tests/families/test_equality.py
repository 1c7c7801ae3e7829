"""Distributions with equal parameters are equal, have one hash, and are copied and pickled."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kullback import kl
from kullback.errors import ArrayTypeError
from kullback.families import Bernoulli, Categorical, Independent, Laplace, MultivariateNormal, Normal, Transformed

EQUAL = {
    "numbers": [Normal(loc=0, scale=1), Normal(loc=0.0, scale=1.0), Normal(loc=np.float32(0), scale=np.int64(1))],
    "arrays": [
        Categorical(probs=[0.25, 0.75]),
        Categorical(probs=(0.25, 0.75)),
        Categorical(probs=np.asarray([0.25, 0.75])),
        Categorical(probs=torch.tensor([0.25, 0.75])),
        Categorical(probs=torch.tensor([0.25, 0.75], dtype=torch.bfloat16, requires_grad=True)),
        Categorical(probs=jnp.asarray([0.25, 0.75])),
    ],
    "nested": [
        Independent(base=Normal(loc=[0.0, 1.0], scale=1.0), event_dims=1),
        Independent(base=Normal(loc=np.asarray([0, 1]), scale=1), event_dims=1),
    ],
    "transformed": [
        Transformed(base=Normal(loc=0.0, scale=1.0), transform=("exp",), invertible=True),
        Transformed(base=Normal(loc=0, scale=1), transform=("exp",), invertible=True),
    ],
    "matrices": [
        MultivariateNormal(loc=[0.0, 0.0], covariance_matrix=[[1.0, 0.0], [0.0, 1.0]]),
        MultivariateNormal(loc=np.zeros(2), covariance_matrix=np.eye(2)),
    ],
}
DIFFERENT = [
    Normal(loc=0.0, scale=1.0),
    Normal(loc=0.0, scale=2.0),
    Normal(loc=[0.0], scale=1.0),
    Normal(loc=[0.0, 0.0], scale=1.0),
    Laplace(loc=0.0, scale=1.0),
    Bernoulli(probs=0.5),
    Bernoulli(logits=0.5),
    Normal(loc=0.1, scale=1.0),
    Normal(loc=np.float32(0.1), scale=1.0),
    MultivariateNormal(loc=np.zeros(2), covariance_matrix=np.eye(2)),
    MultivariateNormal(loc=np.zeros(2), scale_tril=np.eye(2)),
    Independent(base=Normal(loc=[0.0, 1.0], scale=1.0), event_dims=1),
    Independent(base=Normal(loc=[0.0, 2.0], scale=1.0), event_dims=1),
    "Normal",
    0.0,
]


@pytest.mark.parametrize("name", EQUAL)
def test_equal_parameters_make_equal_distributions_with_one_hash(name):
    members = EQUAL[name]
    for first in members:
        for second in members:
            assert first == second
            assert hash(first) == hash(second)
    assert len(set(members)) == 1


def test_other_parameters_and_classes_are_different():
    for i, first in enumerate(DIFFERENT):
        for j, second in enumerate(DIFFERENT):
            assert (first == second) is (i == j)
            assert (first != second) is (i != j)
    assert len(set(DIFFERENT)) == len(DIFFERENT)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])  # noqa: S301
@pytest.mark.parametrize("member", [member for members in EQUAL.values() for member in members], ids=repr)
def test_copies_are_equal(duplicate, member):
    made = duplicate(member)
    assert made == member
    assert hash(made) == hash(member)
    if not isinstance(member, Transformed):
        assert float(np.sum(np.asarray(kl(made, member).tolist()))) == 0


def test_traced_parameters_have_identity_and_no_hash():
    seen = []

    def function(loc):
        first, second = Normal(loc=loc, scale=1.0), Normal(loc=loc, scale=1.0)
        seen.append((first == second, first == Normal(loc=loc + 1, scale=1.0)))
        with pytest.raises(ArrayTypeError, match="loc is traced"):
            hash(first)
        return kl(first, second)

    assert float(jax.jit(function)(jnp.asarray(0.5))) == 0
    torch.func.vmap(function)(torch.tensor([0.5]))
    assert seen == [(True, False)] * 2


def test_unhashable_parameters_are_named():
    member = Transformed(base=Normal(loc=0.0, scale=1.0), transform={"exp"}, invertible=True)
    assert member == copy.deepcopy(member)
    with pytest.raises(ArrayTypeError, match="unhashable type: 'set'"):
        hash(member)
