"""A callback for Lightning that logs forward KL and the entropy floor of a cross-entropy loss."""

from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from math import inf
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

from kullback.errors import ArrayTypeError, ShapeError, SupportError
from kullback.numerics.arguments import is_number, shown
from kullback.numerics.arrays import as_numpy
from kullback.samples.clustered_mean import kl_per_token
from kullback.tokens.entropy_floor import EmpiricalConditional

__all__ = ["ForwardKL"]

_IGNORED = -100  # the class of examples that torch.nn.functional.cross_entropy ignores


def _log_prob(module: LightningModule, batch: Any) -> Tensor:
    """The log-probability of each example's class, from the logits that the module returns.

    Raises:
        ArrayTypeError: The classes are not whole numbers.
        ShapeError: The classes or the logits have another shape, or a class is outside of the logits.
    """
    inputs, classes = batch
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise ArrayTypeError(f"expected whole numbers as classes, got {classes.dtype}; pass log_prob for other targets")
    logits = module(inputs)
    if classes.ndim != 1 or logits.ndim != 2 or len(logits) != len(classes):
        raise ShapeError(
            f"expected logits of shape (examples, classes) and one class for each example, got shapes "
            f"{tuple(logits.shape)} and {tuple(classes.shape)}; pass log_prob for other modules"
        )
    classes = classes.long().where(classes != _IGNORED, 0)
    outside = (classes < 0) | (classes >= logits.shape[-1])
    if bool(outside.any()):
        raise ShapeError(
            f"expected classes from 0 to {logits.shape[-1] - 1}, as many as the module has logits, got "
            f"{int(classes[outside][0])}"
        )
    # A log-softmax in half precision would be rounded to three digits.
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    return logits.log_softmax(-1).gather(-1, classes[:, None])[:, 0]


def _require_pair(batch: Any) -> tuple[Tensor, Tensor]:
    """The inputs and the classes of a batch; ArrayTypeError unless it is a pair of tensors of equally many examples."""
    is_pair = isinstance(batch, list | tuple) and len(batch) == 2
    if not is_pair or not all(isinstance(part, Tensor) and part.ndim for part in batch):
        parts = batch if isinstance(batch, list | tuple) else ()
        of = f" of {', '.join(type(part).__name__ for part in parts)}" if parts else ""
        raise ArrayTypeError(
            f"expected each batch to be a pair (inputs, classes) of tensors, got {type(batch).__name__}{of}; convert "
            "the batches, for example by the collate_fn of the DataLoader"
        )
    inputs, classes = batch
    if len(inputs) != len(classes):
        raise ShapeError(f"expected one class for each example, got {len(inputs)} inputs and {len(classes)} classes")
    return inputs, classes


def _as_key(example: Tensor) -> tuple[tuple[int, ...], bytes]:
    """The shape and the bytes of an input, which are equal for equal inputs."""
    example = example.detach().cpu()
    if example.is_floating_point() or example.is_complex():
        example = example + 0.0  # -0.0 becomes 0.0
    return tuple(example.shape), as_numpy(example).tobytes()


class ForwardKL(Callback):
    """Logs KL(data || model) of a Lightning module that is trained with cross-entropy, and the entropy floor.

    cross-entropy = entropy floor + KL(data || model)

    The entropy floor is the entropy of the classes given equal inputs, which is the minimum of the cross-entropy over
    all functions of the input on these examples. On training examples the difference is exactly the KL from their
    empirical distribution. On held-out examples its mean is larger than the KL from the distribution of the data.

    These keys are logged at the end of every training epoch, in nats per example unless stated otherwise:
    `forward_kl/cross_entropy`, `forward_kl/entropy_floor`, `forward_kl/forward_kl`, `forward_kl/forward_kl_std_error`
    and `forward_kl/contexts_seen_once`, the fraction of examples whose input occurs once. Examples of class -100 are
    not counted, as in PyTorch's cross-entropy.

    Args:
        batches: The examples to evaluate on, as batches of (inputs, classes) in a fixed order, for example a DataLoader
            that does not shuffle.
        log_prob: A function of the module and a batch that returns the log-probability of each example's class, shape
            (examples,). By default the module's output is interpreted as logits.
        entropy: The entropy of the class given the input in nats per example, if it is known. It replaces the entropy
            floor of the examples.
        name: The prefix of the logged keys.

    Raises:
        ArrayTypeError: The batches cannot be iterated over, can be read only once, or are not pairs of tensors;
            `log_prob` is not a function, `entropy` is not a number >= 0, or `name` is not a string.
        ShapeError: `log_prob` does not return one number per example, or there are no examples.

    Example:
        >>> class Classifier(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(1, 2)
        ...     def forward(self, inputs):
        ...         return self.layer(inputs)
        >>> batches = [(torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([0, 1, 0]))]
        >>> callback = ForwardKL(batches)  # passed to Trainer(callbacks=[callback])
        >>> values = callback.measure(Classifier())
        >>> round(values["entropy_floor"], 4)
        0.4621
        >>> abs(values["cross_entropy"] - values["entropy_floor"] - values["forward_kl"]) < 1e-9
        True
    """

    def __init__(
        self,
        batches: Iterable[Any],
        *,
        log_prob: Callable[[LightningModule, Any], Tensor] = _log_prob,
        entropy: float | None = None,
        name: str = "forward_kl",
    ) -> None:
        if not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
            raise ArrayTypeError(
                f"expected batches of examples, such as a DataLoader or a list of pairs, got {shown(batches)}"
            )
        if isinstance(batches, Iterator):
            raise ArrayTypeError(
                f"expected batches that can be read in every epoch, such as a list or a DataLoader, got "
                f"{type(batches).__name__}, which can be read once"
            )
        if entropy is not None and not (is_number(entropy) and 0 <= entropy < inf):
            raise ArrayTypeError(f"expected entropy to be a finite number of nats, 0 or more, got {shown(entropy)}")
        if not callable(log_prob):
            raise ArrayTypeError(f"expected log_prob to be a function of the module and a batch, got {shown(log_prob)}")
        if not isinstance(name, str):
            raise ArrayTypeError(f"expected name to be the prefix of the keys, got {shown(name)}")
        self.batches, self.log_prob, self.entropy, self.name = batches, log_prob, entropy, name

    def measure(self, module: LightningModule) -> dict[str, float]:
        """Measure cross-entropy, entropy floor and forward KL of the module on the examples.

        Args:
            module: The module, which is put into evaluation mode for the measurement.

        Returns:
            The logged values by key, without the prefix, in nats per example except `contexts_seen_once`.

        Raises:
            ArrayTypeError: The module is not a `LightningModule`, or the batches are not pairs of tensors.
            ShapeError: `log_prob` does not return one number per example, or there are no examples.
            SupportError: `log_prob` returns a number above 0.
        """
        if not isinstance(module, LightningModule):
            raise ArrayTypeError(f"expected a LightningModule, got {shown(module)}")
        empirical, pairs, surprises = EmpiricalConditional(), [], []
        mode = module.training
        module.eval()
        try:
            for batch in self.batches:
                inputs, classes = _require_pair(batch)
                with torch.no_grad():
                    values = -self.log_prob(module, [part.to(module.device) for part in batch]).double()
                if classes.ndim != 1 or values.shape != classes.shape:
                    raise ShapeError(
                        f"expected log_prob of shape ({len(classes)},), one value per example, got "
                        f"{tuple(values.shape)}"
                    )
                if bool((values < -1e-6).any()):
                    raise SupportError(
                        f"expected log_prob to return numbers that are at most 0, got {-float(values.min())}"
                    )
                counted = (classes != _IGNORED).tolist()
                surprises += compress(values.tolist(), counted)
                pairs += compress(zip(map(_as_key, inputs), classes.tolist(), strict=True), counted)
        finally:
            module.train(mode)
        if not pairs:
            raise ShapeError("expected at least one example with a class in batches, got none")
        for pair in pairs:
            empirical.add(*pair)
        floor = empirical.floor()
        minima = [empirical.surprise(*pair) if self.entropy is None else self.entropy for pair in pairs]
        excess = [surprise - minimum for surprise, minimum in zip(surprises, minima, strict=True)]
        kl = kl_per_token(excess, [1] * len(excess), range(len(excess)))
        return {
            "cross_entropy": sum(surprises) / len(surprises),
            "entropy_floor": floor.nats if self.entropy is None else self.entropy,
            "forward_kl": kl.value,
            "forward_kl_std_error": kl.std_error,
            "contexts_seen_once": floor.seen_once,
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        pl_module.log_dict({f"{self.name}/{key}": value for key, value in self.measure(pl_module).items()})
