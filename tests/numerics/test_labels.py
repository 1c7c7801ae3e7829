"""Tables, labelled arrays, masked and sparse arrays, and lists of objects: matched by label, or refused in one line."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
import xarray as xr

from kullback import (
    KullbackError,
    cross_entropy,
    divergence,
    entropy,
    kl_log_probs,
    kl_logits,
    kl_probs,
    kl_terms,
    linear_token_kl,
    measure,
    token_kl,
)
from kullback.errors import ArrayTypeError, LabelError, ShapeError
from kullback.families import Categorical, Normal
from kullback.fit import fit_forward
from kullback.numerics.labels import plain_arrays
from kullback.optimum.best_of_n import best_of_n_policy
from kullback.optimum.tilt import tilt
from kullback.policy.advantages import gae, group_advantages
from kullback.policy.aggregation import aggregate_tokens
from kullback.samples.clustered_mean import kl_per_token

P, Q = np.asarray([0.1, 0.2, 0.7]), np.asarray([0.5, 0.2, 0.3])
# .1 log(.1/.5) + .2 log(.2/.2) + .7 log(.7/.3), in extended precision
KL = float(np.sum(np.longdouble(P) * np.log(np.longdouble(P) / np.longdouble(Q))))
ORDER = [2, 0, 1]
NAMES = ["a", "b", "c"]
OTHER_ORDER = [NAMES[i] for i in ORDER]


def columns(names, values):
    return dict(zip(names, np.asarray(values)[:, None], strict=True))


LABELLED = {
    "pandas Series": lambda x, names: pd.Series(x, index=names),
    "pandas DataFrame": lambda x, names: pd.DataFrame(columns(names, x)),
    "pandas MultiIndex": lambda x, names: pd.Series(x, index=pd.MultiIndex.from_tuples([(n, n) for n in names])),
    "pandas nullable": lambda x, names: pd.Series(x, index=names, dtype="Float64"),
    "pandas Arrow": lambda x, names: pd.Series(x, index=names, dtype="double[pyarrow]"),
    "polars DataFrame": lambda x, names: pl.DataFrame(columns(names, x)),
    "Arrow table": lambda x, names: pa.table(columns(names, x)),
    "xarray": lambda x, names: xr.DataArray(x, dims=["event"], coords={"event": names}),
}
FUNCTIONS = {
    "kl_probs": (lambda p, q, **o: kl_probs(p, q, **o), np.asarray),
    "kl_terms": (lambda p, q, **o: kl_terms(p, q, **o).sum(-1), np.asarray),
    "kl_log_probs": (lambda p, q, **o: kl_log_probs(p, q, **o), np.log),
    "kl_logits": (lambda p, q, **o: kl_logits(p, q, **o), lambda x: np.log(x) + 3),
    "cross_entropy": (lambda p, q, **o: cross_entropy(p, q, **o) - entropy(p, **o), np.asarray),
    "alpha = 1": (lambda p, q, **o: divergence(p, q, "alpha", alpha=1, **o), np.asarray),
}


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_entries_are_matched_by_label(kind, name):
    (function, form), make = FUNCTIONS[name], LABELLED[kind]
    p, q = make(form(P), NAMES), make(form(Q[ORDER]), OTHER_ORDER)
    np.testing.assert_allclose(np.ravel(function(p, q)), KL, rtol=1e-13)
    np.testing.assert_allclose(np.ravel(function(p, make(form(Q), NAMES))), KL, rtol=1e-13)
    assert np.ravel(function(q, make(form(Q), NAMES)))[0] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("kind", LABELLED)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_different_labels_are_refused(kind, name):
    (function, form), make = FUNCTIONS[name], LABELLED[kind]
    p, q = make(form(P), NAMES), make(form(Q), ["a", "b", "d"])
    with pytest.raises(LabelError, match=r"label .*'c'.* is missing from the second array; .* to_numpy\(\)"):
        function(p, q)


def test_values_without_labels_are_matched_by_position():
    series = pd.Series(P, index=NAMES)
    for other in (Q, Q.tolist(), pl.Series(Q), pa.array(Q), xr.DataArray(Q)):
        assert kl_probs(series, other) == pytest.approx(KL, rel=1e-13)
        assert kl_probs(P, other) == pytest.approx(KL, rel=1e-13)
    assert kl_probs(series, torch.tensor(Q)).dtype == torch.float64


def test_rows_of_tables_are_matched():
    p = pd.DataFrame({"x": [0.1, 0.5], "y": [0.9, 0.5]}, index=["u", "v"])
    q = pd.DataFrame({"y": [0.5, 0.9], "x": [0.5, 0.1]}, index=["v", "u"])
    assert kl_probs(p, q).tolist() == [0, 0]
    assert kl_probs(p, q.loc[["v"]]).tolist() == [kl_probs([0.1, 0.9], [0.5, 0.5]), 0]
    with pytest.raises(LabelError, match="label 'u' along axis -2"):
        kl_probs(p, q.rename(index={"u": "w"}))
    row = pd.Series({"y": 0.9, "x": 0.1})
    assert kl_probs(p, row).tolist() == [0, pytest.approx(kl_probs([0.5, 0.5], [0.1, 0.9]))]
    assert kl_probs(p.T, q.T, axis=0).tolist() == [0, 0]


def test_masks_are_matched_by_label():
    p = pd.Series([0.5, 0.5, 9.0], index=NAMES)
    where = pd.Series([False, True, True], index=["c", "b", "a"])
    assert kl_probs(p, p, where=where) == 0
    with pytest.raises(LabelError):
        kl_probs(p, p, where=pd.Series([False, True, True], index=["d", "b", "a"]))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pd.Series([0.1, 0.1, 0.8], index=["a", "a", "b"]), pd.Series([0.1, 0.8, 0.1], index=["a", "b", "a"])),
        (pd.Series([0.5, 0.5]), pd.Series([0.5, 0.5], index=["a", "b"])),
        (pd.Series([0.5, 0.5], index=[0, 1]), pd.Series([0.5, 0.5], index=[1, 2])),
        (xr.DataArray([0.5, 0.5], dims=["x"]), xr.DataArray([0.5, 0.5], dims=["y"])),
        (xr.DataArray(np.full((2, 2), 0.5), dims=["x", "y"]), xr.DataArray(np.full((2, 2), 0.5), dims=["y", "x"])),
    ],
)
def test_labels_that_cannot_be_matched_are_refused(first, second):
    with pytest.raises(LabelError):
        kl_probs(first, second)


def test_equal_repeated_labels_are_accepted():
    series = pd.Series([0.1, 0.1, 0.8], index=["a", "a", "b"])
    assert kl_probs(series, series.copy()) == 0


REFUSED = {
    "masked": (np.ma.masked_array([0.5, 0.5], mask=[False, True]), r"entry \[1\] is masked"),
    "list of masked": ([np.ma.masked_array([0.5, 0.5], mask=[False, True])], "MaskedArray"),
    "scipy sparse matrix": (scipy.sparse.csr_matrix([[0.5, 0.5]]), "toarray"),
    "scipy sparse array": (scipy.sparse.coo_array([[0.5, 0.5]]), "toarray"),
    "torch sparse": (torch.tensor([0.5, 0.5]).to_sparse(), "to_dense"),
    "torch float8": (torch.tensor([0.5, 0.5]).to(torch.float8_e4m3fn), "float8"),
    "torch meta": (torch.empty(2, device="meta"), "meta"),
    "tensors with gradients": ([torch.tensor(0.5, requires_grad=True)] * 2, "torch.stack"),
    "polars lazy": (pl.DataFrame({"a": [0.5]}).lazy(), "collect"),
    "xarray dataset": (xr.Dataset({"p": ("x", [0.5, 0.5])}), "variables"),
    "list of Series": ([pd.Series([0.5, 0.5])] * 2, "list with a Series"),
    "None": (None, "got None"),
    "None in a list": ([0.5, None], r"entry \[1\] is None"),
    "string": ("abc", "'abc'"),
    "strings": (["0.5", "0.5"], "'0.5'"),
    "string array": (np.asarray(["a", "b"]), "dtype <U1"),
    "bytes": (b"ab", "b'ab'"),
    "string column": (pd.DataFrame({"a": [0.5], "b": ["x"]}), r"entry \[0, 1\] is 'x'"),
    "categories": (pd.Series(["a", "b"], dtype="category"), "'a'"),
    "objects": (np.asarray([object(), 1]), "class object"),
    "complex": ([0.5 + 0j, 0.5], "real numbers"),
    "complex tensor": (torch.tensor([0.5 + 0j, 0.5]), "real numbers"),
    "ragged": ([[0.5, 0.5], [1.0]], "lengths 1 and 2"),
    "dictionary": ({"a": 0.5, "b": 0.5}, "dict"),
    "set": ({0.25, 0.75}, "set"),
    "generator": ((x for x in [0.5, 0.5]), "generator"),
    "dates": (np.asarray(["2020-01-01"], "M8[D]"), "datetime64"),
    "records": (np.zeros(2, dtype=[("a", float)]), "dtype"),
    "large integer": ([10**400, 0], "range of float64"),
    "empty": ([], "one event"),
    "no events": (np.zeros((3, 0)), "one event"),
    "scalar": (0.5, "axis -1"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("function", [kl_probs, kl_log_probs, kl_logits, kl_terms, cross_entropy])
def test_other_objects_are_refused_in_one_line(name, function):
    value, message = REFUSED[name]
    with pytest.raises(KullbackError, match=message) as caught:
        function(value, value)
    assert "\n" not in str(caught.value)
    with pytest.raises(KullbackError, match=message):
        entropy(value)
    with pytest.raises(KullbackError):
        kl_probs([0.5, 0.5], value)
    if name not in {"None", "scalar"}:
        with pytest.raises(KullbackError):
            kl_probs([0.5, 0.5], [0.5, 0.5], where=value)


@pytest.mark.parametrize(
    "value",
    [
        [Fraction(1, 4), Fraction(3, 4)],
        [Decimal("0.25"), Decimal("0.75")],
        np.asarray([0.25, 0.75], dtype=object),
        np.asarray([0.25, 0.75], dtype=">f8"),
        np.ma.masked_array([0.25, 0.75]),
        np.matrix([[0.25, 0.75]]),
        (0.25, 0.75),
        memoryview(np.asarray([0.25, 0.75])),
        [np.float32(0.25), np.float32(0.75)],
        [torch.tensor(0.25), torch.tensor(0.75)],
    ],
)
def test_other_arrays_of_numbers_are_accepted(value):
    expected = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
    got = kl_probs(value, [0.5, 0.5])
    assert type(got) is np.float64 or got.shape == (1,)
    np.testing.assert_allclose(got, expected, rtol=1e-14)


def test_read_only_arrays_and_booleans():
    p = np.asarray([0.25, 0.75])
    p.flags.writeable = False
    assert kl_probs(p, p) == 0
    assert kl_probs([True, False], [0.5, 0.5]) == pytest.approx(np.log(2))


@pytest.mark.parametrize("function", [kl_probs, kl_log_probs, kl_logits, kl_terms, cross_entropy])
def test_the_axis_of_events_is_not_broadcast(function):
    for p, q in (([1.0], [0.25, 0.75]), (1.0, [0.25, 0.75]), (np.ones((3, 1)), np.full((3, 2), 0.5))):
        for pair in ((p, q), (q, p)):
            with pytest.raises(ShapeError, match="equal numbers of events"):
                function(*map(np.asarray, pair))
    with pytest.raises(ShapeError, match="equal numbers of events along axis 0"):
        function(np.full((2, 2), 0.5), [0.5, 0.5], axis=0)
    with pytest.raises(ShapeError, match="equal numbers of events"):
        divergence([1.0], [0.25, 0.75], "js")
    with pytest.raises(ShapeError, match="equal numbers of events"):
        tilt([0.5, 0.5], [1.0], 1.0)
    with pytest.raises(ShapeError, match="equal numbers of events"):
        best_of_n_policy([0.5, 0.5], [1.0], 2)


def test_labels_elsewhere_are_matched_or_refused():
    ref, reward = pd.Series([0.5, 0.25, 0.25], index=NAMES), pd.Series([2.0, 0.0, 1.0], index=["c", "a", "b"])
    best = tilt(ref, reward, 1.0)
    np.testing.assert_array_equal(best.policy, tilt([0.5, 0.25, 0.25], [0.0, 1.0, 2.0], 1.0).policy)
    lengths = pd.Series([1, 2], index=["b", "a"])
    sums = pd.Series([3.0, 1.0], index=["a", "b"])
    assert kl_per_token(sums, lengths, [0, 1]).value == kl_per_token([3.0, 1.0], [2, 1], [0, 1]).value
    with pytest.raises(ArrayTypeError, match="loc without labels, got a Series"):
        Normal(loc=pd.Series([0.0]), scale=1.0)
    with pytest.raises(ArrayTypeError, match="without labels"):
        Categorical(probs=ref)
    with pytest.raises(KullbackError, match="masked"):
        Normal(loc=np.ma.masked_array([0.0], mask=[True]), scale=1.0)
    with pytest.raises(ArrayTypeError, match="weights without labels"):
        fit_forward(Normal, samples=[0.0, 1.0], weights=pd.Series([0.5, 0.5]))
    with pytest.raises(KullbackError, match="masked"):
        fit_forward(Normal, samples=np.ma.masked_array([0.0, 1.0, 2.0], mask=[False, True, False]))


def test_plain_arrays_are_not_copied():
    p, tensor = np.asarray([0.25, 0.75]), torch.tensor([0.25, 0.75])
    got = plain_arrays(p, tensor, 1.0)
    assert got[0] is p
    assert got[1] is tensor
    assert got[2] == 1.0


def test_measure_matches_labels():
    p, q = pd.Series(P, index=NAMES), pd.Series(Q[ORDER], index=OTHER_ORDER)
    assert measure(p, q).value == pytest.approx(KL, rel=1e-13)
    with pytest.raises(LabelError):
        measure(p, pd.Series(Q, index=["a", "b", "d"]))


@pytest.mark.parametrize("loc", ["a", None, [None], 1j, [[1, 2], [1]], {}, np.asarray([1j]), torch.tensor(1j)])
def test_parameters_that_are_not_numbers_are_refused(loc):
    with pytest.raises(ArrayTypeError, match=r"Normal's loc to be (real )?numbers"):
        Normal(loc=loc, scale=1.0)


def test_functions_of_tensors_name_the_argument_that_is_not_a_tensor():
    rewards = np.ones((1, 2))
    for function, name in (
        (lambda: aggregate_tokens(rewards), "values"),
        (lambda: group_advantages([1.0, 2.0], [0, 0]), "rewards"),
        (lambda: gae(rewards, rewards), "rewards"),
        (lambda: linear_token_kl(rewards, rewards, rewards, rewards), "hidden_p"),
    ):
        with pytest.raises(ArrayTypeError, match=f"expected {name} to be a tensor"):
            function()
    for temperature in ("a", None, 0, float("nan")):
        with pytest.raises(KullbackError, match="temperature"):
            token_kl([1.0, 2.0], [1.0, 2.0], temperature=temperature)
    with pytest.raises(ArrayTypeError, match="real"):
        token_kl(torch.tensor([1j, 1]), torch.tensor([1j, 1]))


@pytest.mark.parametrize("missing", [np.nan, None])
def test_a_missing_label_is_one_label(missing):
    counts = pd.Series([1.0, 2.0, missing, missing, 1.0]).value_counts(dropna=False, normalize=True)
    others = pd.Series([1.0, missing, 2.0, 2.0, 1.0]).value_counts(dropna=False, normalize=True)
    # The events 1, 2 and missing have (0.4, 0.2, 0.4) and (0.4, 0.4, 0.2).
    assert kl_probs(counts, others) == pytest.approx(0.2 * np.log(0.5) + 0.4 * np.log(2))


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_the_tolerance_of_a_sum_does_not_depend_on_the_byte_order(dtype):
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.3, 0.3, 0.3, 0.1])
    assert kl_probs(p, q.astype(dtype)) == pytest.approx(kl_probs(p, q), rel=1e-6)
