"""token_kl: values, gradients, precision, masks and errors."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch

from kullback.discrete.kl import kl_logits
from kullback.errors import KullbackError, ShapeError, SupportError
from kullback.tokens import token_kl

inf = float("inf")


def naive(p, q, temperature=1.0):
    log_p, log_q = (p / temperature).log_softmax(-1), (q / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def models(*shape, scale=1.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(*shape, dtype=torch.float64, generator=generator) * 2
    return p.to(dtype), (p + scale * torch.randn(*shape, dtype=torch.float64, generator=generator)).to(dtype)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.5])
def test_value_and_gradients_agree_with_the_naive_sum(temperature):
    p, q = (logits.requires_grad_() for logits in models(2, 3, 11))
    weights = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
    got, expected = token_kl(p, q, temperature=temperature), naive(p, q, temperature)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad((value * weights).sum(), (p, q)) for value in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-14)
    assert torch.autograd.gradcheck(lambda p, q: token_kl(p, q, temperature=temperature), (p, q))


def test_token_kl_agrees_with_kl_logits():
    # kl_logits may use a compiled kernel, which has other rounding errors.
    p, q = models(4, 30)
    torch.testing.assert_close(token_kl(p, q), kl_logits(p, q), rtol=1e-14, atol=0)


@pytest.mark.parametrize("kl", [1e-2, 1e-4, 1e-6, 1e-8])
def test_float32_is_accurate_for_a_small_kl(kl):
    p, q = models(8, 5000, scale=(2 * kl) ** 0.5, dtype=torch.float32)
    truth = token_kl(p.double(), q.double())
    assert truth.mean().item() == pytest.approx(kl, rel=0.2)
    torch.testing.assert_close(token_kl(p, q).double(), truth, rtol=3e-6, atol=0)


def test_float32_gradients_are_accurate_for_a_small_kl():
    p, q = models(8, 5000, scale=1e-4, dtype=torch.float32)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        given = [logits.to(dtype).requires_grad_() for logits in (p, q)]
        gradients.append([g.double() for g in torch.autograd.grad(token_kl(*given).sum(), given)])
    for narrow, wide in zip(*gradients, strict=True):
        assert ((narrow - wide).norm() / wide.norm()).item() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    p, q = models(3, 200, dtype=dtype)
    got = token_kl(p.requires_grad_(), q)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, token_kl(p.float(), q.float()), rtol=0, atol=0)
    torch.testing.assert_close(got, naive(p.double(), q.double()).float(), rtol=1e-5, atol=0)
    got.sum().backward()
    assert p.grad.dtype == dtype
    assert token_kl(p, q.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_identical_logits_give_exactly_zero_value_and_gradient(dtype):
    p = models(2, 50257, dtype=dtype)[0].requires_grad_()
    q = p.detach().clone().requires_grad_()
    got = token_kl(p, q)
    assert (got == 0).all()
    got.sum().backward()
    assert (p.grad == 0).all()
    assert (q.grad == 0).all()


def test_the_kl_is_non_negative_for_logits_that_differ_by_a_constant():
    p = models(64, 1000, dtype=torch.float32)[0]
    for shift in (1e-7, 0.1, 3.0, 30.0, -100.0):
        got = token_kl(p, p + shift)
        assert (got >= 0).all()
        assert (got < 1e-9).all()


def test_tokens_that_both_models_exclude_have_no_effect():
    p, q = models(2, 3, 8)
    kept = torch.arange(8) % 3 != 0
    p, q = p.masked_fill(~kept, -inf).requires_grad_(), q.masked_fill(~kept, -inf).requires_grad_()
    got = token_kl(p, q)
    torch.testing.assert_close(got, naive(p.detach()[..., kept], q.detach()[..., kept]), rtol=1e-12, atol=0)
    got.sum().backward()
    for side in (p, q):
        assert (side.grad[..., ~kept] == 0).all()
        assert torch.isfinite(side.grad).all()


def test_a_token_that_only_one_model_excludes():
    p, q = torch.tensor([0.0, 0.0, -inf]), torch.tensor([0.0, 0.0, 0.0])
    assert token_kl(p, q).item() == pytest.approx(0.4054651)
    assert token_kl(q, p).item() == inf


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masked_positions_are_zero_for_any_logits(dtype):
    p, q = models(2, 4, 6)
    mask = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0]])
    ignored = torch.tensor([float("nan"), inf, -inf, 1e308, 0.0, 1.0], dtype=torch.float64)
    p[mask == 0], q[mask == 0] = ignored, ignored.flip(0)
    p, q = p.requires_grad_(), q.requires_grad_()
    got = token_kl(p, q, mask=mask.to(dtype))
    assert (got[mask == 0] == 0).all()
    torch.testing.assert_close(got[mask == 1], naive(p, q)[mask == 1], rtol=1e-12, atol=0)
    got.sum().backward()
    for side in (p, q):
        assert (side.grad[mask == 0] == 0).all()
        assert (side.grad[mask == 1] != 0).any()
        assert torch.isfinite(side.grad).all()


def test_a_nan_logit_affects_only_its_position():
    p, q = models(3, 5)
    q[1, 2] = float("nan")
    got = token_kl(p, q)
    assert got[1].isnan()
    assert torch.isfinite(got[[0, 2]]).all()


def test_only_the_logits_are_saved_for_the_gradient():
    p, q = models(4, 1000, dtype=torch.float32)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        token_kl(p.requires_grad_(), q.requires_grad_())
    assert sum(kept.values()) <= 2 * p.numel() + 4


def test_empty_batches_are_accepted():
    p = torch.zeros(0, 7, requires_grad=True)
    token_kl(p, torch.zeros(0, 7)).sum().backward()
    assert p.grad.shape == (0, 7)


def test_invalid_arguments_raise():
    p, q = models(2, 3, 5)
    with pytest.raises(ShapeError, match="share a vocabulary"):
        token_kl(p, q[..., :4])
    with pytest.raises(ShapeError, match="same positions"):
        token_kl(p, q[:, :2])
    with pytest.raises(ShapeError, match=r"mask .* \(2, 3\), got \(2,\)"):
        token_kl(p, q, mask=torch.ones(2))
    for temperature in (0.0, -1.0, inf, float("nan")):
        with pytest.raises(SupportError, match="temperature"):
            token_kl(p, q, temperature=temperature)


def test_without_pytorch_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from kullback.errors import MissingDependencyError\n"
        "try: import kullback.tokens\n"
        "except MissingDependencyError as error: assert 'kullback[train]' in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("library", [np.asarray, jnp.asarray, lambda x: x.tolist()])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_arrays_and_lists_give_the_values_of_tensors(library, temperature):
    rng = np.random.default_rng(0)
    p = rng.normal(size=(2, 3, 5)).astype(np.float32)
    q = (p + 0.1 * rng.normal(size=p.shape)).astype(np.float32)
    log_p, log_q = (torch.log_softmax(torch.tensor(x).double() / temperature, -1).numpy() for x in (p, q))
    truth = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    got = token_kl(library(p), library(q), temperature=temperature)
    np.testing.assert_allclose(np.asarray(got), truth, rtol=1e-4)
    keep = np.asarray([[1, 0, 1], [0, 0, 1]])
    p[keep == 0] = np.nan
    for mask in (keep, keep.tolist(), keep.astype(bool)):
        masked = token_kl(library(p), library(q), mask=mask, temperature=temperature)
        np.testing.assert_array_equal(np.asarray(masked), np.where(keep, np.asarray(got), 0))
        tensor = token_kl(torch.tensor(p), torch.tensor(q), mask=mask, temperature=temperature)
        np.testing.assert_allclose(tensor, np.where(keep, truth, 0), rtol=1e-4)
    one = token_kl(library(q[0, 0]), library(q[0, 0]))
    assert float(one) == 0
    assert isinstance(one, jax.Array if library is jnp.asarray else np.float64)


@pytest.mark.parametrize(
    ("p", "q", "mask", "message"),
    [
        (np.zeros((2, 3)), torch.zeros((2, 3)), None, "numpy and torch"),
        (np.zeros((2, 3)), np.zeros((1, 3)), None, "one shape"),
        (np.zeros((2, 3)), np.zeros((2, 3)), [1], "one entry per position"),
        (torch.zeros((2, 3)), torch.zeros((2, 3)), [1], "one entry per position"),
        (torch.zeros((2, 3)), torch.zeros((2, 3)), ["a", "b"], "string 'a'"),
        (
            np.zeros((2, 3)),
            np.zeros((2, 3)),
            [1, 0.5],
            "a mask of booleans or of the numbers 0 and 1, got 0.5",
        ),
        (torch.zeros((2, 3)), torch.zeros((2, 3)), torch.tensor([1, np.nan]), "numbers 0 and 1, got nan"),
        (torch.zeros((2, 3)), torch.zeros((2, 3)), [0.0, -1.0], "numbers 0 and 1, got -1"),
        (["a"], ["b"], None, "string 'a'"),
        (
            pd.DataFrame(np.zeros((2, 3)), index=["u", "v"]),
            np.zeros((2, 3)),
            pd.Series([True, False], index=["v", "u"]),
            "mask without labels, got a Series",
        ),
        (torch.zeros((2, 0)), torch.zeros((2, 0)), None, "logits of at least one token"),
        (None, None, None, "got None"),
        (torch.zeros((2, 3)).to_sparse(), torch.zeros((2, 3)).to_sparse(), None, "to_dense"),
    ],
)
def test_other_inputs_are_refused(p, q, mask, message):
    with pytest.raises(KullbackError, match=message):
        token_kl(p, q, mask=mask)
