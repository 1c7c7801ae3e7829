"""What a distribution is called on the command line, read by a grammar and never run.

P        = numbers | "bytes:" FILE | FILE | family
numbers  = number { "," number }
FILE     = a path that ends in .npy, .csv or .json
family   = name "(" [ argument { "," argument } ] ")"
         | "mixture(" number "*" family { "+" number "*" family } ")"
argument = [ name "=" ] value
value    = [ "+" ] number | "[" [ value { "," value } ] "]"
"""

import json
import re
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from kullback import families
from kullback.errors import InputError
from kullback.families import Categorical, Distribution, NormalMixture

__all__ = ["family_named", "read"]

_TOKEN = re.compile(r"\s*(?:(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|([()\[\],=*+]))")
_NUMBERS = re.compile(r"[-+\d.eE,\s]*\d[-+\d.eE,\s]*")
_FILES = (".npy", ".csv", ".json")

Member = Distribution | np.ndarray


def read(text: str) -> Member:
    """A distribution from its notation: a record, or probabilities as an array.

    Args:
        text: Such as `normal(0, 1)`, `0.4,0.3,0.2,0.1`, `model.npy` or `bytes:book.txt`.

    Returns:
        A record of `kullback.families`; or probabilities, shape (n,) or (rows, n).

    Raises:
        InputError: The text follows no rule above, or its file cannot be read; the message says where.

    Example:
        >>> read("normal(0, scale=2)")
        Normal(loc=0.0, scale=2.0)
        >>> read("mixture(0.5*normal(0,2) + 0.5*normal(20,2))")
        NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
    """
    if text.startswith("bytes:"):
        return _bytes(Path(text.removeprefix("bytes:")))
    if text.endswith(_FILES):
        return _file(Path(text))
    if _NUMBERS.fullmatch(text):
        return _array(text, [_number(text, part) for part in text.split(",")])
    return _Reader(text).whole()


def family_named(name: str) -> type[Distribution]:
    """The record class of a name such as `student_t`.

    Raises:
        InputError: No family is called so.
    """
    kinds = _names()
    key = name.lower().replace("_", "")
    if key not in kinds:
        near = get_close_matches(key, kinds, n=1)
        meant = (
            f"did you mean {_snake(kinds[near[0]])}?" if near else f"known: {', '.join(map(_snake, kinds.values()))}"
        )
        raise InputError(f"no family is called {name!r}; {meant}")
    return kinds[key]


def _bytes(path: Path) -> np.ndarray:
    counts = np.bincount(np.frombuffer(_contents(path), np.uint8), minlength=256)
    if not counts.any():
        raise InputError(f"bytes:{path}: expected bytes there, but the file is empty")
    return counts / counts.sum()


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _file(path: Path) -> np.ndarray:
    if not _contents(path).strip():
        raise InputError(f"{path}: expected a vector or a matrix of numbers, but the file is empty")
    try:
        if path.suffix == ".npy":
            return _array(str(path), np.load(path, allow_pickle=False))
        if path.suffix == ".csv":
            return _array(str(path), np.loadtxt(path, delimiter=",", ndmin=1))
        return _array(str(path), json.loads(path.read_text()))
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected a vector or a matrix of numbers: {error}") from error


def _array(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"got entries of dtype {array.dtype}")
    except ValueError as error:
        raise InputError(f"{name}: expected a vector or a matrix of numbers: {error}") from error
    if array.ndim not in (1, 2) or array.size == 0:
        raise InputError(f"{name}: expected a vector or a matrix of numbers, got shape {array.shape}")
    return array.astype(array.dtype if array.dtype.kind == "f" else np.float64)


def _number(text: str, part: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise InputError(f"{text!r}: expected numbers with commas between them, got {part.strip()!r}") from None


def _names() -> dict[str, type[Distribution]]:
    kinds = [getattr(families, name) for name in families.__all__]
    # What is made of other distributions has no notation of its own.
    parts = {"Distribution", "Independent", "Transformed"}
    return {kind.__name__.lower(): kind for kind in kinds if kind.__name__ not in parts}


class _Reader:
    """Reads a family from left to right; each method takes one rule of the grammar."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def whole(self) -> Member:
        held = self.family()
        if self.at < len(self.text.rstrip()):
            raise self.failure("the end")
        return held

    def family(self) -> Member:
        name = self.take("name")
        if name.lower() == "mixture":
            return self.mixture()
        try:
            return self.made(family_named(name))
        except InputError as error:
            raise InputError(str(error) if repr(self.text) in str(error) else f"{self.text!r}: {error}") from None

    def mixture(self) -> NormalMixture:
        self.take("(")
        weights, parts = [], []
        while True:
            weights.append(float(self.take("number")))
            self.take("*")
            part = self.family()
            if not isinstance(part, families.Normal):
                raise InputError(f"{self.text!r}: a mixture is of normals, got {type(part).__name__}")
            parts.append(part)
            if self.peek() != "+":
                break
            self.take("+")
        self.take(")")
        return NormalMixture(weights=weights, locs=[part.loc for part in parts], scales=[part.scale for part in parts])

    def made(self, kind: type[Distribution]) -> Member:
        names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
        given: dict[str, Any] = {}
        self.take("(")
        while self.peek() != ")":
            if given:
                self.take(",")
            name = names[len(given)] if len(given) < len(names) else None
            if self.peek()[:1].isalpha() or self.peek()[:1] == "_":
                name = self.take("name")
                self.take("=")
            if name not in names or name in given:
                got = "more" if name is None else f"{name} twice" if name in given else name
                raise InputError(f"{self.text!r}: {_snake(kind)} takes {', '.join(names)}, got {got}")
            given[name] = self.value()
        self.take(")")
        try:
            record = kind(**given)
        except TypeError:
            missing = [name for name in names if name not in given]
            raise InputError(f"{self.text!r}: {_snake(kind)} also needs {', '.join(missing)}") from None
        # A table of probabilities is measured as one, with its terms.
        return np.asarray(given["probs"]) if kind is Categorical and "probs" in given else record

    def value(self) -> Any:
        if self.peek() != "[":
            if self.peek() == "+":
                self.take("+")
            return float(self.take("number"))
        self.take("[")
        values: list[Any] = []
        while self.peek() != "]":
            if values:
                self.take(",")
            values.append(self.value())
        self.take("]")
        return values

    def peek(self) -> str:
        found = _TOKEN.match(self.text, self.at)
        return found.group(found.lastindex or 0) if found else ""

    def take(self, wanted: str) -> str:
        found = _TOKEN.match(self.text, self.at)
        if found is not None:
            number, name, sign = found.groups()
            if wanted == ("number" if number else "name" if name else sign):
                self.at = found.end()
                return number or name or sign
        raise self.failure({"number": "a number", "name": "the name of a family"}.get(wanted, f"{wanted!r}"))

    def failure(self, wanted: str) -> InputError:
        rest = self.text[self.at :].strip()
        return InputError(
            f"{self.text!r}: expected {wanted}, got {repr(rest) if rest else 'the end'}; a distribution is a family "
            f"such as normal(0,1), numbers such as 0.4,0.6, a file ({', '.join(_FILES)}), or bytes:FILE"
        )


def _snake(kind: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()
