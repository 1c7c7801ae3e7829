"""Forward KL and entropy floor in Lightning: the minimum of cross-entropy is the empirical distribution."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from kullback.errors import ArrayTypeError, ShapeError, SupportError
from kullback.integrations.lightning import ForwardKL

# Warnings of Lightning about PyTorch's tree utilities and about small data loaders.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LeafSpec:FutureWarning", "ignore:.*does not have many workers", "ignore:.*The number of training batches"
)

# The number of each class for each context. A linear model of one-hot contexts can represent all their shares.
COUNTS = np.array([[6, 2, 0], [1, 1, 2], [0, 0, 1]])


class Linear(pl.LightningModule):
    def __init__(self, inputs: int, classes: int, rate: float) -> None:
        super().__init__()
        self.layer, self.rate = torch.nn.Linear(inputs, classes, bias=False), rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def training_step(self, batch: Any, _index: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(self.parameters(), lr=self.rate, max_iter=40, line_search_fn="strong_wolfe")


def fit(module: Linear, examples: TensorDataset, callback: ForwardKL, epochs: int, path: Path) -> list[Any]:
    rows: list[Any] = []

    class KeepMetrics(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            rows.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[callback, KeepMetrics()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
    )
    trainer.fit(module, DataLoader(examples, len(examples)))
    return rows


def test_cross_entropy_converges_to_the_entropy_floor(tmp_path: Path) -> None:
    contexts, classes = zip(*[(c, k) for c in range(3) for k in range(3) for _ in range(COUNTS[c, k])], strict=True)
    examples = TensorDataset(torch.eye(3)[list(contexts)], torch.tensor(classes))
    torch.manual_seed(0)
    module = Linear(3, 3, rate=1.0)
    rows = fit(module, examples, ForwardKL(DataLoader(examples, 4)), 4, tmp_path)
    shares = COUNTS / COUNTS.sum(1, keepdims=True)
    floor = -sum(n * math.log(s) for n, s in zip(COUNTS.flat, shares.flat, strict=True) if n) / COUNTS.sum()
    assert rows[-1]["forward_kl/entropy_floor"] == pytest.approx(floor)
    assert rows[-1]["forward_kl/contexts_seen_once"] == pytest.approx(1 / 13)
    with torch.no_grad():
        learned = module(torch.eye(3)).double().softmax(-1).numpy()
    # KL(empirical || model) by SciPy.
    from scipy.special import rel_entr

    kl = (COUNTS.sum(1) * rel_entr(shares, learned).sum(1)).sum() / COUNTS.sum()
    assert rows[-1]["forward_kl/forward_kl"] == pytest.approx(kl, abs=1e-6)
    assert rows[-1]["forward_kl/forward_kl"] < 0.02 < rows[0]["forward_kl/forward_kl"] + 0.02
    np.testing.assert_allclose(learned[:2], shares[:2], atol=0.05)


def test_every_image_of_the_digits_occurs_once(tmp_path: Path) -> None:
    images, classes = load_digits(return_X_y=True)
    examples = TensorDataset(torch.from_numpy(images[:600] / 16).float(), torch.from_numpy(classes[:600]))
    torch.manual_seed(0)
    rows = fit(Linear(64, 10, 1.0), examples, ForwardKL(DataLoader(examples, 64)), 2, tmp_path)
    for row in rows:
        assert row["forward_kl/entropy_floor"] == 0.0
        assert row["forward_kl/contexts_seen_once"] == 1.0
        assert row["forward_kl/forward_kl"] == pytest.approx(row["forward_kl/cross_entropy"])
    assert rows[1]["forward_kl/forward_kl"] <= rows[0]["forward_kl/forward_kl"] < 0.01


def test_a_log_prob_of_another_shape_is_rejected() -> None:
    examples = DataLoader(TensorDataset(torch.eye(3), torch.arange(3)), 3)
    callback = ForwardKL(examples, log_prob=lambda module, batch: module(batch[0]))
    with pytest.raises(ShapeError, match="one value per example"):
        callback.measure(Linear(3, 3, 1.0))


@pytest.mark.parametrize(
    "batch",
    [{"inputs": torch.eye(3), "classes": torch.arange(3)}, torch.eye(3), (torch.eye(3),), (torch.eye(3), [0, 1, 2])],
)
def test_batches_that_are_not_pairs_of_tensors_are_refused(batch: Any) -> None:
    with pytest.raises(ArrayTypeError, match=r"pair \(inputs, classes\) of tensors"):
        ForwardKL([batch]).measure(Linear(3, 3, 1.0))


def test_batches_that_can_be_read_once_are_refused_before_training() -> None:
    with pytest.raises(ArrayTypeError, match="in every epoch"):
        ForwardKL(iter([(torch.eye(3), torch.arange(3))]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": 3}, "expected batches of examples, such as a DataLoader"),
        ({"batches": [], "log_prob": 3}, "expected log_prob to be a function"),
        ({"batches": [], "name": 3}, "expected name to be the prefix of the keys"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_training(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArrayTypeError, match=message):
        ForwardKL(**arguments)


@pytest.mark.parametrize("module", ["module", None, torch.nn.Linear, torch.nn.Linear(3, 3)])
def test_what_is_not_a_module_is_refused(module: Any) -> None:
    with pytest.raises(ArrayTypeError, match="expected a LightningModule, got"):
        ForwardKL([(torch.eye(3), torch.arange(3))]).measure(module)


def test_no_examples_and_missing_classes_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least one example"):
        ForwardKL([]).measure(Linear(3, 3, 1.0))
    with pytest.raises(ShapeError, match="one class for each example"):
        ForwardKL([(torch.eye(3), torch.arange(2))]).measure(Linear(3, 3, 1.0))


def test_inputs_of_each_dtype_are_contexts() -> None:
    inputs, classes = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 0])
    floor = 2 / 3 * math.log(2)
    for given in (inputs, inputs.bfloat16(), inputs.half(), inputs.double(), inputs.clone().requires_grad_()):
        callback = ForwardKL([(given, classes)], log_prob=lambda _, batch: torch.zeros(len(batch[1])))
        assert callback.measure(Linear(2, 2, 1.0))["entropy_floor"] == pytest.approx(floor)


def test_log_probabilities_of_half_precision_are_computed_in_float32() -> None:
    """In bfloat16, a log-softmax has three digits, and the KL of a model near the optimum was negative."""
    module = Linear(2, 3, 0.1)
    with torch.no_grad():
        module.layer.weight.copy_(torch.tensor([[math.log(2), 0.0], [0.0, 0.0], [-9.0, 9.0]]))
    module.bfloat16()
    inputs = torch.eye(2).repeat_interleave(3, dim=0).bfloat16()
    classes = torch.tensor([0, 0, 1, 2, 2, 2])
    values = ForwardKL([(inputs, classes)]).measure(module)
    logits = module(inputs).detach().double()
    assert values["cross_entropy"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, classes)), rel=1e-6)
    assert values["forward_kl"] > 0


def test_examples_of_class_minus_100_are_not_counted() -> None:
    module = Linear(2, 3, 0.1)
    inputs, classes = torch.eye(2)[[0, 0, 0, 1]], torch.tensor([0, 1, -100, -100])
    values = ForwardKL([(inputs, classes)]).measure(module)
    expected = float(torch.nn.functional.cross_entropy(module(inputs).detach(), classes))
    assert values["cross_entropy"] == pytest.approx(expected, rel=1e-6)
    assert values["entropy_floor"] == pytest.approx(math.log(2))
    narrow = ForwardKL([(inputs, torch.tensor([0, 1, 2, 2], dtype=torch.uint8))]).measure(module)
    wide = ForwardKL([(inputs, torch.tensor([0, 1, 2, 2]))]).measure(module)
    assert narrow == wide


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        ([0.0, 1.0], ArrayTypeError, "whole numbers as classes, got torch.float32"),
        ([[1, 0], [0, 1]], ShapeError, "one class for each example"),
        ([0, 3], ShapeError, "classes from 0 to 2"),
        ([0, -1], ShapeError, "classes from 0 to 2"),
    ],
)
def test_classes_that_are_none_are_refused(classes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ForwardKL([(torch.eye(2), torch.tensor(classes))]).measure(Linear(2, 3, 0.1))


def test_inputs_of_other_shapes_are_other_contexts() -> None:
    batches = [(torch.zeros(1, 2, 3), torch.tensor([0])), (torch.zeros(1, 3, 2), torch.tensor([1]))]
    values = ForwardKL(batches, log_prob=lambda _module, _batch: torch.tensor([-0.1])).measure(Linear(2, 3, 0.1))
    assert values["entropy_floor"] == 0


def test_log_probabilities_above_0_are_refused() -> None:
    callback = ForwardKL([(torch.eye(2), torch.tensor([0, 1]))], log_prob=lambda _module, _batch: torch.ones(2))
    with pytest.raises(SupportError, match=r"at most 0, got 1\.0"):
        callback.measure(Linear(2, 3, 0.1))
