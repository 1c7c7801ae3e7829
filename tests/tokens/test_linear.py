"""linear_token_kl: agreement with the naive computation, memory use, masks and errors."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kullback.errors import ArrayTypeError, ShapeError, SupportError
from kullback.tokens import linear_token_kl, token_kl, token_stats
from kullback.tokens.engine import compiled_rows, torch_rows


def models(positions=(3, 5), vocabulary=17, width_p=4, width_q=6, dtype=torch.float64, biases=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    heads = [make(*positions, width_p), make(vocabulary, width_p), make(*positions, width_q), make(vocabulary, width_q)]
    return heads, {"bias_p": make(vocabulary), "bias_q": make(vocabulary)} if biases else {}


def logits_of(heads, biases):
    hidden_p, weight_p, hidden_q, weight_q = heads
    return hidden_p @ weight_p.T + biases.get("bias_p", 0), hidden_q @ weight_q.T + biases.get("bias_q", 0)


def naive(p, q, temperature=1.0):
    log_p, log_q = (p / temperature).log_softmax(-1), (q / temperature).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 256])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradients_agree_with_the_naive_computation(chunk, biases, temperature):
    heads, biases = models(biases=biases)
    inputs = [*heads, *biases.values()]
    expected = naive(*logits_of(heads, biases), temperature)
    got = linear_token_kl(*heads, **biases, chunk=chunk, temperature=temperature).kl
    assert got.shape == (3, 5)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    weights = torch.linspace(-1, 2, 15, dtype=torch.float64).reshape(3, 5)
    gradients = [torch.autograd.grad((value * weights).sum(), inputs) for value in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-13)


def test_gradients_agree_with_finite_differences():
    heads, biases = models((3,), 5, 2, 3)
    mask = torch.tensor([1, 0, 1])

    def function(*inputs):
        return linear_token_kl(*inputs[:4], bias_p=inputs[4], bias_q=inputs[5], mask=mask, chunk=1).kl

    assert torch.autograd.gradcheck(function, (*heads, *biases.values()))


def test_the_chunk_size_does_not_change_the_result():
    heads, biases = models((40,), 300, 8, 8, dtype=torch.float32)
    whole = linear_token_kl(*heads, **biases, chunk=40).kl
    for chunk in (1, 7, 39, 1000):
        torch.testing.assert_close(linear_token_kl(*heads, **biases, chunk=chunk).kl, whole, rtol=1e-5, atol=1e-6)


def test_a_frozen_reference_has_no_gradient_and_no_grad_mode_is_supported():
    heads, _ = models(biases=False)
    frozen = [head.detach() for head in heads[2:]]
    got = linear_token_kl(*heads[:2], *frozen).kl
    got.sum().backward()
    assert heads[0].grad is not None
    assert frozen[1].grad is None
    with torch.no_grad():
        without_gradient = linear_token_kl(*heads).kl
    assert not without_gradient.requires_grad
    assert torch.equal(without_gradient, got.detach())


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_masked_positions_are_zero_for_any_hidden_states(dtype):
    heads, biases = models()
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    with torch.no_grad():
        heads[0][mask == 0] = float("nan")
        heads[2][mask == 0] = float("inf")
    got = linear_token_kl(*heads, **biases, mask=mask.to(dtype), chunk=3).kl
    assert (got[mask == 0] == 0).all()
    clean = [heads[0][mask == 1], heads[1], heads[2][mask == 1], heads[3]]
    expected = naive(*logits_of(clean, biases))
    torch.testing.assert_close(got[mask == 1], expected, rtol=1e-12, atol=0)
    got.sum().backward()
    for given in (*heads, *biases.values()):
        assert torch.isfinite(given.grad).all()
    assert (heads[0].grad[mask == 0] == 0).all()
    assert (heads[0].grad[mask == 1] != 0).all()


def test_an_all_false_mask_gives_a_differentiable_zero():
    heads, biases = models()
    with torch.no_grad():
        heads[0][...] = float("nan")
    got = linear_token_kl(*heads, **biases, mask=torch.zeros(3, 5, dtype=torch.bool)).kl
    assert (got == 0).all()
    got.sum().backward()
    for given in (*heads, *biases.values()):
        assert (given.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_identical_models_give_exactly_zero_value_and_gradient(dtype):
    (hidden, weight, _, _), _ = models((6,), 1000, 16, dtype=dtype, biases=False)
    heads = [hidden, weight, hidden.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()]
    got = linear_token_kl(*heads, chunk=4).kl
    assert (got == 0).all()
    got.sum().backward()
    for given in heads:
        assert (given.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_are_not_rounded_to_half_precision(dtype):
    heads, biases = models((7,), 100, 16, 16, dtype=dtype)
    got = linear_token_kl(*heads, **biases, chunk=4, token_weights=torch.ones(7))
    assert got.kl.dtype == torch.float32
    wide = [t.detach().double().requires_grad_() for t in heads]
    wide_biases = {name: t.detach().double().requires_grad_() for name, t in biases.items()}
    expected = naive(*logits_of(wide, wide_biases))
    torch.testing.assert_close(got.kl.double(), expected, rtol=2e-6, atol=0)
    got.kl.sum().backward()
    expected.sum().backward()
    for narrow, exact in zip([*heads, *biases.values()], [*wide, *wide_biases.values()], strict=True):
        assert narrow.grad.dtype == dtype
        # The result alone is rounded to half precision.
        torch.testing.assert_close(narrow.grad.double(), exact.grad, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("cap", [0.5, 2.0, 30.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])
def test_capped_heads_of_close_models(cap, scale):
    # The logits of q are computed by their difference from p; at a scale of 100, tanh is 1 to rounding.
    generator = torch.Generator().manual_seed(0)
    weight, hidden, change = (torch.randn(*shape, generator=generator).double() for shape in ((9, 4), (6, 4), (6, 4)))
    weight, hidden_q = scale * weight, (hidden + 0.3 * hidden.abs() * change).requires_grad_()
    targets = torch.tensor([0, 8, 3, 3, 5, 1])
    got = linear_token_kl(hidden, weight, hidden_q, weight, targets=targets, softcap_p=cap, softcap_q=cap)
    p, q = (cap * torch.tanh(h @ weight.T / cap) for h in (hidden, hidden_q))
    expected = token_stats(p, q, targets)
    for name in ("kl", "log_prob_q"):
        values = [getattr(stats, name) for stats in (got, expected)]
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-12)
        gradients = [torch.autograd.grad(value.sum(), hidden_q, retain_graph=True)[0] for value in values]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10 * scale)
    narrow = linear_token_kl(
        hidden.float(), weight.float(), hidden_q.float(), weight.float(), softcap_p=cap, softcap_q=cap
    )
    torch.testing.assert_close(narrow.kl.double(), expected.kl, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("cap", [None, 4.0])
@pytest.mark.parametrize("known", ["kl", "mixed", "wrong", None])
def test_statistics_and_gradients_with_caps_scales_and_known_weights(cap, known):
    heads, biases = models((6,), 40, 5, 3)
    targets = torch.tensor([0, 39, 7, 7, 20, 1])
    weights = {"kl": torch.linspace(0.2, 1, 6), "log_prob_p": -torch.arange(6.0), "js": torch.ones(6)}
    weights = {name: w.double() for name, w in weights.items()}
    if known == "kl":
        weights = {"kl": weights["kl"]}
    given = {"kl": weights["kl"], "mixed": weights, "wrong": {"kl": torch.ones(6)}, None: None}[known]
    got = linear_token_kl(
        *heads, **biases, targets=targets, token_weights=given, temperature=0.7, softcap_p=cap, softcap_q=cap,
        logit_scale_p=1.3, logit_scale_q=0.5, chunk=4,
    )  # fmt: skip

    def transformed(z, scale):
        z = z * scale
        return (z if cap is None else cap * torch.tanh(z / cap)) / 0.7

    p, q = (transformed(z, scale) for z, scale in zip(logits_of(heads, biases), (1.3, 0.5), strict=True))
    expected = token_stats(p, q, targets)
    inputs = [*heads, *biases.values()]
    gradients = []
    for stats in (got, expected):
        loss = 3 * sum((getattr(stats, name) * w).sum() for name, w in weights.items())
        gradients.append(torch.autograd.grad(loss, inputs, retain_graph=True))
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    for name in ("kl", "reverse_kl", "js", "entropy_p", "entropy_q", "log_prob_p", "log_prob_q", "total_variation"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-11, atol=1e-13)


def test_known_weights_save_the_products_of_the_backward_pass():
    heads, _ = models((64,), 500, 8, 8, dtype=torch.float32, biases=False)
    frozen = [head.detach() for head in heads[2:]]
    counts = {}
    for name, weights, trained in (("six", None, heads[:2]), ("four", torch.ones(64), heads[:2]),
                                   ("three", torch.ones(64), [heads[0], heads[1].detach()])):  # fmt: skip
        with torch.profiler.profile() as profile:
            linear_token_kl(*trained, *frozen, token_weights=weights, chunk=64).kl.sum().backward()
        counts[name] = sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm_"))
    assert counts == {"six": 6, "four": 4, "three": 3}


@pytest.mark.parametrize("kl", [7e-6, 7e-8])
def test_a_small_kl_keeps_its_digits_in_float32(kl):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(32, 64, generator=generator), torch.randn(8000, 64, generator=generator) / 8
    other = weight + (2 * kl) ** 0.5 * torch.randn(8000, 64, generator=generator) / 8
    got = linear_token_kl(hidden, weight, hidden, other).kl
    exact = linear_token_kl(hidden.double(), weight.double(), hidden.double(), other.double()).kl
    assert exact.median().item() == pytest.approx(kl, rel=0.3)
    assert (got >= 0).all()
    assert ((got - exact) / exact).abs().median() < (1e-3 if kl > 1e-6 else 1e-2)


@pytest.mark.parametrize("changed", ["hidden", "weight", "both", "shared head"])
@pytest.mark.parametrize("scale", [1e-3, 1e-5])
@pytest.mark.parametrize("implementation", ["compiled", "torch"])
def test_gradients_of_nearly_equal_models_keep_their_digits(changed, scale, implementation, monkeypatch):
    if implementation == "torch":
        monkeypatch.setattr(compiled_rows, "applies", lambda *logits: False)
        monkeypatch.setattr(torch_rows, "_BLOCK_ENTRIES", 2000)  # several blocks of rows
    generator = torch.Generator().manual_seed(5)
    hidden, weight = torch.randn(12, 32, generator=generator), torch.randn(900, 32, generator=generator) / 2
    bias = torch.randn(900, generator=generator)

    def near(tensor):
        return tensor + scale * torch.randn(tensor.shape, generator=generator)

    hidden_q = near(hidden) if changed != "weight" else hidden.clone()
    weight_q = near(weight) if changed in ("weight", "both") else weight if changed == "shared head" else weight.clone()
    targets = torch.arange(12)
    outcomes = []
    for dtype in (torch.float32, torch.float64):
        p, w, q, b = (t.detach().clone().to(dtype).requires_grad_() for t in (hidden, weight, hidden_q, bias))
        v = w if changed == "shared head" else weight_q.detach().clone().to(dtype).requires_grad_()
        stats = linear_token_kl(
            p, w, q, v, targets=targets, bias_p=b, bias_q=bias.to(dtype), chunk=5, temperature=0.8, logit_scale_p=1.2,
            logit_scale_q=1.2,
        )  # fmt: skip
        exact = (p @ w.T + b) * 1.5, (q @ v.T + bias.to(dtype)) * 1.5
        torch.testing.assert_close(stats.log_prob_q, token_stats(*exact, targets).log_prob_q, rtol=1e-4, atol=1e-5)
        assert torch.equal(stats.top1_agreement, exact[0].argmax(-1) == exact[1].argmax(-1))
        # The gradients of a shared head by both sides cancel.
        inputs = [p, q, b] if v is w else [p, q, b, w, v]
        for value in (stats.kl, stats.reverse_kl, stats.js):
            outcomes.append([value.detach(), *torch.autograd.grad(value.sum(), inputs, retain_graph=True)])
        reference = token_stats(*exact, targets)
        if dtype == torch.float64:
            for value, got in zip((reference.kl, reference.reverse_kl, reference.js), outcomes[3:], strict=True):
                expected = [value.detach(), *torch.autograd.grad(value.sum(), inputs, retain_graph=True)]
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-9 * scale)
    for narrow, wide in zip(outcomes[:3], outcomes[3:], strict=True):
        for a, e in zip(narrow, wide, strict=True):
            assert ((a.double() - e).norm() / e.norm()).item() < 1e-5


def test_masked_targets_are_ignored_and_autocast_is_followed():
    heads, _ = models((4,), 30, 6, 6, dtype=torch.float32, biases=False)
    mask = torch.tensor([1, 0, 1, 1])
    stats = linear_token_kl(*heads, targets=torch.tensor([3, -100, 0, 29]), mask=mask)
    assert stats.log_prob_p[1] == 0
    assert not stats.top1_agreement[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = linear_token_kl(*heads)
    rounded = [t.detach().bfloat16() for t in heads]
    torch.testing.assert_close(got.kl, linear_token_kl(*rounded).kl, rtol=0, atol=0)
    got.kl.sum().backward()
    assert heads[1].grad.dtype == torch.float32


def test_tokens_that_both_models_exclude():
    heads, biases = models()
    excluded = torch.arange(17) % 4 == 0
    with torch.no_grad():
        for bias in biases.values():
            bias[excluded] = -float("inf")
    got = linear_token_kl(*heads, **biases, chunk=4).kl
    p, q = logits_of(heads, biases)
    torch.testing.assert_close(got, naive(p[..., ~excluded], q[..., ~excluded]), rtol=1e-12, atol=0)
    got.sum().backward()
    for given in (*heads, *biases.values()):
        assert torch.isfinite(given.grad).all()
    assert (heads[1].grad[excluded] == 0).all()


class LargestTensor(TorchDispatchMode):
    """Records the number of entries of the largest tensor that is created in its context."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        created = func(*args, **(kwargs or {}))
        for tensor in created if isinstance(created, tuple | list) else [created]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return created


@pytest.mark.parametrize("needs_gradient", [True, False])
def test_no_tensor_is_larger_than_a_chunk_of_logits_forward_or_backward(needs_gradient):
    positions, vocabulary, width, chunk = 256, 500, 8, 16
    heads, _ = models((positions,), vocabulary, width, width, dtype=torch.float32, biases=False)
    with LargestTensor() as largest, torch.set_grad_enabled(needs_gradient):
        got = linear_token_kl(*heads, chunk=chunk).kl
        if needs_gradient:
            got.sum().backward()
    assert largest.entries == chunk * vocabulary
    with LargestTensor() as largest:
        token_kl(*logits_of(heads, {}))
    assert largest.entries == positions * vocabulary


def test_no_logits_are_saved_for_the_gradient():
    heads, _ = models((64,), 500, 8, 8, dtype=torch.float32, biases=False)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        linear_token_kl(*heads, chunk=16)
    assert max(kept, default=0) <= 500 * 8


def test_invalid_arguments_raise():
    (hidden_p, weight_p, hidden_q, weight_q), biases = models()
    with pytest.raises(ShapeError, match="one vocabulary, got weight_p with 17 tokens and weight_q with 16"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q[:16])
    with pytest.raises(ShapeError, match=r"same positions.*\(3, 5\) and \(2, 5\)"):
        linear_token_kl(hidden_p, weight_p, hidden_q[:2], weight_q)
    with pytest.raises(ShapeError, match=r"hidden_q .* got \(3, 5, 6\) and \(6, 17\)"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q.T)
    with pytest.raises(ShapeError, match=r"bias_p of shape \(17,\), got \(16,\)"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, bias_p=biases["bias_p"][:16])
    with pytest.raises(ShapeError, match="mask"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, mask=torch.ones(5))
    with pytest.raises(ShapeError, match="chunk"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, chunk=0)
    with pytest.raises(SupportError, match="temperature"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, temperature=0)
    with pytest.raises(SupportError, match="softcap_q to be a positive finite number, got -30"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, softcap_q=-30)
    with pytest.raises(ShapeError, match=r"one weight for each position, shape \(3, 5\), got \(5,\) for kl"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, token_weights=torch.ones(5))
    with pytest.raises(ArrayTypeError, match="weights of 'total_variation'"):
        linear_token_kl(hidden_p, weight_p, hidden_q, weight_q, token_weights={"total_variation": torch.ones(3, 5)})
