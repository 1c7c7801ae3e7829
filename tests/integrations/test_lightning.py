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

from kullback.errors import ShapeError
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
