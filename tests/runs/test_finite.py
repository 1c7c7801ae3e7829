"""The first value that is not finite is named."""

import pytest
import torch

from kullback.errors import InputError
from kullback.runs.finite import (
    require_finite_gradients,
    require_finite_loss,
    require_finite_step,
    require_finite_weights,
)


def test_the_weight_and_the_index_are_named() -> None:
    model = torch.nn.Linear(3, 2)
    require_finite_weights(model, step=4)
    require_finite_gradients(model, step=4)  # there are none yet
    with torch.no_grad():
        model.weight[1, 2] = torch.inf
    with pytest.raises(InputError, match=r"^step 4: expected finite weights, got inf at index \(1, 2\) of weight"):
        require_finite_weights(model, step=4)


def test_finite_weights_whose_norm_overflows_are_accepted() -> None:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.fill_(3e38)
    require_finite_weights(model, step=4)
    with torch.no_grad():
        model.bias[1] = torch.nan
    with pytest.raises(InputError, match=r"got nan at index 1 of bias"):
        require_finite_weights(model, step=4)


def test_the_gradient_is_named() -> None:
    model = torch.nn.Linear(3, 2)
    model(torch.full((1, 3), torch.nan)).sum().backward()
    with pytest.raises(InputError, match=r"^step 5: expected finite gradients, got nan at index .* of weight"):
        require_finite_gradients(model, step=5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop])
def test_after_a_step_the_gradient_is_named_as_the_cause(optimizer: type[torch.optim.Optimizer], value: float) -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.ones(2, 3), torch.ones(2)
    model.weight.grad[1, 0] = value
    optimizer(model.parameters(), lr=1e-4).step()  # type: ignore[call-arg]
    message = rf"^step 5: expected finite gradients, got {value} at index \(1, 0\) of weight"
    with pytest.raises(InputError, match=message):
        require_finite_step(list(model.named_parameters()), step=5)


def test_after_a_step_the_weight_is_named_if_the_gradients_are_finite() -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.ones(2, 3), torch.full((2,), 3e38)
    torch.optim.SGD(model.parameters(), lr=10.0).step()
    with pytest.raises(InputError, match=r"^step 5: expected finite weights, got -inf at index 0 of bias"):
        require_finite_step(list(model.named_parameters()), step=5)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_is_refused(loss: float) -> None:
    require_finite_loss(1.0, step=1)
    with pytest.raises(InputError, match=f"step 1: expected a finite loss, got {loss}"):
        require_finite_loss(loss, step=1)
