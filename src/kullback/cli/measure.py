"""`kullback measure`: KL(P || Q) and KL(Q || P) of two distributions, with their entropies and the terms of the sum."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kullback.cli.output import print_result, strict, table
from kullback.errors import InputError, NoClosedFormError, NotNormalizedError, SupportError
from kullback.runs.printable import one_line

if TYPE_CHECKING:
    import numpy as np

    from kullback.cli.number_tables import Table
    from kullback.families import Distribution
    from kullback.result import Estimate

__all__ = ["add_parser"]

EXAMPLES = """P and Q are two tables of probabilities or two families. KL(P || Q) is the expectation under P of log p/q.
  0.4,0.3,0.2,0.1               probabilities; also 1/3,2/3, '0.5 0.5', '0,4; 0,6' and '[0.4, 0.6]'
  '{"a": 0.4, "b": 0.6}'        probabilities with labels
  table.csv                     a vector of probabilities, or a matrix with one distribution in each row, in a file
                                that ends in .csv, .tsv, .txt, .json, .jsonl, .parquet, .npy or .npz
  table.csv:NAME                the column, the row, the member or the array NAME of a file
  -                             standard input, in one of these formats
  bytes:book.txt                the relative frequencies of the bytes in a file
  'normal(0, 1)'                a family with its parameters, in order or by name; --list lists the families
  'mixture(0.5*normal(0,2) + 0.5*normal(20,2))'

A text file may have a header, and one column of labels. A column of numbers is a column of labels if it is the first
column and its header is empty, index, id, event, label, token or token_id. If both P and Q have labels, the events are
matched by label; the labels must be the same, spaces included. Lines that begin with # are comments.

examples:
  kullback measure 0.4,0.3,0.2,0.1 0.3,0.3,0.3,0.1 --terms
  kullback measure 'student_t(df=5, loc=0, scale=1)' 'normal(0, 1)' --bits
  kullback measure 4,3,2,1 3,3,3,1 --normalize
  kullback measure 40,30,20,10 33,27,28,12 --counts

In the output of --json, numbers that JSON does not have are the strings "inf", "-inf" and "nan".
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
    parser.add_argument("p", nargs="?", metavar="P", help="the first distribution; see below for the notation")
    parser.add_argument("q", nargs="?", metavar="Q", help="the second distribution, in the same notation")
    parser.add_argument("--list", action="store_true", help="list the families and their parameters, and nothing else")
    numbers = parser.add_mutually_exclusive_group()
    numbers.add_argument(
        "--normalize",
        action="store_true",
        help="divide each distribution of a table by its sum (default: the sums must be 1)",
    )
    numbers.add_argument(
        "--counts",
        action="store_true",
        help="the tables are numbers of observations, from which KL is estimated with a confidence interval; a table "
        "of fractions that sum to 1 is a known distribution",
    )
    numbers.add_argument(
        "--logits", action="store_true", help="the tables are unnormalised log-probabilities (default: probabilities)"
    )
    parser.add_argument("--bits", action="store_true", help="print bits (default: nats)")
    parser.add_argument("--terms", action="store_true", help="print the term of each event (probabilities only)")
    parser.add_argument("--reverse", action="store_true", help="swap P and Q")
    parser.add_argument(
        "--error",
        type=_parse_error,
        default=1e-10,
        metavar="NATS",
        help="integrate until the error bound is at most NATS nats (default: 1e-10)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=_run)


def _parse_error(text: str) -> float:
    try:
        error = float(text)
    except ValueError:
        error = math.nan
    if not 0 < error < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number of nats, got {text!r}")
    return error


@dataclass(frozen=True, eq=False)
class _Input:
    """One of the two distributions: its name in messages (P or Q), its notation, and what the notation denotes."""

    name: str
    text: str
    member: "Distribution | Table"

    @property
    def values(self) -> "np.ndarray":
        return self.member.values  # type: ignore[union-attr]


def _run(options: argparse.Namespace) -> int:
    if options.list:
        return _list_families(options)
    if options.p is None or options.q is None:
        missing = "P and Q" if options.p is None else "Q"
        raise InputError(f"expected two distributions, got no {missing}; see kullback measure --help")
    if options.terms and (options.counts or options.logits):
        raise InputError("--terms: expected probabilities, not --counts or --logits")
    if options.p == options.q == "-":
        raise InputError("expected P or Q on standard input, got - for both; write one of them to a file")
    p, q = _read(options)
    scale = 1 / math.log(2) if options.bits else 1.0
    report: dict[str, Any] = {"p": p.text, "q": q.text, "unit": "bits" if options.bits else "nats"}
    if _is_table(p):
        p, q = _aligned(p, q)
        if options.counts:
            report |= _measure_counts(p, q, scale)
        elif options.logits:
            report |= _measure_logits(p, q, scale)
        else:
            p, p_sum = _probabilities(p, normalize=options.normalize)
            q, q_sum = _probabilities(q, normalize=options.normalize)
            report |= _measure_tables(p.values, q.values, scale)
            if options.normalize:
                report["divided_by"] = {"p": p_sum, "q": q_sum}
        if options.terms:
            report["terms"] = _terms(p, q, scale)
    else:
        report |= _measure_families(p.member, q.member, scale, options.error)
    print_result(json.dumps(strict(report)) if options.json else _as_text(report))
    return 0


def _read(options: argparse.Namespace) -> tuple[_Input, _Input]:
    """P and Q, which are both tables or both families."""
    from kullback.cli.distribution_syntax import read

    given = [_Input("P", options.p, read(options.p)), _Input("Q", options.q, read(options.q))]
    p, q = reversed(given) if options.reverse else given
    if options.reverse:
        p, q = replace(p, name="P"), replace(q, name="Q")
    if _is_table(p) != _is_table(q):
        raise InputError(
            f"expected two tables of probabilities or two families, got {p.text!r} and {q.text!r}: the events of "
            "a table have no values to compare with a family; replace one of them"
        )
    if not _is_table(p):
        for option in ("normalize", "counts", "logits", "terms"):
            if getattr(options, option):
                raise InputError(
                    f"--{option}: expected two tables of numbers, got the families {p.text!r} and {q.text!r}; a "
                    "density has no events to list, and its parameters are not normalised"
                )
    return p, q


def _is_table(given: _Input) -> bool:
    from kullback.cli.number_tables import Table

    return isinstance(given.member, Table)


def _list_families(options: argparse.Namespace) -> int:
    """Print every family with its parameters: one in each line, or as JSON."""
    from kullback.cli.distribution_syntax import family_named, family_names, parameter_names

    parameters = {name: parameter_names(family_named(name)) for name in family_names()}
    lines = [f"{name}({', '.join(names)})" for name, names in parameters.items()]
    print_result(json.dumps({"families": parameters}) if options.json else "\n".join(lines))
    return 0


def _aligned(p: _Input, q: _Input) -> tuple[_Input, _Input]:
    """P and Q with the events, and the rows of two matrices, of Q in the order of the labels of P."""
    for each in (p, q):
        if each.values.size == 0:
            raise InputError(f"{each.name}: {each.text!r}: expected at least one event, got none")
    if p.values.shape[-1] != q.values.shape[-1] and None in (p.member.events, q.member.events):  # type: ignore[union-attr]
        raise InputError(
            f"expected the same number of events in P and Q, got {p.values.shape[-1]} and {q.values.shape[-1]}"
        )
    order = _order("event", p, q, lambda member: member.events)
    if order is not None:
        q = replace(q, member=replace(q.member, values=q.values[..., order], events=p.member.events))  # type: ignore
    if p.values.ndim == q.values.ndim == 2:
        order = _order("row", p, q, lambda member: member.rows)
        if order is not None:
            q = replace(q, member=replace(q.member, values=q.values[order], rows=p.member.rows))  # type: ignore
        rows = len(p.values), len(q.values)
        if rows[0] != rows[1]:
            raise InputError(f"expected matrices with the same number of rows, got {rows[0]} in P and {rows[1]} in Q")
    return p, q


def _order(what: str, p: _Input, q: _Input, labels_of: Callable[[Any], Any]) -> list[int] | None:
    """The indices of Q's labels in the order of P's labels; None if the order is the same or one has no labels."""
    first, second = labels_of(p.member), labels_of(q.member)
    if first is None or second is None or first == second:
        return None
    for given, labels in ((p, first), (q, second)):
        if len(set(labels)) < len(labels):
            repeated = next(label for index, label in enumerate(labels) if label in labels[:index])
            raise InputError(
                f"{given.name}: {given.text!r}: expected distinct labels, got the {what} {repeated!r} twice"
            )
    indices = {label: index for index, label in enumerate(second)}
    for one, other, labels, others in ((p, q, first, set(second)), (q, p, second, set(first))):
        absent = [label for label in labels if label not in others]
        if absent:
            more = f" and {len(absent) - 1} others" if len(absent) > 1 else ""
            raise InputError(
                f"expected the same labels in P and Q, but the {what} {absent[0]!r}{more} of {one.name} is absent from "
                f"{other.name}; add absent events with the number 0, or remove the labels to match by position"
            )
    return [indices[label] for label in first]


def _probabilities(given: _Input, *, normalize: bool) -> tuple[_Input, Any]:
    """The table as probabilities, and the sums that it was divided by, or None."""
    import numpy as np

    from kullback.discrete.validation import mass_tolerance

    values, label = given.values, f"{given.name}: {given.text!r}"
    _refuse(given, ~np.isfinite(values), "finite numbers")
    _refuse(given, values < 0, "probabilities, >= 0")
    if normalize or given.text.startswith("bytes:"):
        values = values.astype(np.float64)
        with np.errstate(over="ignore"):
            sums = values.sum(axis=-1, keepdims=True)
        if not (np.isfinite(sums) & (sums > 0)).all():
            raise NotNormalizedError(f"{label}: expected a positive finite sum to divide by, got {float(sums.min())!r}")
        divided = replace(given, member=replace(given.member, values=values / sums))  # type: ignore[type-var]
        return divided, (sums[..., 0].tolist() if normalize else None)
    sums = values.sum(axis=-1, dtype=np.float64)
    wrong = np.argwhere(~(abs(sums - 1) <= mass_tolerance(values.dtype, values.shape[-1])))
    if len(wrong):
        row = f"row {wrong[0][0]} sums" if values.ndim == 2 else "it sums"
        hint = "use --normalize to divide by the sum, --counts for numbers of observations, or --logits for logits"
        columns = values.sum(axis=0, dtype=np.float64)
        if values.ndim == 2 and (abs(columns - 1) <= 1e-9).all():
            hint = "each column sums to 1: pass one of the columns as FILE:NAME, or transpose the file"
        raise NotNormalizedError(
            f"{label}: expected probabilities that sum to 1, but {row} to {sums[tuple(wrong[0])]:.12g}; {hint}"
        )
    if values.dtype == np.float64:
        return given, None
    # The digits of the results are not limited by the dtype of the file, whose rounding the sums may exceed in float64.
    exact = values.astype(np.float64) / sums[..., None]
    return replace(given, member=replace(given.member, values=exact)), None  # type: ignore[type-var]


def _refuse(given: _Input, bad: "np.ndarray", expected: str) -> None:
    """Raise NotNormalizedError at the first entry where `bad` is True."""
    if bad.any():
        first = tuple(bad.nonzero()[axis][0] for axis in range(bad.ndim))
        index = ", ".join(map(str, first))
        raise NotNormalizedError(
            f"{given.name}: {given.text!r}: expected {expected}, but {given.name.lower()}[{index}] is "
            f"{float(given.values[first])!r}"
        )


def _measure_tables(p: "np.ndarray", q: "np.ndarray", scale: float) -> dict[str, Any]:
    from kullback.discrete.entropy import cross_entropy, entropy
    from kullback.discrete.kl import kl_probs

    quantities = {
        "kl": kl_probs(p, q),
        "reverse_kl": kl_probs(q, p),
        "entropy": entropy(p),
        "cross_entropy": cross_entropy(p, q),
    }
    return _exact(quantities, scale, _support_warning(p, q, 0), _support_warning(q, p, 0))


def _measure_logits(p: _Input, q: _Input, scale: float) -> dict[str, Any]:
    import numpy as np

    from kullback.discrete.entropy import entropy
    from kullback.discrete.kl import kl_logits

    for given in (p, q):
        _refuse(given, ~(given.values < np.inf), "logits below inf")
        _refuse(
            given, np.broadcast_to(given.values.max(-1, keepdims=True) == -np.inf, given.values.shape), "a finite logit"
        )
    a, b = p.values.astype(np.float64), q.values.astype(np.float64)
    with np.errstate(over="ignore"):  # exp(-inf) is 0
        weights = np.exp(a - a.max(-1, keepdims=True))
    entropy_p, kl = entropy(weights / weights.sum(-1, keepdims=True)), kl_logits(a, b)
    quantities = {"kl": kl, "reverse_kl": kl_logits(b, a), "entropy": entropy_p, "cross_entropy": entropy_p + kl}
    return _exact(quantities, scale, _support_warning(a, b, -np.inf), _support_warning(b, a, -np.inf))


def _exact(
    quantities: dict[str, Any], scale: float, warning: dict[str, Any], reverse: dict[str, Any]
) -> dict[str, Any]:
    """The report of exact sums. With a vector and a matrix, every quantity has one value for each row of the matrix."""
    import numpy as np

    rows = np.broadcast_arrays(*quantities.values())
    values = {name: (scale * value).tolist() for name, value in zip(quantities, rows, strict=True)}
    method = {"method": "exact sum", "status": "exact"}
    return {**values, **method, **warning, "reverse": {**method, **reverse}}


def _measure_counts(p: _Input, q: _Input, scale: float) -> dict[str, Any]:
    """The estimate from the counts of P and Q. A table of fractions that sum to 1 is a known distribution."""
    import numpy as np

    from kullback.samples.counts import kl_counts

    known = {}
    for given in (p, q):
        if given.values.ndim != 1:
            raise InputError(f"{given.name}: {given.text!r}: --counts: expected a vector, got a matrix; pass FILE:NAME")
        values = given.values
        with np.errstate(over="ignore"):
            total = values.sum()
        _refuse(given, ~(np.isfinite(values) & (values >= 0)), "counts, which are whole numbers >= 0")
        known[given.name] = bool(total and abs(total - 1) <= 1e-9 and (values % 1 != 0).any())
        if not known[given.name]:
            _refuse(given, values % 1 != 0, "counts, which are whole numbers >= 0")
            if not values.any():
                raise InputError(
                    f"{given.name}: {given.text!r}: expected at least one observation, but all counts are 0"
                )
    if known["P"] and known["Q"]:
        raise InputError("--counts: expected counts, but P and Q are fractions that sum to 1; remove --counts")
    if known["P"]:
        raise InputError(
            "--counts: expected counts as P, but P has fractions that sum to 1; use --reverse to exchange P and Q"
        )
    estimate = kl_counts(p.values, q=q.values) if known["Q"] else kl_counts(p.values, q.values)
    report = {"kl": scale * estimate.value, **_without_value(estimate, scale)}
    if not known["Q"]:
        reverse = kl_counts(q.values, p.values)
        report |= {"reverse_kl": scale * reverse.value, "reverse": _without_value(reverse, scale)}
    return report | {"observations": {"p": int(p.values.sum()), "q": None if known["Q"] else int(q.values.sum())}}


def _support_warning(p: "np.ndarray", q: "np.ndarray", absent: float) -> dict[str, Any]:
    """A warning with the first event where q is absent (0, or the logit -inf) and p is not, as KL is then infinite."""
    import numpy as np

    p, q = np.broadcast_arrays(p, q)
    events = np.argwhere((p > absent) & (q == absent))
    if len(events) == 0:
        return {}
    first = tuple(events[0].tolist())
    others = f", and at {len(events) - 1} others" if len(events) > 1 else ""
    return {"warnings": [f"q is {absent:g} at {', '.join(map(str, first))}, where p is {p[first]:.6g}{others}"]}


def _measure_families(p: Any, q: Any, scale: float, error: float) -> dict[str, Any]:
    from kullback.measure import measure

    estimate, reverse = measure(p, q, error=error), measure(q, p, error=error)
    if math.isnan(estimate.value) or math.isnan(reverse.value):
        raise InputError(
            f"expected parameters for which KL can be computed in float64, got {p} and {q}, for which it is nan; "
            "rescale both distributions"
        )
    report = {
        "kl": scale * estimate.value,
        "reverse_kl": scale * reverse.value,
        **_entropies(p, estimate.value, scale),
    }
    return {**report, **_without_value(estimate, scale), "reverse": _without_value(reverse, scale)}


def _entropies(p: "Distribution", kl: float, scale: float) -> dict[str, Any]:
    """H(P) and H(P, Q) = H(P) + KL(P || Q), or the reason why they are not known."""
    from kullback.measure_entropy import measure_entropy

    try:
        entropy = measure_entropy(p)
        reason = "; ".join(entropy.warnings) if entropy.status == "unreliable" else ""
    except (NoClosedFormError, SupportError) as error:
        return {"entropy_unknown": str(error)}
    if reason or math.isnan(entropy.value + kl):
        return {"entropy_unknown": reason or "it cannot be computed in float64"}
    kind = {} if _is_discrete(p) else {"entropy_kind": "differential"}
    std_error = {"entropy_std_error": scale * entropy.std_error} if entropy.status == "estimated" else {}
    return {"entropy": scale * entropy.value, "cross_entropy": scale * (entropy.value + kl), **kind, **std_error}


def _is_discrete(p: "Distribution") -> bool:
    from kullback.closed_forms.supports import is_count_family
    from kullback.families import Categorical, Multinomial, OneHotCategorical

    return is_count_family(type(p)) or isinstance(p, (Categorical, Multinomial, OneHotCategorical))


def _without_value(estimate: "Estimate", scale: float) -> dict[str, Any]:
    """The fields of an estimate that are set, except its value and unit, in the unit of the output."""
    from dataclasses import asdict

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


def _terms(first: _Input, second: _Input, scale: float) -> list[dict[str, Any]]:
    import numpy as np

    from kullback.discrete.kl import kl_terms

    p, q = np.broadcast_arrays(first.values, second.values)
    labels = first.member.events or second.member.events or range(p.shape[-1])  # type: ignore[union-attr]
    if p.ndim != 1:
        raise InputError(f"--terms: expected one distribution on each side, got shape {p.shape}; pass single rows")
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ratio = np.where((p > 0) | (q > 0), np.log(p) - np.log(q), 0.0)
        p_log_ratio = np.where(p > 0, p * log_ratio, 0.0)
    terms = kl_terms(p, q)
    return [
        {
            "event": labels[i],
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
        text = table(
            ["row", f"KL(P || Q), {unit}", "KL(Q || P)", "H(P)", "H(P, Q)"],
            [[str(row), *map(_number_as_text, values)] for row, values in enumerate(columns)],
        )
        return f"{text}\nnormalised: {_divisors_as_text(report['divided_by'])}" if "divided_by" in report else text
    reverse = report.get("reverse", {})
    lines = [
        f"P            {one_line(report['p'])}",
        f"Q            {one_line(report['q'])}",
        f"KL(P || Q)   {_number_as_text(report['kl'])} {unit}   {_method_as_text(report)}",
    ]
    if "reverse_kl" in report:
        lines.append(f"KL(Q || P)   {_number_as_text(report['reverse_kl'])} {unit}   {_method_as_text(reverse)}")
    if "observations" in report:
        sizes = report["observations"]
        known = "known probabilities" if sizes["q"] is None else f"{sizes['q']} observations"
        lines.append(f"counts       P: {sizes['p']} observations; Q: {known}")
    if "divided_by" in report:
        lines.append(f"normalised   {_divisors_as_text(report['divided_by'])}")
    if "entropy" in report:
        kind = "   differential" if "entropy_kind" in report else ""
        if "entropy_std_error" in report:
            kind += f"   estimated, standard error {report['entropy_std_error']:.1e}"
        lines += [
            f"H(P)         {_number_as_text(report['entropy'])} {unit}{kind}",
            f"H(P, Q)      {_number_as_text(report['cross_entropy'])} {unit}   = H(P) + KL(P || Q)",
        ]
    if "entropy_unknown" in report:
        lines.append(f"H(P)         unknown: {report['entropy_unknown']}")
    lines += [f"KL(P || Q): {warning}" for warning in report.get("warnings", ())]
    lines += [f"KL(Q || P), with p = Q and q = P: {warning}" for warning in reverse.get("warnings", ())]
    if "terms" in report:
        lines += ["", _term_table(report["terms"], unit)]
    return "\n".join(lines)


def _divisors_as_text(sums: dict[str, Any]) -> str:
    """The sums that the tables were divided by."""
    divisors = {
        name: "the sum of each row" if isinstance(value, list) else f"{value:.10g}" for name, value in sums.items()
    }
    return f"P was divided by {divisors['p']}, Q by {divisors['q']}"


def _method_as_text(report: dict[str, Any]) -> str:
    """The method, the interval or the error bound, and the status if it is neither exact nor bounded."""
    parts = [report["method"]] if report.get("method") else []
    if "interval" in report and "error" not in report and report["status"] != "exact":
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
