"""KL of distributions of tensors inside torch.compile: one operation of the graph, which calls the closed form.

TorchDynamo follows the functions that read the parameters, and calls the closed form as one function of tensors. The
general implementations check values and construct classes, which a graph cannot contain.
"""

from typing import Any

import torch
from torch import distributions as d

from kullback import families as f
from kullback.closed_forms import FORMS
from kullback.closed_forms.compiled_forms import compiled_kl
from kullback.densities.from_torch import FAMILIES
from kullback.families import Distribution
from kullback.families.base import with_parameters
from kullback.numerics.arrays import Array

__all__ = ["call_outside_graph", "kl_in_graph"]

_NAMES = {family: tuple(family.__dataclass_fields__) for family in {*FAMILIES.values(), f.TruncatedNormal}}
_BY_NAME = {family.__name__: family for family in _NAMES}


def kl_in_graph(p: Any, q: Any) -> Array | None:
    """KL(p || q) of two distributions with tensors as parameters; None where a graph has no operation for the pair."""
    if type(p) in _INDEPENDENT and type(q) in _INDEPENDENT:
        (p_base, p_dims), (q_base, q_dims) = _independent(p), _independent(q)
        components = kl_in_graph(p_base, q_base) if p_dims == q_dims else None
        if components is None or not p_dims:
            return components
        return components.sum(tuple(range(-p_dims, 0)))
    of_p, of_q = _parameters(p), _parameters(q)
    if of_p is None or of_q is None:
        return None
    (p_family, p_names, p_values), (q_family, q_names, q_values) = of_p, of_q
    if (p_family, q_family) not in FORMS:
        return None
    return _closed_form(p_family.__name__, p_names, q_family.__name__, q_names, *p_values, *q_values)


@torch.compiler.allow_in_graph
def _closed_form(p_name: str, p_names: tuple[str, ...], q_name: str, q_names: tuple[str, ...], *values: Array) -> Array:
    """The closed form of two families, whose parameters are the values in the order of their names."""
    p = with_parameters(_BY_NAME[p_name], dict(zip(p_names, values, strict=False)))
    q = with_parameters(_BY_NAME[q_name], dict(zip(q_names, values[len(p_names) :], strict=True)))
    value = compiled_kl(p, q)
    return FORMS[type(p), type(q)](p, q) if value is None else value


@torch.compiler.disable
def call_outside_graph(function: Any, *arguments: Any) -> Any:
    """The result of a call that interrupts the graph; torch.compile(fullgraph=True) raises an error."""
    return function(*arguments)


_INDEPENDENT = (d.Independent, f.Independent)


def _independent(distribution: Any) -> tuple[Any, int]:
    if type(distribution) is d.Independent:
        return distribution.base_dist, distribution.reinterpreted_batch_ndims
    return distribution.base, distribution.event_dims


def _parameters(distribution: Any) -> tuple[type, tuple[str, ...], tuple[Array, ...]] | None:
    """The family of a distribution, and the names and the values of its parameters."""
    kind = type(distribution)
    if issubclass(kind, Distribution):
        if kind not in _NAMES:
            return None
        names = [name for name in _NAMES[kind] if getattr(distribution, name) is not None]
        return kind, tuple(names), tuple([getattr(distribution, name) for name in names])
    if kind not in FAMILIES:
        return None
    family = FAMILIES[kind]
    if kind is d.OneHotCategorical:
        distribution = distribution._categorical
    names = []
    for name in _NAMES[family]:
        if name in ("probs", "logits"):
            if name == _given_of_two(distribution):
                names.append(name)
        elif name in ("covariance_matrix", "scale_tril"):
            if name == _given_matrix(distribution):
                names.append(name)
        else:
            names.append(name)
    return family, tuple(names), tuple([getattr(distribution, name) for name in names])


def _given_of_two(distribution: Any) -> str:
    """Which of probs and logits was given: PyTorch keeps it as `_param`, and computes the other at its first use."""
    given = distribution.__dict__
    if "_param" in given:
        return "probs" if given.get("probs") is given["_param"] else "logits"
    return "probs" if "probs" in given else "logits"


def _given_matrix(distribution: Any) -> str:
    """The first of the covariance matrix and its factor that the distribution holds."""
    return "covariance_matrix" if "covariance_matrix" in distribution.__dict__ else "scale_tril"
