"""`kullback measure`: KL(P || Q) of two distributions named on the command line, both ways, with its terms."""

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

EXAMPLES = """P and Q:
  0.4,0.3,0.2,0.1               probabilities
  table.npy, .csv or .json      a vector of probabilities, or a matrix with one distribution a row
  bytes:book.txt                how often each byte occurs in a file
  'normal(0, 1)'                a family, its parameters in order or by name
  'mixture(0.5*normal(0,2) + 0.5*normal(20,2))'

examples:
  kullback measure 0.4,0.3,0.2,0.1 0.3,0.3,0.3,0.1 --terms
  kullback measure 'student_t(df=5, loc=0, scale=1)' 'normal(0, 1)' --bits
"""
_SHOWN = 24  # events of a term table


def add_parser(commands: Any) -> None:
    """Add `measure`."""
    parser = commands.add_parser(
        "measure",
        help="KL(P || Q) of two distributions",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("p", metavar="P")
    parser.add_argument("q", metavar="Q")
    parser.add_argument("--bits", action="store_true", help="in bits; without: nats")
    parser.add_argument("--terms", action="store_true", help="what each event adds (probabilities only)")
    parser.add_argument("--reverse", action="store_true", help="swap P and Q")
    parser.add_argument("--error", type=float, default=1e-10, metavar="NATS", help="to be reached (default: 1e-10)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    names = (options.q, options.p) if options.reverse else (options.p, options.q)
    p, q = (read(name) for name in names)
    if isinstance(p, np.ndarray) != isinstance(q, np.ndarray):
        raise InputError(
            f"expected two tables of probabilities or two families, got {names[0]!r} and {names[1]!r}: a table has no "
            "places on the line to compare with"
        )
    scale = float(nats_to_bits(1.0)) if options.bits else 1.0
    facts: dict[str, Any] = {"p": names[0], "q": names[1], "unit": "bits" if options.bits else "nats"}
    if isinstance(p, np.ndarray) and isinstance(q, np.ndarray):
        facts |= _of_tables(p, q, scale)
        if options.terms:
            facts["terms"] = _terms(p, q, scale, is_bytes=all(name.startswith("bytes:") for name in names))
    elif options.terms:
        raise InputError("--terms: expected two tables of probabilities; a density has no events to list")
    else:
        facts |= _of_families(p, q, scale, options.error)
    print(json.dumps(strict(facts)) if options.json else _shown(facts))
    return 0


def _of_tables(p: np.ndarray, q: np.ndarray, scale: float) -> dict[str, Any]:
    verbs = {
        "kl": kl_probs(p, q),
        "reverse_kl": kl_probs(q, p),
        "entropy": entropy(p),
        "cross_entropy": cross_entropy(p, q),
    }
    # One table may be a vector, and the other a matrix: a row each.
    rows = np.broadcast_arrays(*verbs.values())
    values = {name: (scale * value).tolist() for name, value in zip(verbs, rows, strict=True)}
    told = {"method": "exact sum", "status": "exact"}
    return {**values, **told, **_gap(p, q), "reverse": {**told, **_gap(q, p)}}


def _gap(p: np.ndarray, q: np.ndarray) -> dict[str, Any]:
    """Where q is 0 and p is not, for that makes an infinite KL."""
    p, q = np.broadcast_arrays(p, q)
    missed = np.argwhere((p > 0) & (q == 0))
    if len(missed) == 0:
        return {}
    first = tuple(missed[0].tolist())
    others = f", and at {len(missed) - 1} others" if len(missed) > 1 else ""
    return {"warnings": [f"q is 0 at {', '.join(map(str, first))}, where p is {p[first]:.6g}{others}"]}


def _of_families(p: Member, q: Member, scale: float, error: float) -> dict[str, Any]:
    there, back = measure(p, q, error=error), measure(q, p, error=error)
    facts = {"kl": scale * there.value, "reverse_kl": scale * back.value, **_entropies(p, there.value, scale)}
    return {**facts, **_how(there, scale), "reverse": _how(back, scale)}


def _entropies(p: Member, kl: float, scale: float) -> dict[str, Any]:
    """H(P), and H(P, Q) = H(P) + KL(P || Q); nothing where P is no distribution on the line."""
    density = resolve(p).density
    if density is None:
        return {}
    entropy_p = entropy_of(density)
    kind = {} if density.discrete else {"entropy_kind": "differential"}
    return {"entropy": scale * entropy_p, "cross_entropy": scale * (entropy_p + kl), **kind}


def _how(estimate: Estimate, scale: float) -> dict[str, Any]:
    facts = asdict(estimate)
    for name in ("error", "std_error"):
        facts[name] *= scale
    if facts["interval"] is not None:
        facts["interval"] = [scale * end for end in facts["interval"]]
    told = {name: value for name, value in facts.items() if name not in ("value", "unit")}
    return {name: value for name, value in told.items() if value not in (None, (), 0) and value == value}


def _terms(p: np.ndarray, q: np.ndarray, scale: float, *, is_bytes: bool) -> list[dict[str, Any]]:
    p, q = np.broadcast_arrays(p, q)
    if p.ndim != 1:
        raise InputError(f"--terms: expected one distribution on each side, got shape {p.shape}")
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where((p > 0) | (q > 0), np.log(p) - np.log(q), 0.0)
        usual = np.where(p > 0, p * logs, 0.0)
    terms = kl_terms(p, q)
    return [
        {
            "event": repr(bytes([i]))[1:] if is_bytes else i,
            "p": p[i],
            "q": q[i],
            "log_ratio": scale * logs[i],
            "p_log_ratio": scale * usual[i],
            "term": scale * terms[i],
        }
        for i in range(len(p))
        if p[i] > 0 or q[i] > 0
    ]


def _shown(facts: dict[str, Any]) -> str:
    unit = facts["unit"]
    if isinstance(facts["kl"], list):
        return table(
            ["row", f"KL(P || Q), {unit}", "KL(Q || P)", "H(P)", "H(P, Q)"],
            [
                [str(row), *map(_number, values)]
                for row, values in enumerate(
                    zip(*(facts[name] for name in ("kl", "reverse_kl", "entropy", "cross_entropy")), strict=True)
                )
            ],
        )
    lines = [
        f"P            {facts['p']}",
        f"Q            {facts['q']}",
        f"KL(P || Q)   {_number(facts['kl'])} {unit}   {_told(facts)}",
        f"KL(Q || P)   {_number(facts['reverse_kl'])} {unit}   {_told(facts.get('reverse', facts))}",
    ]
    if "entropy" in facts:
        lines += [
            f"H(P)         {_number(facts['entropy'])} {unit}{'   differential' if 'entropy_kind' in facts else ''}",
            f"H(P, Q)      {_number(facts['cross_entropy'])} {unit}   = H(P) + KL(P || Q)",
        ]
    lines += [f"KL(P || Q): {warning}" for warning in facts.get("warnings", ())]
    lines += [f"KL(Q || P), where p is Q: {warning}" for warning in facts.get("reverse", {}).get("warnings", ())]
    if "terms" in facts:
        lines += ["", _term_table(facts["terms"], unit)]
    return "\n".join(lines)


def _told(facts: dict[str, Any]) -> str:
    said = [facts["method"]] if facts.get("method") else []
    if "interval" in facts and "std_error" in facts:
        low, high = facts["interval"]
        said.append(f"between {_number(low)} and {_number(high)}")
    elif facts.get("error"):
        said.append(f"error <= {facts['error']:.1e}")
    return "; ".join([*said, *([facts["status"]] if facts["status"] not in ("exact", "bounded") else [])])


def _term_table(terms: Sequence[dict[str, Any]], unit: str) -> str:
    largest = sorted(range(len(terms)), key=lambda i: -terms[i]["term"])[:_SHOWN]
    shown = [terms[i] for i in sorted(largest)]
    columns = ("p", "q", "log_ratio", "p_log_ratio", "term")
    rows = [[str(term["event"]), *(f"{term[name]:.6g}" for name in columns)] for term in shown]
    if len(shown) < len(terms):
        rest = [term for i, term in enumerate(terms) if i not in set(largest)]
        rows.append([f"{len(rest)} others", *_sums(rest)])
    rows.append(["sum", *_sums(terms)])
    header = ["event", "p", "q", f"log p/q, {unit}", "p log p/q", "p phi(log q/p)"]
    return table(header, rows) + "\nBoth last columns sum to KL(P || Q); the terms of the last are never negative."


def _sums(terms: Sequence[dict[str, Any]]) -> list[str]:
    sums = {name: math.fsum(term[name] for term in terms) for name in ("p", "q", "p_log_ratio", "term")}
    return [f"{sums['p']:.6g}", f"{sums['q']:.6g}", "", f"{sums['p_log_ratio']:.6g}", f"{sums['term']:.6g}"]


def _number(value: float) -> str:
    return f"{value:.10g}"
