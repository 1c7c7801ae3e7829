"""`kullback fit`: the member of a family that is nearest to a distribution or to samples, in either direction of KL."""

import argparse
import json
from dataclasses import fields
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from kullback.cli.distribution_syntax import family_named, read
from kullback.cli.output import strict, table
from kullback.errors import InputError, ParameterError
from kullback.families import Distribution
from kullback.fit import Fit, Minimum, Step, fit_forward, fit_reverse

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
    parser.add_argument("target", metavar="TARGET", help="a distribution, or a .npy, .csv or .json file of samples")
    parser.add_argument("family", metavar="FAMILY", help="a family, such as normal, gamma, student_t or normal_mixture")
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
        help="a starting point of the optimisation; repeat the option for more",
    )
    parser.add_argument(
        "--fixed",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter that is not fitted; repeat the option for more",
    )
    parser.add_argument("--components", type=int, metavar="N", help="the number of components of a normal_mixture")
    parser.add_argument("--path", action="store_true", help="print the steps of the first descent")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    family = family_named(options.family)
    settings: dict[str, Any] = {"fixed": dict(map(_parse_fixed, options.fixed)), "components": options.components}
    if options.components is not None and options.components < 1:
        raise InputError(f"--components: expected 1 or more, got {options.components}")
    starts = [_parse_member(text) for text in options.start]
    settings |= {"start": starts[0], "starts": starts[1:]} if starts else {}
    target = read(options.target)
    is_array = isinstance(target, np.ndarray)
    if is_array and not Path(options.target).is_file():
        raise InputError(
            f"TARGET: expected a distribution, or a file of samples, got the table of numbers {options.target!r}; save "
            "samples to a .npy, .csv or .json file"
        )
    settings["samples" if is_array else "target"] = target
    fit = (fit_forward if options.direction == "forward" else fit_reverse)(family, **settings)
    report = _report(fit, options)
    print(json.dumps(strict(report)) if options.json else _as_text(report, options))
    return 0


def _parse_fixed(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name.strip(), float(value)
    except ValueError:
        raise InputError(f"--fixed: expected NAME=VALUE such as total_count=10, got {text!r}") from None


def _parse_member(text: str) -> Distribution:
    member = read(text)
    if isinstance(member, np.ndarray):
        raise ParameterError(f"--start: expected a member of the family such as normal(0, 1), got {text!r}")
    return member


def _report(fit: Fit, options: argparse.Namespace) -> dict[str, Any]:
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


def _objective(item: Step | Minimum) -> dict[str, float]:
    """The quantity that was minimised, by its name: the cross-entropy of a fit to samples, else KL."""
    return {"kl": item.kl} if isnan(item.cross_entropy) else {"cross_entropy": item.cross_entropy}


def _parameters(member: Distribution) -> dict[str, Any]:
    values = {field.name: getattr(member, field.name) for field in fields(member)}  # pyright: ignore[reportArgumentType]
    return {name: np.asarray(value).tolist() for name, value in values.items() if value is not None}


def _as_text(report: dict[str, Any], options: argparse.Namespace) -> str:
    divergence = "KL(target || member)" if options.direction == "forward" else "KL(member || target)"
    lines = [
        f"target       {report['target']}",
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
    if not report["converged"]:
        lines.append("not converged: the descent ended before the gradient vanished; try another --start")
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
