"""The notation of distributions on the command line. It is parsed, never evaluated as code.

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
    """Parse the notation of a distribution.

    Args:
        text: The notation, such as `normal(0, 1)`, `0.4,0.3,0.2,0.1`, `model.npy` or `bytes:book.txt`.

    Returns:
        A distribution of `kullback.families`; or numbers of shape (n,) or (rows, n), which are not validated as
        probabilities.

    Raises:
        InputError: The text does not follow the grammar of this module, or its file cannot be read.

    Example:
        >>> read("normal(0, scale=2)")
        Normal(loc=0.0, scale=2.0)
        >>> read("mixture(0.5*normal(0,2) + 0.5*normal(20,2))")
        NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
    """
    if text.startswith("bytes:"):
        return _byte_frequencies(Path(text.removeprefix("bytes:")))
    if text.endswith(_FILES):
        return _read_numbers(Path(text))
    if _NUMBERS.fullmatch(text):
        return _to_array(text, [_parse_number(text, part) for part in text.split(",")])
    return _Parser(text).parse()


def family_named(name: str) -> type[Distribution]:
    """Find a family by its name.

    Args:
        name: The name in snake case or as in `kullback.families`, such as `student_t` or `StudentT`.

    Returns:
        The class of the family.

    Raises:
        InputError: The name is unknown; the message suggests a similar name or lists all.

    Example:
        >>> family_named("student_t").__name__
        'StudentT'
    """
    classes = _families_by_key()
    key = name.lower().replace("_", "")
    if key not in classes:
        similar = get_close_matches(key, classes, n=1)
        hint = (
            f"did you mean {_snake_case(classes[similar[0]])}?"
            if similar
            else f"known: {', '.join(map(_snake_case, classes.values()))}"
        )
        raise InputError(f"no family is called {name!r}; {hint}")
    return classes[key]


def _byte_frequencies(path: Path) -> np.ndarray:
    """The relative frequency of each of the 256 byte values in a file."""
    counts = np.bincount(np.frombuffer(_read_bytes(path), np.uint8), minlength=256)
    if not counts.any():
        raise InputError(f"bytes:{path}: expected at least one byte, but the file is empty")
    return counts / counts.sum()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_numbers(path: Path) -> np.ndarray:
    """The vector or matrix of numbers in a .npy, .csv or .json file."""
    if not _read_bytes(path).strip():
        raise InputError(f"{path}: expected a vector or a matrix of numbers, but the file is empty")
    try:
        if path.suffix == ".npy":
            return _to_array(str(path), np.load(path, allow_pickle=False))
        if path.suffix == ".csv":
            return _to_array(str(path), np.loadtxt(path, delimiter=",", ndmin=1))
        return _to_array(str(path), json.loads(path.read_text()))
    except (ValueError, UnicodeDecodeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: expected a vector or a matrix of numbers: {error}") from error


def _to_array(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"got entries of dtype {array.dtype}")
    except ValueError as error:
        raise InputError(f"{name}: expected a vector or a matrix of numbers: {error}") from error
    if array.ndim not in (1, 2) or array.size == 0:
        raise InputError(f"{name}: expected a vector or a matrix of numbers, got shape {array.shape}")
    return array.astype(array.dtype if array.dtype.kind == "f" else np.float64)


def _parse_number(text: str, part: str) -> float:
    try:
        return float(part)
    except ValueError:
        raise InputError(f"{text!r}: expected numbers with commas between them, got {part.strip()!r}") from None


def _families_by_key() -> dict[str, type[Distribution]]:
    """The families by their names in lower case, without those that are composed of other distributions."""
    composite = {"Distribution", "Independent", "Transformed"}
    names = [name for name in families.__all__ if name not in composite]
    return {name.lower(): getattr(families, name) for name in names}


class _Parser:
    """A recursive-descent parser of the rule `family`, with one method for each rule."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def parse(self) -> Member:
        """The distribution; nothing may follow it."""
        distribution = self.family()
        if self.position < len(self.text.rstrip()):
            raise self.failure("the end")
        return distribution

    def family(self) -> Member:
        name = self.take("name")
        if name.lower() == "mixture":
            return self.mixture()
        try:
            return self.arguments(family_named(name))
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
                raise InputError(f"{self.text!r}: expected a mixture of normals, got a component {type(part).__name__}")
            parts.append(part)
            if self.peek() != "+":
                break
            self.take("+")
        self.take(")")
        return NormalMixture(weights=weights, locs=[part.loc for part in parts], scales=[part.scale for part in parts])

    def arguments(self, family: type[Distribution]) -> Member:
        """The distribution with the parameters in the parentheses after the name of its family."""
        names = [field.name for field in fields(family)]  # pyright: ignore[reportArgumentType]
        parameters: dict[str, Any] = {}
        self.take("(")
        while self.peek() != ")":
            if parameters:
                self.take(",")
            name = names[len(parameters)] if len(parameters) < len(names) else None
            if self.peek()[:1].isalpha() or self.peek()[:1] == "_":
                name = self.take("name")
                self.take("=")
            if name not in names or name in parameters:
                got = "more" if name is None else f"{name} twice" if name in parameters else name
                raise InputError(f"{self.text!r}: {_snake_case(family)} takes {', '.join(names)}, got {got}")
            parameters[name] = self.value()
        self.take(")")
        try:
            distribution = family(**parameters)
        except TypeError:
            missing = [name for name in names if name not in parameters]
            raise InputError(f"{self.text!r}: {_snake_case(family)} also needs {', '.join(missing)}") from None
        # Probabilities are returned as an array, so that `measure` can list their terms.
        return np.asarray(parameters["probs"]) if family is Categorical and "probs" in parameters else distribution

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
        """The next token, or an empty string if the text does not continue with a token."""
        match = _TOKEN.match(self.text, self.position)
        return match.group(match.lastindex or 0) if match else ""

    def take(self, expected: str) -> str:
        """Consume the next token, which must be a "number", a "name" or the given character."""
        match = _TOKEN.match(self.text, self.position)
        if match is not None:
            number, name, character = match.groups()
            if expected == ("number" if number else "name" if name else character):
                self.position = match.end()
                return number or name or character
        raise self.failure({"number": "a number", "name": "the name of a family"}.get(expected, f"{expected!r}"))

    def failure(self, expected: str) -> InputError:
        remainder = self.text[self.position :].strip()
        got = repr(remainder) if remainder else "the end"
        return InputError(
            f"{self.text!r}: expected {expected}, got {got}; a distribution is a family "
            f"such as normal(0,1), numbers such as 0.4,0.6, a file ({', '.join(_FILES)}), or bytes:FILE"
        )


def _snake_case(family: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", family.__name__).lower()
