"""The displacement of weights, and float32 copies of weights of lower precision."""

import math

import pytest
import torch

from kullback.budget.displacement import Float32Weights, scale_displacement
from kullback.errors import BudgetError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scalings_smaller_than_a_rounding_accumulate(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    anchor = torch.randn(1000).to(dtype)
    weight = torch.nn.Parameter((anchor + 0.1 * torch.randn(1000)).to(dtype))
    expected = anchor.double() + 0.999**300 * (weight.detach().double() - anchor.double())
    copies = Float32Weights([weight])
    for _ in range(300):
        scale_displacement([copies.copy_of(weight)], [anchor], 0.999)
        copies.round()
    torch.testing.assert_close(copies.copy_of(weight).detach().double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(weight, copies.copy_of(weight).to(dtype))


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_steps_as_in_float32(optimizer_class: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(100).bfloat16(), torch.randn(50, 100).bfloat16()
    exact = torch.nn.Parameter(start.float())
    weight, other = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.ones(1))
    optimizers = optimizer_class([exact], lr=1e-5), optimizer_class([weight, other], lr=1e-5)
    copies = Float32Weights([weight, other])
    copies.replace_in(optimizers[1])
    assert len(copies) == 1
    assert copies.copy_of(other) is other
    for gradient in gradients:
        exact.grad, weight.grad = gradient.float(), gradient
        copies.take_gradients()
        for optimizer in optimizers:
            optimizer.step()
        copies.round()
    torch.testing.assert_close(copies.copy_of(weight), exact, rtol=0, atol=0)
    assert torch.equal(weight, exact.bfloat16())


def test_the_state_of_an_optimizer_is_kept_in_float32() -> None:
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    copies = Float32Weights([weight])
    copies.replace_in(optimizer)
    copies.replace_in(optimizer)  # a second call changes nothing
    [state] = optimizer.state.values()
    assert state["exp_avg"].dtype == torch.float32
    assert float(state["step"]) == 1
    copies.take_gradients()
    optimizer.step()


def test_weights_that_were_loaded_are_read() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    copies = Float32Weights([weight])
    with torch.no_grad():
        copies.copy_of(weight).add_(1e-4)
        weight[1] = 3.0
    copies.read()
    torch.testing.assert_close(copies.copy_of(weight).detach(), torch.tensor([1.0001, 3.0]))


def test_anchors_that_do_not_fit_and_factors_without_sense_are_refused() -> None:
    weight = torch.ones(2)
    for anchors, factor, said in (
        ([], 0.5, "as many anchors as weights, 1, got 0"),
        ([torch.zeros(3)], 0.5, r"an anchor of the shape \(2,\) of weight 0, got \(3,\)"),
        ([torch.zeros(2)], math.nan, "factor to be a finite number, got nan"),
        ([torch.zeros(2)], None, "factor to be a finite number, got None"),
    ):
        with pytest.raises(BudgetError, match=said):
            scale_displacement([weight], anchors, factor)
    assert weight.tolist() == [1.0, 1.0]
