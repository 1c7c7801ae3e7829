"""`kullback measure`: KL(P || Q) and KL(Q || P) of two distributions, with their entropies and the terms of the sum."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from kullback.cli.distribution_syntax import Member, read
from kullback.cli.output import strict, table
from kullback.densities.entropy import entropy_of
from kullback.densities.resolve import resolve
from kullback.discrete.entropy import cross_entropy, entropy
from kullback.discrete.kl import kl_probs, kl_terms
from kullback.errors import InputError
from kullback.measure import measure
from kullback.result import Estimate, nats_to_bits

__all__ = ["add_parser"]

EXAMPLES = """P and Q are two arrays of probabilities or two families:
  0.4,0.3,0.2,0.1               probabilities
  table.npy, .csv or .json      a vector of probabilities, or a matrix with one distribution in each row
  bytes:book.txt                the relative frequencies of the bytes in a file
  'normal(0, 1)'                a family with its parameters, in order or by name
  'mixture(0.5*normal(0,2) + 0.5*normal(20,2))'

examples:
  kullback measure 0.4,0.3,0.2,0.1 0.3,0.3,0.3,0.1 --terms
  kullback measure 'student_t(df=5, loc=0, scale=1)' 'normal(0, 1)' --bits
"""
_MAX_SHOWN_TERMS = 24


def add_parser(commands: Any) -> None:
    """Add the command `measure`."""
    parser = commands.add_parser(
        "measure",
        help="measure KL(P || Q) and KL(Q || P) of two distributions",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("p", metavar="P", help="the first distribution; see below for the notation")
    parser.add_argument("q", metavar="Q", help="the second distribution")
    parser.add_argument("--bits", action="store_true", help="print bits (default: nats)")
    parser.add_argument("--terms", action="store_true", help="print the term of each event (probabilities only)")
    parser.add_argument("--reverse", action="store_true", help="swap P and Q")
    parser.add_argument(
        "--error",
        type=float,
        default=1e-10,
        metavar="NATS",
        help="integrate until the error bound is at most NATS nats (default: 1e-10)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    names = (options.q, options.p) if options.reverse else (options.p, options.q)
    p, q = (read(name) for name in names)
    if isinstance(p, np.ndarray) != isinstance(q, np.ndarray):
        raise InputError(
            f"expected two tables of probabilities or two families, got {names[0]!r} and {names[1]!r}: the events of "
            "a table have no values to compare with a family; replace one of them"
        )
    scale = float(nats_to_bits(1.0)) if options.bits else 1.0
    report: dict[str, Any] = {"p": names[0], "q": names[1], "unit": "bits" if options.bits else "nats"}
    if isinstance(p, np.ndarray) and isinstance(q, np.ndarray):
        report |= _measure_tables(p, q, scale)
        if options.terms:
            report["terms"] = _terms(p, q, scale, is_bytes=all(name.startswith("bytes:") for name in names))
    elif options.terms:
        raise InputError("--terms: expected two tables of probabilities; a density has no events to list")
    else:
        report |= _measure_families(p, q, scale, options.error)
    print(json.dumps(strict(report)) if options.json else _as_text(report))
    return 0


def _measure_tables(p: np.ndarray, q: np.ndarray, scale: float) -> dict[str, Any]:
    quantities = {
        "kl": kl_probs(p, q),
        "reverse_kl": kl_probs(q, p),
        "entropy": entropy(p),
        "cross_entropy": cross_entropy(p, q),
    }
    # If one table is a vector and the other a matrix, every quantity has one value for each row of the matrix.
    rows = np.broadcast_arrays(*quantities.values())
    values = {name: (scale * value).tolist() for name, value in zip(quantities, rows, strict=True)}
    method = {"method": "exact sum", "status": "exact"}
    return {**values, **method, **_support_warning(p, q), "reverse": {**method, **_support_warning(q, p)}}


def _support_warning(p: np.ndarray, q: np.ndarray) -> dict[str, Any]:
    """A warning with the first event where q is 0 and p is not, because the KL is then infinite."""
    p, q = np.broadcast_arrays(p, q)
    events = np.argwhere((p > 0) & (q == 0))
    if len(events) == 0:
        return {}
    first = tuple(events[0].tolist())
    others = f", and at {len(events) - 1} others" if len(events) > 1 else ""
    return {"warnings": [f"q is 0 at {', '.join(map(str, first))}, where p is {p[first]:.6g}{others}"]}


def _measure_families(p: Member, q: Member, scale: float, error: float) -> dict[str, Any]:
    estimate, reverse = measure(p, q, error=error), measure(q, p, error=error)
    report = {
        "kl": scale * estimate.value,
        "reverse_kl": scale * reverse.value,
        **_entropies(p, estimate.value, scale),
    }
    return {**report, **_without_value(estimate, scale), "reverse": _without_value(reverse, scale)}


def _entropies(p: Member, kl: float, scale: float) -> dict[str, Any]:
    """H(P) and H(P, Q) = H(P) + KL(P || Q); empty if P is not univariate."""
    density = resolve(p).density
    if density is None:
        return {}
    entropy_p = entropy_of(density)
    kind = {} if density.discrete else {"entropy_kind": "differential"}
    return {"entropy": scale * entropy_p, "cross_entropy": scale * (entropy_p + kl), **kind}


def _without_value(estimate: Estimate, scale: float) -> dict[str, Any]:
    """The fields of an estimate that are set, except its value and unit, in the unit of the output."""
    fields = asdict(estimate)
    for name in ("error", "std_error"):
        fields[name] *= scale
    if fields["interval"] is not None:
        fields["interval"] = [scale * end for end in fields["interval"]]
    return {
        name: value
        for name, value in fields.items()
        if name not in ("value", "unit") and value not in (None, (), 0) and value == value
    }


def _terms(p: np.ndarray, q: np.ndarray, scale: float, *, is_bytes: bool) -> list[dict[str, Any]]:
    p, q = np.broadcast_arrays(p, q)
    if p.ndim != 1:
        raise InputError(f"--terms: expected one distribution on each side, got shape {p.shape}; pass single rows")
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.where((p > 0) | (q > 0), np.log(p) - np.log(q), 0.0)
        p_log_ratio = np.where(p > 0, p * log_ratio, 0.0)
    terms = kl_terms(p, q)
    return [
        {
            "event": repr(bytes([i]))[1:] if is_bytes else i,
            "p": p[i],
            "q": q[i],
            "log_ratio": scale * log_ratio[i],
            "p_log_ratio": scale * p_log_ratio[i],
            "term": scale * terms[i],
        }
        for i in range(len(p))
        if p[i] > 0 or q[i] > 0
    ]


def _as_text(report: dict[str, Any]) -> str:
    unit = report["unit"]
    if isinstance(report["kl"], list):
        columns = zip(*(report[name] for name in ("kl", "reverse_kl", "entropy", "cross_entropy")), strict=True)
        return table(
            ["row", f"KL(P || Q), {unit}", "KL(Q || P)", "H(P)", "H(P, Q)"],
            [[str(row), *map(_number_as_text, values)] for row, values in enumerate(columns)],
        )
    reverse = report["reverse"]
    lines = [
        f"P            {report['p']}",
        f"Q            {report['q']}",
        f"KL(P || Q)   {_number_as_text(report['kl'])} {unit}   {_method_as_text(report)}",
        f"KL(Q || P)   {_number_as_text(report['reverse_kl'])} {unit}   {_method_as_text(reverse)}",
    ]
    if "entropy" in report:
        kind = "   differential" if "entropy_kind" in report else ""
        lines += [
            f"H(P)         {_number_as_text(report['entropy'])} {unit}{kind}",
            f"H(P, Q)      {_number_as_text(report['cross_entropy'])} {unit}   = H(P) + KL(P || Q)",
        ]
    lines += [f"KL(P || Q): {warning}" for warning in report.get("warnings", ())]
    lines += [f"KL(Q || P), with p = Q and q = P: {warning}" for warning in reverse.get("warnings", ())]
    if "terms" in report:
        lines += ["", _term_table(report["terms"], unit)]
    return "\n".join(lines)


def _method_as_text(report: dict[str, Any]) -> str:
    """The method, the interval or the error bound, and the status if it is neither exact nor bounded."""
    parts = [report["method"]] if report.get("method") else []
    if "interval" in report and "std_error" in report:
        low, high = report["interval"]
        parts.append(f"between {_number_as_text(low)} and {_number_as_text(high)}")
    elif report.get("error"):
        parts.append(f"error <= {report['error']:.1e}")
    if report["status"] not in ("exact", "bounded"):
        parts.append(report["status"])
    return "; ".join(parts)


def _term_table(terms: Sequence[dict[str, Any]], unit: str) -> str:
    """A table of the largest terms; the sum of the other terms is in one row."""
    largest = set(sorted(range(len(terms)), key=lambda i: -terms[i]["term"])[:_MAX_SHOWN_TERMS])
    columns = ("p", "q", "log_ratio", "p_log_ratio", "term")
    rows = [
        [str(term["event"]), *(f"{term[name]:.6g}" for name in columns)] for i, term in enumerate(terms) if i in largest
    ]
    if len(largest) < len(terms):
        others = [term for i, term in enumerate(terms) if i not in largest]
        rows.append([f"{len(others)} others", *_sums(others)])
    rows.append(["sum", *_sums(terms)])
    header = ["event", "p", "q", f"log p/q, {unit}", "p log p/q", "p phi(log q/p)"]
    note = "Both of the last two columns sum to KL(P || Q). The terms p phi(log q/p) are never negative."
    return f"{table(header, rows)}\n{note}"


def _sums(terms: Sequence[dict[str, Any]]) -> list[str]:
    sums = {name: math.fsum(term[name] for term in terms) for name in ("p", "q", "p_log_ratio", "term")}
    return [f"{sums['p']:.6g}", f"{sums['q']:.6g}", "", f"{sums['p_log_ratio']:.6g}", f"{sums['term']:.6g}"]


def _number_as_text(value: float) -> str:
    return f"{value:.10g}"
