"""Functions of tensors that torch.compile records as one operation of its graph, without following their checks."""

from importlib import import_module
from typing import Any

import torch

__all__ = ["call_in_graph"]


@torch.compiler.allow_in_graph
def call_in_graph(module: str, function: str, *arguments: Any) -> Any:
    """The result of a function of a module, which torch.compile does not follow, and whose operations it compiles."""
    return getattr(import_module(module), function)(*arguments)
