"""linear_token_kl: agreement with the naive computation, memory use, masks and errors."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kullback.errors import ShapeError, SupportError
from kullback.tokens import linear_token_kl, token_kl


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


def test_bfloat16_states_give_the_float32_kl_of_the_bfloat16_logits():
    heads, biases = models((7,), 100, 16, 16, dtype=torch.bfloat16)
    got = linear_token_kl(*heads, **biases, chunk=7).kl
    assert got.dtype == torch.float32
    p = torch.nn.functional.linear(heads[0], heads[1], biases["bias_p"])
    q = torch.nn.functional.linear(heads[2], heads[3], biases["bias_q"])
    torch.testing.assert_close(got, token_kl(p, q), rtol=1e-6, atol=0)
    got.sum().backward()
    assert heads[1].grad.dtype == torch.bfloat16
    assert torch.isfinite(heads[1].grad).all()


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
        linear_token_kl(*heads, chunk=16).kl
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
