"""`kullback fit`: the member of a family nearest to a distribution or to samples, in either direction."""

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from kullback.cli.distribution_syntax import family_named, read
from kullback.cli.output import strict, table
from kullback.errors import InputError, ParameterError
from kullback.families import Distribution
from kullback.fit import Fit, fit_forward, fit_reverse

__all__ = ["add_parser"]

EXAMPLES = """examples:
  kullback fit 'mixture(0.5*normal(0,2) + 0.5*normal(20,2))' normal --direction reverse
  kullback fit 'mixture(0.5*normal(0,2) + 0.5*normal(20,2))' normal --start 'normal(10, 2.2)' --path
  kullback fit samples.csv gamma
  kullback fit counts.npy binomial --fixed total_count=10
"""


def add_parser(commands: Any) -> None:
    """Add `fit`."""
    parser = commands.add_parser(
        "fit",
        help="the member of a family nearest to a target, by KL in either direction",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="TARGET", help="a distribution, or a .npy, .csv or .json file of samples")
    parser.add_argument("family", metavar="FAMILY", help="such as normal, gamma, student_t, normal_mixture")
    parser.add_argument(
        "--direction",
        choices=["forward", "reverse"],
        default="forward",
        help="forward: KL(TARGET || member), which covers; reverse: KL(member || TARGET), which seeks modes "
        "(default: forward)",
    )
    parser.add_argument(
        "--start", action="append", default=[], metavar="MEMBER", help="where a descent begins; again for more"
    )
    parser.add_argument(
        "--fixed", action="append", default=[], metavar="NAME=VALUE", help="a parameter not to be fitted"
    )
    parser.add_argument("--components", type=int, metavar="N", help="of a normal_mixture")
    parser.add_argument("--path", action="store_true", help="print the steps of the first descent")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    family = family_named(options.family)
    settings: dict[str, Any] = {"fixed": dict(map(_fixed, options.fixed)), "components": options.components}
    if options.components is not None and options.components < 1:
        raise InputError(f"--components: expected 1 or more, got {options.components}")
    starts = [_record(text) for text in options.start]
    settings |= {"start": starts[0], "starts": starts[1:]} if starts else {}
    target = read(options.target)
    if isinstance(target, np.ndarray):
        if not Path(options.target).is_file():
            raise InputError(
                f"{options.target!r}: expected a distribution, or a file of samples, got a table of numbers"
            )
        verb = fit_forward if options.direction == "forward" else fit_reverse
        fit = verb(family, samples=target, **settings)
    else:
        fit = (fit_forward if options.direction == "forward" else fit_reverse)(family, target=target, **settings)
    facts = _facts(fit, options)
    print(json.dumps(strict(facts)) if options.json else _shown(facts, options))
    return 0


def _fixed(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if not (name and equals):
            raise ValueError
        return name.strip(), float(value)
    except ValueError:
        raise InputError(f"--fixed: expected NAME=VALUE such as total_count=10, got {text!r}") from None


def _record(text: str) -> Distribution:
    found = read(text)
    if isinstance(found, np.ndarray):
        raise ParameterError(f"--start: expected a member of the family such as normal(0, 1), got {text!r}")
    return found


def _facts(fit: Fit, options: argparse.Namespace) -> dict[str, Any]:
    facts: dict[str, Any] = {
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
            {"parameters": _parameters(one.distribution), "kl": one.kl, "starts": len(one.basin)} for one in fit.minima
        ],
    }
    if options.path:
        facts["path"] = [{"parameters": _parameters(step.distribution), "kl": step.kl} for step in fit.path]
    if fit.estimate.warnings:
        facts["warnings"] = list(fit.estimate.warnings)
    return facts


def _parameters(record: Distribution) -> dict[str, Any]:
    given = {field.name: getattr(record, field.name) for field in fields(record)}  # pyright: ignore[reportArgumentType]
    return {name: np.asarray(value).tolist() for name, value in given.items() if value is not None}


def _shown(facts: dict[str, Any], options: argparse.Namespace) -> str:
    what = "KL(target || member)" if options.direction == "forward" else "KL(member || target)"
    lines = [
        f"target       {facts['target']}",
        f"member       {facts['family']}({_told(facts['parameters'])})",
    ]
    if "cross_entropy" in facts:
        lines.append(
            f"-mean log q  {facts['cross_entropy']:.10g} nats   (KL is that less the target's entropy, not known)"
        )
    else:
        lines.append(f"{what}  {facts['kl']:.10g} nats   {facts['status']}, by {facts['method']}")
    for name, words in (("log_evidence", "log of its integral"), ("pareto_k", "Pareto k of the weights p/q")):
        if name in facts:
            lines.append(f"{words}  {facts[name]:.4g}")
    if not facts["converged"]:
        lines.append("not converged: the descent ended before the gradient vanished; try another --start")
    if len(facts["minima"]) > 1:
        rows = [[_told(one["parameters"]), f"{one['kl']:.10g}", str(one["starts"])] for one in facts["minima"]]
        lines += ["", table(["every minimum found", "nats", "starts"], rows)]
    if options.path:
        rows = [[str(n), _told(step["parameters"]), f"{step['kl']:.10g}"] for n, step in enumerate(facts["path"])]
        lines += ["", table(["step", "member", "nats"], rows)]
    return "\n".join(lines)


def _told(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_number(value)}" for name, value in parameters.items())


def _number(value: Any) -> str:
    return f"[{', '.join(map(_number, value))}]" if isinstance(value, list) else f"{value:.8g}"
