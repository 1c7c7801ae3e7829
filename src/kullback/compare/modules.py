"""The KL of a base from itself with one module of a model, for each layer, the embeddings, the norm and the head."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kullback.compare.models import LoadedModel, head_stats
from kullback.errors import InputError
from kullback.integrations.transformers import AnyHead, Head, decoder_of

__all__ = ["KINDS", "SUM", "SwappedModules"]

KINDS = ("layer", "part")
"""layer: decoder layers are swapped as a whole; part: their attention, MLP and norms one at a time."""

SUM = "sum of the modules"
"""The column of the sum of the KL of all modules."""

_HEAD = "head"


class SwappedModules:
    """A base and a model of one architecture, whose modules are put into the base one at a time.

    The modules are the children of the decoder that have weights or buffers (embeddings, layers, norms) and the output
    head. Weights of another dtype are converted to the dtype of the base.

    Args:
        base: The base.
        model: The model.
        kind: A name of `KINDS`.

    Raises:
        InputError: The models differ in their class, in the names of modules or in the shapes of weights.
    """

    def __init__(self, base: LoadedModel, model: LoadedModel, kind: str) -> None:
        self.base, self.model = base, model
        classes = type(base.model).__name__, type(model.model).__name__
        if classes[0] != classes[1]:
            raise self._refused(f"{classes[0]} and {classes[1]}")
        self.decoders: tuple[Any, Any] = (_main_module(decoder_of(base.model)), _main_module(decoder_of(model.model)))
        names, others = (_modules(decoder, kind) for decoder in self.decoders)
        if differing := sorted(set(names) ^ set(others)):
            raise self._refused(
                f"{len(names)} and {len(others)} modules, of which {differing[0]} is in one of the models only"
            )
        for name in names:
            self._require_same_shapes(name)
        shapes = [tuple(one.head.weight.shape) for one in (base, model) if isinstance(one.head, Head)]
        if len(set(shapes)) > 1:
            raise self._refused(f"heads of the shapes {shapes[0]} and {shapes[1]}")
        self.dtype = next(parameter.dtype for parameter in base.model.parameters() if parameter.is_floating_point())
        # A module of buffers alone, such as rotary embeddings, takes part if it differs.
        self.names = [
            *(
                name
                for name in names
                if any(True for _ in self._pair(name)[0].parameters()) or not self._is_equal(name)
            ),
            _HEAD,
        ]
        self.unchanged = {name for name in self.names if self._is_equal(name)}

    def kl(self, hidden: Callable[[], Tensor], targets: Tensor) -> dict[str, NDArray[np.float64]]:
        """KL(base || base with a module of the model) of each token, for each module, and their sum.

        Args:
            hidden: A function that returns the last hidden states of the base, shape (n, d), by a forward pass.
            targets: The tokens that follow, shape (n,).

        Returns:
            Nats by the name of the module, shape (n,). A module with equal weights needs no forward pass.
        """
        before = hidden()
        columns = {}
        for name in self.names:
            if name in self.unchanged:
                columns[name] = np.zeros(len(targets))
                continue
            after, head = before, self.base.head
            if name == _HEAD:
                head = self._head()
            else:
                with self._swapped(name):
                    after = hidden()
            stats = head_stats(before, self.base.head, after, head, targets)
            columns[name] = stats.kl.double().cpu().numpy()
        return {**columns, SUM: np.sum(list(columns.values()), axis=0)}

    def _pair(self, name: str) -> tuple[nn.Module, nn.Module]:
        return self.decoders[0].get_submodule(name), self.decoders[1].get_submodule(name)

    @contextmanager
    def _swapped(self, name: str) -> Iterator[None]:
        """Within the context, the base has this module of the model."""
        own, other = self._pair(name)
        parent, _, child = name.rpartition(".")
        owner = self.decoders[0].get_submodule(parent)
        if self._needs_conversion(other):
            other = copy.deepcopy(other).to(self.dtype)
        setattr(owner, child, other)
        try:
            yield
        finally:
            setattr(owner, child, own)

    def _needs_conversion(self, module: nn.Module) -> bool:
        """Whether a module has floating-point weights of one other dtype; quantised modules are kept."""
        dtypes = {tensor.dtype for tensor in module.parameters()}
        return len(dtypes) == 1 and dtypes != {self.dtype} and next(iter(dtypes)).is_floating_point

    def _head(self) -> AnyHead:
        """The head of the model for hidden states of the base."""
        head = self.model.head
        if isinstance(head, Head):
            bias = None if head.bias is None else head.bias.to(self.dtype)
            return Head(head.weight.to(self.dtype), bias, head.scale)
        dtype = next(parameter.dtype for parameter in self.model.model.parameters() if parameter.is_floating_point())
        return lambda states: head(states.to(dtype))

    def _is_equal(self, name: str) -> bool:
        """Whether a module of the model has the weights of the base, in the dtype of the base."""
        if name == _HEAD:
            heads = self.base.head, self._head()
            if not (isinstance(heads[0], Head) and isinstance(heads[1], Head)):
                return False
            biases = [head.bias for head in heads if isinstance(head, Head) and head.bias is not None]
            same = heads[0].scale == heads[1].scale and torch.equal(heads[0].weight, heads[1].weight)
            return same and (not biases or (len(biases) == 2 and torch.equal(*biases)))
        tensors = [dict([*module.named_parameters(), *module.named_buffers()]) for module in self._pair(name)]
        return tensors[0].keys() == tensors[1].keys() and all(
            torch.equal(tensor, tensors[1][key].to(tensor.dtype)) for key, tensor in tensors[0].items()
        )

    def _require_same_shapes(self, name: str) -> None:
        """Check the shapes of the weights of a module, except for adapters and quantised weights, which have others."""
        if self.model.source.adapter is not None or getattr(self.model.model, "is_quantized", False):
            return
        shapes, others = (
            {key: tuple(tensor.shape) for key, tensor in module.named_parameters()} for module in self._pair(name)
        )
        for key in [*shapes, *others]:
            if shapes.get(key) != others.get(key):
                found = [str(one[key]) if key in one else "no weight" for one in (shapes, others)]
                raise self._refused(f"{found[0]} and {found[1]} for {name}.{key}")

    def _refused(self, found: str) -> InputError:
        return InputError(
            f"--by-module: expected {self.base.source.name} and {self.model.source.name} to have the same modules, got "
            f"{found}"
        )


def _main_module(decoder: nn.Module) -> nn.Module:
    """The module whose children are the layers; the decoder of some models has it as its only child."""
    children = [child for child in decoder.children() if _has_tensors(child)]
    only = children[0] if len(children) == 1 else None
    return decoder if only is None or isinstance(only, nn.ModuleList) else _main_module(only)


def _modules(decoder: nn.Module, kind: str) -> list[str]:
    """The names of the modules that are swapped, in the order of the forward pass as declared by the model."""
    names = []
    for name, child in decoder.named_children():
        if not _has_tensors(child):
            continue
        if not isinstance(child, nn.ModuleList):
            names.append(name)
            continue
        for index, layer in child.named_children():
            parts = [part for part, module in layer.named_children() if _has_tensors(module)]
            whole = kind == "layer" or not parts or any(True for _ in layer.parameters(recurse=False))
            names += [f"{name}.{index}"] if whole else [f"{name}.{index}.{part}" for part in parts]
    return names


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())
