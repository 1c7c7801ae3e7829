"""`kullback fit`: the member of a family that is nearest to a distribution or to samples, in either direction of KL."""

import argparse
import json
import math
import re
from typing import TYPE_CHECKING, Any

from kullback.cli.output import print_result, strict, table
from kullback.cli.parser import nearest
from kullback.errors import InputError, KullbackError, ParameterError
from kullback.runs.printable import one_line

if TYPE_CHECKING:
    from kullback.families import Distribution
    from kullback.fit import Fit, Minimum, Step

__all__ = ["add_parser"]

EXAMPLES = """examples:
  kullback fit 'mixture(0.5*normal(0,2) + 0.5*normal(20,2))' normal --direction reverse
  kullback fit 'mixture(0.5*normal(0,2) + 0.5*normal(20,2))' normal --start 'normal(10, 2.2)' --path
  kullback fit samples.csv gamma
  kullback fit counts.npy binomial --fixed total_count=10
"""


def add_parser(commands: Any) -> None:
    """Add the command `fit`."""
    parser = commands.add_parser(
        "fit",
        help="find the member of a family that is nearest to a target, by KL in either direction",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a distribution, or samples in a file (.csv, .tsv, .txt, .json, .jsonl, .parquet, .npy, .npz) or on "
        "standard input (-); the notation is described by kullback measure --help",
    )
    parser.add_argument(
        "family",
        metavar="FAMILY",
        help="a family, such as normal, gamma, student_t or normal_mixture; kullback measure --list lists the families",
    )
    parser.add_argument(
        "--direction",
        choices=["forward", "reverse"],
        default="forward",
        help="forward minimises KL(TARGET || member), which covers all modes; reverse minimises KL(member || TARGET), "
        "which selects a mode (default: forward)",
    )
    parser.add_argument(
        "--start",
        action="append",
        default=[],
        metavar="MEMBER",
        help="a starting point of the optimisation; may be repeated (default: several, computed from TARGET)",
    )
    parser.add_argument(
        "--fixed",
        type=_parse_fixed,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter that is not fitted; may be repeated (default: all parameters are fitted)",
    )
    parser.add_argument(
        "--components",
        type=_parse_components,
        metavar="N",
        help="the number of components of a normal_mixture (default: the number in --start)",
    )
    parser.add_argument("--path", action="store_true", help="print the steps of the first descent")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from kullback.cli.distribution_syntax import family_named, parameter_names, read
    from kullback.cli.number_tables import Table

    family = family_named(options.family)
    settings: dict[str, Any] = {"fixed": dict(options.fixed), "components": options.components}
    if len(settings["fixed"]) < len(options.fixed):
        names = [name for name, _ in options.fixed]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"--fixed: expected each parameter once, got {twice} {names.count(twice)} times")
    for name in settings["fixed"]:
        if name not in parameter_names(family):
            known = parameter_names(family)
            raise InputError(
                f"--fixed: expected a parameter of {options.family} ({', '.join(known)}), got {name!r}"
                f"{nearest(name, known)}"
            )
    starts = [_parse_member(text) for text in options.start]
    settings |= {"start": starts[0], "starts": starts[1:]} if starts else {}
    target = read(options.target)
    if isinstance(target, Table):
        if not target.is_file or options.target.startswith("bytes:"):
            raise InputError(
                f"TARGET: expected a distribution, or a file of samples, got the table of numbers {options.target!r}; "
                "save samples to a file such as samples.csv, or pass them on standard input with - as TARGET"
            )
        if options.direction == "reverse":
            raise InputError(
                "--direction reverse: expected a distribution as TARGET, got samples, whose log_prob is unknown; use "
                "--direction forward"
            )
        settings["samples"] = target.values
    else:
        settings["target"] = target
    from kullback.fit import fit_forward, fit_reverse

    try:
        fit = (fit_forward if options.direction == "forward" else fit_reverse)(family, **settings)
    except KullbackError as error:
        error.args = (_with_options(str(error)),)
        raise
    report = _report(fit, options)
    if isinstance(target, Table):
        report["samples"] = len(target.values)
    print_result(json.dumps(strict(report)) if options.json else _as_text(report, options))
    return 0


def _with_options(message: str) -> str:
    """A message in which arguments of Python, such as start=, are replaced by the options of the command.

    Example:
        >>> _with_options("pass start=, a member of the family, and total_count in fixed=")
        'pass --start, a member of the family, and total_count in --fixed'
    """
    message = re.sub(r"\b(start|fixed|components)=([\w{])", r"--\1 \2", message)
    return re.sub(r"\b(start|fixed|components)=", r"--\1", message)


def _parse_components(text: str) -> int:
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return count


def _parse_fixed(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        number = float(value) if name and equals else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE such as total_count=10, got {text!r}")
    return name.strip(), number


def _parse_member(text: str) -> "Distribution":
    from kullback.cli.distribution_syntax import read
    from kullback.cli.number_tables import Table

    member = read(text)
    if isinstance(member, Table):
        raise ParameterError(f"--start: expected a member of the family such as normal(0, 1), got {text!r}")
    return member


def _report(fit: "Fit", options: argparse.Namespace) -> dict[str, Any]:
    """The content of the JSON object."""
    report: dict[str, Any] = {
        "target": options.target,
        "family": type(fit.distribution).__name__,
        "direction": options.direction,
        "parameters": _parameters(fit.distribution),
        "kl": fit.kl,
        "unit": "nats",
        "status": fit.estimate.status,
        "error": fit.estimate.error,
        "converged": fit.converged,
        **fit.diagnostics,
        "minima": [
            {"parameters": _parameters(minimum.distribution), **_objective(minimum), "starts": len(minimum.basin)}
            for minimum in fit.minima
        ],
    }
    if options.path:
        report["path"] = [{"parameters": _parameters(step.distribution), **_objective(step)} for step in fit.path]
    if fit.estimate.warnings:
        report["warnings"] = list(fit.estimate.warnings)
    return report


def _objective(item: "Step | Minimum") -> dict[str, float]:
    """The quantity that was minimised, by its name: the cross-entropy of a fit to samples, else KL."""
    return {"kl": item.kl} if math.isnan(item.cross_entropy) else {"cross_entropy": item.cross_entropy}


def _parameters(member: "Distribution") -> dict[str, Any]:
    import numpy as np

    from kullback.cli.distribution_syntax import parameter_names

    values = {name: getattr(member, name) for name in parameter_names(type(member))}
    return {name: np.asarray(value).tolist() for name, value in values.items() if value is not None}


def _as_text(report: dict[str, Any], options: argparse.Namespace) -> str:
    divergence = "KL(target || member)" if options.direction == "forward" else "KL(member || target)"
    lines = [
        f"target       {one_line(report['target'])}"
        + (f"   {report['samples']} samples" if "samples" in report else ""),
        f"member       {report['family']}({_parameters_as_text(report['parameters'])})",
    ]
    if "cross_entropy" in report:
        lines.append(
            f"-mean log q  {report['cross_entropy']:.10g} nats   (KL is this value minus the target's entropy, "
            "which is unknown)"
        )
    else:
        lines.append(f"{divergence}  {report['kl']:.10g} nats   {report['status']}, by {report['method']}")
    labels = {
        "log_evidence": "log of the target's integral",
        "pareto_k": "Pareto k of the importance weights p/q",
    }
    lines += [f"{label}  {report[name]:.4g}" for name, label in labels.items() if name in report]
    lines += [f"{divergence}: {warning}" for warning in report.get("warnings", ()) if "cross_entropy" not in report]
    if not report["converged"]:
        reason = "the descent ended before the gradient vanished; try another --start"
        lines.append(f"not converged: {report.get('not_converged', reason)}")
    name, label = ("cross_entropy", "-mean log q, nats") if "cross_entropy" in report else ("kl", "KL, nats")
    if len(report["minima"]) > 1:
        rows = [
            [_parameters_as_text(minimum["parameters"]), f"{minimum[name]:.10g}", str(minimum["starts"])]
            for minimum in report["minima"]
        ]
        lines += ["", table(["every minimum found", label, "starts"], rows)]
    if options.path:
        rows = [
            [str(number), _parameters_as_text(step["parameters"]), f"{step[name]:.10g}"]
            for number, step in enumerate(report["path"])
        ]
        lines += ["", table(["step", "member", label], rows)]
    return "\n".join(lines)


def _parameters_as_text(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_number_as_text(value)}" for name, value in parameters.items())


def _number_as_text(value: Any) -> str:
    return f"[{', '.join(map(_number_as_text, value))}]" if isinstance(value, list) else f"{value:.8g}"
