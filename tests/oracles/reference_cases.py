"""Reference values of KL between families, as parameters of the tests of every library."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpmath import mpf

from kullback import families

REFERENCE = Path(__file__).parents[1] / "data"


def record_class(family: str) -> Any:
    return getattr(families, "".join(word.capitalize() for word in family.split("_")))


def floats(value: Any) -> Any:
    return [floats(entry) for entry in value] if isinstance(value, list) else float(value)


def cases(supported: Any) -> list[Any]:
    """The families and parameters of p and q, the true KL and the relative difference, for the supported families."""
    found = []
    for name in ("families", "multivariate"):
        for number, case in enumerate(json.loads((REFERENCE / f"{name}.json").read_text())["cases"]):
            p, q = ({key: floats(v) for key, v in case[side].items() if key != "family"} for side in "pq")
            names = [case[side].get("family", case.get("family")) for side in "pq"]
            if not set(names) <= set(supported):
                continue
            delta = nearness(p, q) if names[0] == names[1] else None
            found.append(
                pytest.param(*names, p, q, mpf(case["kl"]), delta, id=f"{names[0]}-{names[1]}-{name}-{number}")
            )
    return found


def nearness(p: dict[str, Any], q: dict[str, Any]) -> float | None:
    """The smallest relative difference of the parameters of a nearly equal case; None for other cases."""
    p_all, q_all = (np.concatenate([np.ravel(value) for value in side.values()]) for side in (p, q))
    changes = abs(q_all / p_all - 1)
    changes = changes[changes > 0]
    return float(changes.min()) if changes.size and changes.max() < 2e-2 else None


def tolerance(delta: float | None, roundings: float = 4e-16) -> float:
    """The relative tolerance, which includes the effect of rounding the parameters of a nearly equal case."""
    return 1e-13 + (roundings / delta if delta else 0)


def relative_error(got: Any, truth: Any) -> float:
    return abs(float((mpf(float(got)) - truth) / truth))
