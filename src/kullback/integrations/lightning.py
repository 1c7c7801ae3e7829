"""Lightning: a callback that logs forward KL, and the entropy floor under a loss of cross-entropy."""

from collections.abc import Callable, Iterable
from typing import Any

from kullback.errors import MissingDependencyError

try:
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    if error.name not in ("torch", "lightning"):
        raise
    raise MissingDependencyError(f"{error.name} is missing: pip install lightning") from error

from torch import Tensor

from kullback.errors import ShapeError
from kullback.samples.clustered_mean import kl_per_token
from kullback.tokens.entropy_floor import EmpiricalConditional

__all__ = ["ForwardKL"]


def _log_prob(module: LightningModule, batch: Any) -> Tensor:
    inputs, classes = batch
    return module(inputs).log_softmax(-1).gather(-1, classes[:, None])[:, 0]


class ForwardKL(Callback):
    """Logs KL(data || model) of a Lightning module that is trained by cross-entropy, and the floor under its loss.

    cross-entropy = floor + KL(data || model), the floor being the entropy of the classes given equal inputs: no
    function of the input comes below it on these examples. On training data the KL is that to their empirical
    distribution, exactly; on other examples it is above the KL to their source on average.

    Logged at the end of every training epoch: `forward_kl/cross_entropy`, `forward_kl/entropy_floor`,
    `forward_kl/forward_kl`, its `_std_error`, all in nats an example, and `forward_kl/contexts_seen_once`, a share.

    Args:
        batches: The examples to judge by, in batches of (inputs, classes): a DataLoader that does not shuffle.
        log_prob: log of what the module gives to each example's class, shape (examples,), of the module and a batch;
            by default the module's output is taken for logits.
        entropy: The source's true entropy in nats an example, where it is known: then it is the floor.
        name: What the keys begin with.

    Raises:
        ShapeError: `log_prob` does not give one number an example.

    docs/supervised.md runs an example.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        log_prob: Callable[[LightningModule, Any], Tensor] = _log_prob,
        entropy: float | None = None,
        name: str = "forward_kl",
    ) -> None:
        self.batches, self.log_prob, self.entropy, self.name = batches, log_prob, entropy, name

    def measure(self, module: LightningModule) -> dict[str, float]:
        """What is logged, now."""
        seen, pairs, surprises = EmpiricalConditional(), [], []
        mode = module.training
        module.eval()
        try:
            for batch in self.batches:
                inputs, classes = batch
                with torch.no_grad():
                    found = -self.log_prob(module, [part.to(module.device) for part in batch]).double()
                if found.shape != classes.shape:
                    raise ShapeError(
                        f"expected log_prob of shape {tuple(classes.shape)}, one an example, got {tuple(found.shape)}"
                    )
                surprises += found.tolist()
                contexts = (one.cpu().numpy().tobytes() for one in inputs)
                pairs += zip(contexts, classes.tolist(), strict=True)
        finally:
            module.train(mode)
        for pair in pairs:
            seen.add(*pair)
        floor = seen.floor()
        least = [seen.surprise(*pair) if self.entropy is None else self.entropy for pair in pairs]
        above = [surprise - low for surprise, low in zip(surprises, least, strict=True)]
        kl = kl_per_token(above, [1] * len(above), range(len(above)))
        return {
            "cross_entropy": sum(surprises) / len(surprises),
            "entropy_floor": floor.nats if self.entropy is None else self.entropy,
            "forward_kl": kl.value,
            "forward_kl_std_error": kl.std_error,
            "contexts_seen_once": floor.seen_once,
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        pl_module.log_dict({f"{self.name}/{key}": value for key, value in self.measure(pl_module).items()})
