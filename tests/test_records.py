"""Results whose fields are arrays: equality, hashes, copies and pickles."""

import copy
import pickle

import numpy as np
import pytest
import torch

import kullback
from kullback.families import Normal, StudentT
from kullback.numerics.records import EqualByValue
from kullback.optimum.best_of_n import best_of_n_policy

MAKERS = {
    "tilt": lambda beta=1.0: kullback.tilt([0.5, 0.5], [1.0, 2.0], beta=beta),
    "tilt of tensors": lambda beta=1.0: kullback.tilt(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 2.0]), beta=beta),
    "frontier": lambda reward=2.0: kullback.frontier([0.5, 0.5], [1.0, reward], points=5),
    "best of n": lambda n=2: best_of_n_policy([0.5, 0.5], [0.0, 1.0], n),
    "fit to samples": lambda last=4.0: kullback.fit_forward(Normal, samples=[1.0, 2.0, last]),  # its kl is nan
    "fit": lambda df=5.0: kullback.fit_reverse(Normal, target=StudentT(df=df, loc=0.0, scale=1.0)),
    "statistics": lambda z=0.0: kullback.token_stats(torch.tensor([[z, torch.nan], [1.0, 2.0]]), torch.zeros(2, 2)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_equal_results_compare_equal_hash_copy_and_pickle(make):
    result, same = make(), make()
    assert result == same
    assert hash(result) == hash(same)
    assert copy.deepcopy(result) == result
    assert pickle.loads(pickle.dumps(result)) == result  # noqa: S301
    assert {result: 1}[same] == 1


@pytest.mark.parametrize("name", sorted(MAKERS.keys() - {"statistics"}))
def test_other_results_differ(name):
    make = MAKERS[name]
    assert make() != make(3.0)
    assert make() != 1


def test_numbers_of_another_library_or_dtype_are_equal_and_other_shapes_are_not():
    first = kullback.tilt([0.5, 0.5], [1.0, 1.0], beta=1.0)
    assert first == kullback.tilt(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]), beta=1.0)
    assert first != kullback.tilt([[0.5, 0.5]], [[1.0, 1.0]], beta=1.0)


def test_the_results_with_arrays_are_records():
    for make in MAKERS.values():
        assert isinstance(make(), EqualByValue)
    assert np.isnan(MAKERS["fit to samples"]().kl)
