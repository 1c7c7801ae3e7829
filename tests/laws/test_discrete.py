"""Mathematical properties of KL and of the other divergences between discrete distributions."""

import math
from itertools import pairwise

import array_api_strict
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kullback.discrete.divergence import divergence
from kullback.discrete.entropy import cross_entropy, entropy
from kullback.discrete.kl import kl_log_probs, kl_logits, kl_probs, kl_terms

inf = math.inf


def named(name, **parameters):
    def call(p, q, **options):
        return divergence(p, q, name, **parameters, **options)

    return call


def log(values):
    with np.errstate(divide="ignore"):
        return np.log(values)


def of_logs(form):
    def call(p, q, **options):
        if isinstance(p, torch.Tensor):
            return form(p.log(), q.log(), **options)
        xp = jnp if isinstance(p, jax.Array) else array_api_strict if hasattr(p, "__array_namespace__") else np
        xp = np if isinstance(p, (np.ndarray, list)) else xp
        with np.errstate(divide="ignore"):
            return form(xp.log(xp.asarray(p)), xp.log(xp.asarray(q)), **options)

    return call


POWERS = {f"alpha {a}": named("alpha", alpha=a) for a in (-0.5, 0, 0.5, 1, 2)}
F_DIVERGENCES = {
    "kl": kl_probs,
    "kl_log_probs": of_logs(kl_log_probs),
    "kl_logits": of_logs(kl_logits),
    **POWERS,
    **{f"tsallis {a}": named("tsallis", order=a) for a in (0, 0.3, 1, 2)},
    **{name: named(name) for name in ("js", "jeffreys", "hellinger_squared", "chi_squared", "total_variation")},
    "js 0.2": named("js", weight=0.2),
    "triangle": named(lambda t: (t - 1) ** 2 / (t + 1)),
}
CONVEX = {
    **F_DIVERGENCES,
    **{f"renyi {a}": named("renyi", order=a) for a in (0.3, 1)},
    "bhattacharyya": named("bhattacharyya"),
}
ALL = {
    **CONVEX,
    **{f"renyi {a}": named("renyi", order=a) for a in (0, 2, inf)},
    "hellinger": named("hellinger"),
}
each = pytest.mark.parametrize("name", ALL)

positive = st.floats(1e-6, 1)


@st.composite
def pairs(draw, size=None):
    entries = positive | st.just(0.0)
    least, most = (size, size) if size else (2, 8)
    p = np.asarray(draw(st.lists(entries, min_size=least, max_size=most).filter(lambda row: sum(row) > 0.01)))
    kind = draw(st.sampled_from(["free", "near", "same"]))
    if kind == "free":
        row = st.lists(entries, min_size=len(p), max_size=len(p)).filter(lambda row: sum(row) > 0.01)
        q = np.asarray(draw(row))
    else:
        noise = np.asarray(draw(st.lists(st.floats(-1, 1), min_size=len(p), max_size=len(p))))
        q = p * (1 + (draw(st.floats(1e-15, 0.1)) * noise if kind == "near" else 0))
    return p / p.sum(), q / q.sum()


laws = settings(max_examples=20, deadline=None, derandomize=True)


def rounding_slack(value):
    """The effect of rounding p and q, which changes a divergence by its derivative times 1e-16."""
    return 1e-11 * value + 1e-14 * math.sqrt(max(value, 0)) + 1e-15 if value < inf else 0


@each
@laws
@given(pair=pairs())
def test_never_negative_and_zero_at_equality(name, pair):
    p, q = pair
    least = 0 if name != "triangle" else -1e-16
    assert ALL[name](p, q) >= least
    assert abs(ALL[name](p, p)) <= -least
    narrow = [side.astype(np.float32) for side in pair]
    assert ALL[name](*narrow) >= (0 if name != "triangle" else -1e-7)
    assert ALL[name](*(side[None] for side in narrow)).dtype == np.float32
    assert type(ALL[name](*narrow)) is np.float64


@each
@laws
@given(pair=pairs(), random=st.randoms(use_true_random=False))
def test_permutation_invariance(name, pair, random):
    order = list(range(len(pair[0])))
    random.shuffle(order)
    value = float(ALL[name](*pair))
    assert float(ALL[name](*(side[order] for side in pair))) == pytest.approx(
        value, rel=1e-9, abs=rounding_slack(value)
    )


@each
@laws
@given(pair=pairs(), labels=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_data_processing_inequality_for_merged_events(name, pair, labels):
    merged = [np.bincount(labels[: len(side)], side, 4) for side in pair]
    before = float(ALL[name](*pair))
    assert ALL[name](*merged) <= before + rounding_slack(before)


@each
@laws
@given(pair=pairs(size=4), noise=st.lists(st.lists(positive, min_size=3, max_size=3), min_size=4, max_size=4))
def test_data_processing_inequality_for_a_noisy_channel(name, pair, noise):
    channel = np.asarray(noise)
    channel /= channel.sum(-1, keepdims=True)
    before = float(ALL[name](*pair))
    sent = [side @ channel for side in pair]
    sent = [side / side.sum() for side in sent]
    # The sums over the channel are rounded, which changes first-order divergences by 1e-16.
    assert ALL[name](*sent) <= before + rounding_slack(before) + (1e-15 if "total" in name or "inf" in name else 0)


@pytest.mark.parametrize("name", CONVEX)
@laws
@given(
    first=pairs(size=4), second=pairs(size=4), weight=st.just(0.0) | st.floats(1e-300, 1)
)  # products that do not underflow
def test_jointly_convex(name, first, second, weight):
    mixed = [weight * a + (1 - weight) * b for a, b in zip(first, second, strict=True)]
    parts = [float(CONVEX[name](*pair)) for pair in (first, second)]
    bound = sum(w * part for w, part in ((weight, parts[0]), (1 - weight, parts[1])) if w)
    assert CONVEX[name](*mixed) <= bound + rounding_slack(bound)


@laws
@given(first=pairs(), second=pairs())
def test_product_distributions(first, second):
    products = [np.outer(a, b).ravel() for a, b in zip(first, second, strict=True)]
    for name in ("kl", "renyi 0", "renyi 0.3", "renyi 2", "renyi inf", "bhattacharyya", "jeffreys"):
        parts = float(ALL[name](*first)) + float(ALL[name](*second))
        assert float(ALL[name](*products)) == pytest.approx(parts, rel=1e-9, abs=rounding_slack(parts))
    for name, order in (("tsallis 0.3", 0.3), ("tsallis 2", 2), ("chi_squared", 2)):
        a, b = float(ALL[name](*first)), float(ALL[name](*second))
        if max(a, b) < inf:
            whole = a + b + (order - 1) * a * b
            assert float(ALL[name](*products)) == pytest.approx(whole, rel=1e-9, abs=rounding_slack(whole))
    a, b = (float(ALL["hellinger_squared"](*pair)) for pair in (first, second))
    assert float(ALL["hellinger_squared"](*products)) == pytest.approx(
        a + b - a * b, rel=1e-9, abs=rounding_slack(a + b)
    )
    for k in range(2):
        parts = float(entropy(first[k])) + float(entropy(second[k]))
        assert float(entropy(products[k])) == pytest.approx(parts, rel=1e-12, abs=1e-14)


@laws
@given(marginal=pairs(size=3), rows=st.tuples(pairs(size=4), pairs(size=4), pairs(size=4)))
def test_chain_rule(marginal, rows):
    p, q = marginal
    joint = [(side[:, None] * np.stack([row[k] for row in rows])).ravel() for k, side in enumerate((p, q))]
    parts = float(kl_probs(p, q))
    parts += sum(float(w) * float(kl_probs(*row)) for w, row in zip(p, rows, strict=True) if w)
    assert float(kl_probs(*joint)) == pytest.approx(parts, rel=1e-9, abs=rounding_slack(parts))


@laws
@given(pair=pairs())
def test_entropies(pair):
    p, q = pair
    least, crossed, kl = float(entropy(p)), float(cross_entropy(p, q)), float(kl_probs(p, q))
    assert 0 <= least <= math.log(len(p)) * (1 + 1e-15)
    assert crossed == pytest.approx(least + kl, rel=1e-12) or crossed == inf == kl
    terms = kl_terms(p, q)
    assert (terms >= 0).all()
    assert float(terms.sum()) == pytest.approx(kl, rel=1e-13)
    assert float(kl_probs(p, np.full(len(p), 1 / len(p)))) == pytest.approx(math.log(len(p)) - least, abs=1e-14)


@laws
@given(pair=pairs())
def test_inequalities_between_them(pair):
    values = {name: float(ALL[name](*pair)) for name in ALL}
    tiny = 1e-14
    assert values["total_variation"] <= math.sqrt(values["kl"] / 2) * (1 + 1e-12) + tiny  # Pinsker
    assert values["hellinger_squared"] <= values["total_variation"] + tiny
    assert values["total_variation"] <= math.sqrt(2) * values["hellinger"] + tiny
    assert values["js"] <= math.log(2) * values["total_variation"] + tiny
    assert values["kl"] <= math.log1p(values["chi_squared"]) * (1 + 1e-9) + tiny
    orders = [values[f"renyi {order}"] for order in (0, 0.3, 1, 2, inf)]
    for less, more in pairwise(orders):
        assert less <= more * (1 + 1e-9) + tiny


@each
@laws
@given(pair=pairs())
def test_libraries_agree(name, pair):
    expected = float(ALL[name](*pair)) if name != "triangle" else None
    for library in (torch.from_numpy, array_api_strict.asarray):
        p, q = (library(side) for side in pair)
        got = ALL[name](p, q)
        assert type(got) is type(p)
        assert got.dtype == p.dtype
        if expected is not None:
            assert float(got) == pytest.approx(expected, rel=1e-11, abs=1e-15)


@pytest.mark.slow
@each
def test_jax_agrees(name):
    # One shape only, because JAX compiles once for each shape.
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), size=(2, 6))
    p[0, :2], q[0, 1:3] = 0, 0
    p[1], q[1] = p[1], p[1]
    p, q = (side / side.sum(-1, keepdims=True) for side in (p, q))
    with jax.enable_x64(True):
        got = ALL[name](jnp.asarray(p), jnp.asarray(q))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, ALL[name](p, q), rtol=1e-11, atol=1e-15)
    narrow = ALL[name](*(jnp.asarray(side, dtype=jnp.float32) for side in (p, q)))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, ALL[name](p, q), rtol=1e-4, atol=1e-6 if name == "triangle" else 1e-7)


@each
def test_shapes_axes_masks_and_dtypes(name):
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(5), size=(4, 3)), rng.dirichlet(np.ones(5))
    form, value = ALL[name], ALL[name](p, q)
    assert value.shape == (4, 3)
    assert float(value[2, 1]) == pytest.approx(float(form(p[2, 1], q)), rel=1e-13)
    for axis in (0, 1, -2):
        wide = np.broadcast_to(q, p.shape)
        got = form(np.moveaxis(p, -1, axis), np.moveaxis(wide, -1, axis), axis=axis)
        np.testing.assert_allclose(got, value, rtol=1e-13)
    junk = np.full((4, 3, 2), 0.3)
    kept = np.asarray([True, False, True, True, False, True, True])
    wide = [np.insert(np.broadcast_to(side, p.shape), (1, 3), junk, axis=-1) for side in (p, q)]
    np.testing.assert_allclose(form(*wide, where=kept), value, rtol=1e-13)
    for dtype in (torch.float16, torch.bfloat16):
        # The rounding of the inputs limits the accuracy.
        rows = [torch.tensor(side[0, 0] if side.ndim > 1 else side, dtype=dtype) for side in (p, q)]
        if "log" in name:
            continue
        got = form(*rows)
        assert got.dtype == dtype
        exact = [side.double() / side.double().sum() for side in rows]
        assert float(got) == pytest.approx(float(form(*exact)), rel=torch.finfo(dtype).eps)


@pytest.mark.slow
@each
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_gradients_are_finite_at_equality_and_at_zeros(name, library):
    for p, q in (
        ([0.1, 0.2, 0.7, 0.0], [0.1, 0.2, 0.7, 0.0]),
        ([0.5, 0.5, 0.0, 0.0], [0.25, 0.5, 0.25, 0.0]),
        ([0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]),
    ):
        if name in {"kl_log_probs", "kl_logits"} and library == "torch":
            logs = [torch.tensor(log(np.asarray(side)), requires_grad=True) for side in (p, q)]
            (kl_logits if name == "kl_logits" else kl_log_probs)(*logs).backward()
            gradients = [side.grad for side in logs]
        elif name in {"kl_log_probs", "kl_logits"}:
            form = kl_logits if name == "kl_logits" else kl_log_probs
            gradients = jax.grad(form, (0, 1))(*(jnp.log(jnp.asarray(side)) for side in (p, q)))
        elif library == "torch":
            sides = [torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in (p, q)]
            ALL[name](*sides).backward()
            gradients = [side.grad for side in sides]
        else:
            gradients = jax.grad(ALL[name], (0, 1))(jnp.asarray(p), jnp.asarray(q))
        for gradient in gradients:
            assert np.isfinite(np.asarray(gradient)).all()
            if p == q:
                np.testing.assert_allclose(np.asarray(gradient), 0, atol=1e-5 if name == "triangle" else 1e-15)
            if p[-1] == 0:
                assert float(gradient[-1]) == 0
