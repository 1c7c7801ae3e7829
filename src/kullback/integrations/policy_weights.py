"""The weights of a policy and of its reference, wherever the processes store them."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from kullback.errors import MissingDependencyError

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise MissingDependencyError("torch is missing: pip install 'kullback[train]'") from error

from torch import Tensor

from kullback.budget.displacement import Float32Weights, scale_displacement
from kullback.doctor.forward_pass import CheckedModels, base_model
from kullback.integrations.transformers import AnyHead, Head, decoder_of, head_of, last_hidden
from kullback.integrations.transformers_reference import (
    Reference,
    evaluation_mode,
    float32_weights,
)

__all__ = ["PolicyWeights", "WholeWeights"]


class PolicyWeights(Protocol):
    """The trainable weights of a policy and their values in the reference, where the processes store them.

    `BudgetGRPOTrainer` reads and changes weights by these methods only. `WholeWeights` is for weights that are whole on
    each process, `Fsdp2Weights` (in `kullback.integrations.fsdp2`) for weights that FSDP2 shards. If the weights are
    sharded, every method but `place` is called by all processes in the same order.

    Args:
        names: The names of the weights that were trainable when the trainer was created.
        is_displaced_from_given: Whether the displacement is measured from the weights of a separate reference model.
    """

    names: list[str]
    is_displaced_from_given: bool

    def place(self, model: Any) -> bool:
        """Store the values of the reference where the weights are.

        This is called when the trainer is created, before a checkpoint is loaded, and before the first step.

        Args:
            model: The model of the trainer without wrappers.

        Returns:
            Whether this call has stored the values. False before the weights are distributed, and after the first time.
        """
        ...

    def replace_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the weights of an optimizer by the tensors that it has to change."""
        ...

    def before_step(self) -> None:
        """Prepare an optimizer step, after the last backward pass."""
        ...

    def after_step(self) -> None:
        """Complete an optimizer step."""
        ...

    def scale_displacement(self, factor: float) -> None:
        """Multiply the displacement of all trainable weights from the reference by a factor, generation included."""
        ...

    def evaluation_hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode and in the precision of training, with gradient."""
        ...

    def float32_hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode, without gradient and without 16-bit rounding."""
        ...

    def ref_hidden(self, ids: Tensor, attention: Tensor, *, float32: bool = False) -> Tensor:
        """Return the reference's hidden states, without gradient, in the precision of training or in float32."""
        ...

    def head(self, *, float32: bool = False) -> AnyHead:
        """Return the policy's output head, whole, with gradient if `float32` is false."""
        ...

    def ref_head(self, *, float32: bool = False) -> AnyHead:
        """Return the reference's output head, whole."""
        ...

    def release(self) -> None:
        """Free what measurements have gathered, after a pass without a backward pass."""
        ...

    def checked(self) -> AbstractContextManager[CheckedModels]:
        """Return a context manager with the models that the doctor checks."""
        ...

    def checked_batch(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch that the doctor checks, which is one batch for all processes if the weights are sharded."""
        ...


class WholeWeights:
    """Weights that are whole on each process: one process, or several by data parallelism.

    Args:
        model: The model of the trainer, perhaps a PEFT model.
        separate: A separate reference model, or None.
        is_low_precision: Whether forward passes of training round to 16 bits.
    """

    def __init__(self, model: Any, separate: Any, *, is_low_precision: bool) -> None:
        self.policy = base_model(model)
        self.reference = Reference(model, separate)
        self.names = self.reference.names
        self.is_displaced_from_given = self.reference.is_counterpart
        self.copies = Float32Weights(self.reference.weights)
        self._is_low_precision = is_low_precision
        with evaluation_mode(self.policy):
            self._head = head_of(self.policy)
        self._ref_head = self._reference_head()
        self._is_placed = False

    def _reference_head(self) -> AnyHead:
        head, anchor = self._head, self.reference.anchor
        if self.reference.model is not None:
            return head_of(self.reference.model)  # type: ignore[arg-type]
        if isinstance(head, Head):
            return Head(anchor(head.weight), anchor(head.bias), head.scale)  # type: ignore[arg-type]

        def ref_head(hidden: Tensor) -> Tensor:
            with self.reference.active():
                return head(hidden)

        return ref_head

    @property
    def _ref_model(self) -> Any:
        return self.policy if self.reference.model is None else self.reference.model

    def place(self, model: Any) -> bool:  # noqa: ARG002
        """Read weights that were changed outside of the trainer."""
        self.copies.read()
        is_placed, self._is_placed = self._is_placed, True
        return not is_placed

    def replace_in(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer act on the float32 copies of weights of lower precision."""
        self.copies.replace_in(optimizer)

    def before_step(self) -> None:
        """Give the float32 copies their gradients."""
        self.copies.take_gradients()

    def after_step(self) -> None:
        """Set weights of lower precision to their rounded copies."""
        self.copies.round()

    def scale_displacement(self, factor: float) -> None:
        """Multiply the displacement of all trainable weights from the weights of the reference by a factor."""
        weights = [self.copies.copy_of(weight) for weight in self.reference.weights]
        scale_displacement(weights, self.reference.anchors, factor)
        self.copies.round()

    def evaluation_hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode and in the precision of training, with gradient."""
        with evaluation_mode(self.policy):
            return decoder_of(self.policy)(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state

    def float32_hidden(self, ids: Tensor, attention: Tensor) -> Tensor:
        """Return the policy's hidden states in evaluation mode, without gradient and without 16-bit rounding."""
        with evaluation_mode(self.policy), self._float32_weights(self.policy, self.copies.copies()):
            return last_hidden(self.policy, ids, attention)

    def ref_hidden(self, ids: Tensor, attention: Tensor, *, float32: bool = False) -> Tensor:
        """Return the reference's hidden states, without gradient, in the precision of training or in float32."""
        model = self._ref_model
        precision = self._float32_weights(model, {}) if float32 else nullcontext()
        with precision, self.reference.active(), evaluation_mode(model):
            return last_hidden(model, ids, attention)

    def head(self, *, float32: bool = False) -> AnyHead:
        """Return the policy's output head."""
        if float32 and self._is_low_precision:
            return self._float32_head(self._head, self.policy, self.copies.copies())
        return _in_dtype_of(self.policy, self._head)

    def ref_head(self, *, float32: bool = False) -> AnyHead:
        """Return the reference's output head."""
        if float32 and self._is_low_precision:
            return self._float32_head(self._ref_head, self._ref_model, {})
        return _in_dtype_of(self._ref_model, self._ref_head)

    def _float32_head(self, head: AnyHead, model: Any, copies: Mapping[int, Tensor]) -> AnyHead:
        """The head with float32 weights."""
        if isinstance(head, Head):
            weight, bias = (None if w is None else copies.get(id(w), w).float() for w in (head.weight, head.bias))
            return Head(weight, bias, head.scale)  # type: ignore[arg-type]

        def float32_head(hidden: Tensor) -> Tensor:
            with self._float32_weights(model, copies):
                return head(hidden)

        return float32_head

    def _float32_weights(self, model: Any, copies: Mapping[int, Tensor]) -> AbstractContextManager[None]:
        return float32_weights(model, copies) if self._is_low_precision else nullcontext()

    def release(self) -> None:
        """Do nothing, because nothing is gathered."""

    @contextmanager
    def checked(self) -> Iterator[CheckedModels]:
        """A context manager with the models that the doctor checks."""
        as_reference = None if self.reference.model is not None else self.reference.active
        optimized = None if len(self.copies) else self.reference.policy
        yield CheckedModels(self.reference.policy, self.reference.model, as_reference, optimized)

    def checked_batch(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the batch of this process."""
        return inputs


def _in_dtype_of(model: Any, head: AnyHead) -> AnyHead:
    """The head, with hidden states converted to the dtype of a model if the model's own forward pass computes it."""
    return head if isinstance(head, Head) else lambda hidden: head(hidden.to(model.dtype))
