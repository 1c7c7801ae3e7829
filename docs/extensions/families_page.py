"""The page "Families and pairs", generated from `kullback.families` and from the registered closed forms."""

import inspect
from collections import defaultdict
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from docstrings import escape, paragraphs, to_rst

from kullback import families
from kullback.closed_forms import FORMS
from kullback.families import Distribution

__all__ = ["all_families", "page_text", "pairs_by_function"]

_GROUPS = {
    "real_line": "Univariate, on the real line",
    "positive": "Univariate, on the positive reals",
    "bounded": "Univariate, on an interval or a circle",
    "counts": "Counts and categories",
    "multivariate": "Multivariate and matrix-valued",
    "composite": "Built from other distributions",
}

_INTRODUCTION = """Families and pairs
==================

This page is generated from the package at each build. It lists the {families} families of :mod:`kullback.families`,
and the {pairs} pairs (P, Q) for which :py:func:`kullback.kl` has a closed form of KL(P || Q). For every other pair of
univariate distributions, ``kullback.measure`` computes the integral or the sum. Objects of ``torch.distributions``,
``scipy.stats``, NumPyro and TensorFlow Probability are converted to these families first. In the formulas,
``phi(d) = e^d - 1 - d``.
"""


def all_families() -> list[type]:
    """Every public family, in the order of `kullback.families.__all__`."""
    values = (getattr(families, name) for name in families.__all__)
    return [value for value in values if isinstance(value, type) and value is not Distribution]


def pairs_by_function() -> dict[Callable[..., Any], list[tuple[type, type]]]:
    """The pairs of families of the package, grouped by the function that implements their closed form."""
    grouped: dict[Callable[..., Any], list[tuple[type, type]]] = defaultdict(list)
    for pair, form in FORMS.items():
        if not all(family.__module__.startswith("kullback.") for family in pair):  # a class of a caller of register_kl
            continue
        grouped[_implementation(form)].append(pair)
    return dict(grouped)


def _implementation(form: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a registered form calls with the arrays of both distributions."""
    if hasattr(form, "args"):  # functools.partial
        return form.args[0]
    return inspect.getclosurevars(form).nonlocals.get("function", form)


def page_text() -> str:
    """The page as reStructuredText."""
    parts = [_INTRODUCTION.format(families=len(all_families()), pairs=len(FORMS)), "Families\n--------"]
    for module, title in _GROUPS.items():
        members = [family for family in all_families() if family.__module__ == f"kullback.families.{module}"]
        parts += [f"{title}\n{'~' * len(title)}", _family_table(members)]
    parts += ["Closed forms\n------------", *_closed_forms()]
    return "\n\n".join(parts) + "\n"


def _family_table(members: list[type]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 20 50 30", ""]
    lines += ["   * - Family", "     - Distribution", "     - Parameters"]
    for family in members:
        lines += [f"   * - :py:class:`{family.__name__} <kullback.families.{family.__name__}>`"]
        text = [escape(" ".join(part.split())) for part in paragraphs(inspect.getdoc(family) or "")]
        lines += _cell(text)
        lines += _cell([", ".join(_parameter(field) for field in fields(family))])  # pyright: ignore[reportArgumentType]
    return "\n".join(lines)


def _cell(texts: list[str]) -> list[str]:
    lines = [line for text in texts for line in (text, "")]
    return [f"     {'-' if number == 0 else ' '} {line}".rstrip() for number, line in enumerate(lines or [""])]


def _parameter(field: Any) -> str:
    constraints = [constraint.words for constraint in getattr(field.type, "__metadata__", ())]
    optional = [] if field.default is MISSING else ["optional"]
    described = "; ".join([*constraints, *optional])
    return f"``{field.name}``" + (f" ({escape(described)})" if described else "")


def _closed_forms() -> list[str]:
    parts = []
    for function, pairs in pairs_by_function().items():
        title = _title(pairs)
        parts += [f"{title}\n{'~' * len(title)}"]
        if len(pairs) > 1:
            parts += [f"{len(pairs)} pairs: " + ", ".join(_pair(*pair) for pair in pairs) + "."]
        docstring = (inspect.getdoc(function) or "").partition("\nArgs:")[0].partition("\nReturns:")[0]
        parts += ["\n".join(to_rst(docstring.splitlines()))]
    return parts


def _title(pairs: list[tuple[type, type]]) -> str:
    if len(pairs) == 1:
        return _pair(*pairs[0])
    left, right = (list(dict.fromkeys(pair[side].__name__ for pair in pairs)) for side in (0, 1))
    if left == right:
        return ", ".join(left)
    return f"{', '.join(left)} against {', '.join(right)}"


def _pair(p: type, q: type) -> str:
    return f"{p.__name__} \\|\\| {q.__name__}"
