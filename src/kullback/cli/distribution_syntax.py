"""The notation of distributions on the command line. It is parsed, never evaluated as code.

P         = numbers | json | "bytes:" FILE | FILE | FILE ":" NAME | "-" | family
numbers   = number { separator number }, also in brackets; the separator is a comma, a semicolon or white space
number    = a decimal number, or a fraction such as 1/3; with a decimal comma if no separator is a comma
json      = a JSON array of numbers or of rows, or a JSON object from labels to numbers
FILE      = a path with one of the suffixes in `number_files.FORMATS`
family    = name "(" [ argument { "," argument } ] ")"
          | "mixture(" fraction "*" family { "+" fraction "*" family } ")"
argument  = [ name "=" ] value
fraction  = decimal [ "/" decimal ]
value     = [ "+" ] fraction | "[" [ value { "," value } ] "]"
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kullback.cli.delimited_text import DECIMAL_COMMA, CellReader
from kullback.cli.number_files import FORMATS, byte_counts, parse_json, read_file, split_name
from kullback.cli.number_tables import Table, parse_number
from kullback.errors import InputError, KullbackError

if TYPE_CHECKING:
    from kullback.families import Distribution, NormalMixture

__all__ = ["family_named", "family_names", "parameter_names", "read"]

_DECIMAL = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TOKEN = re.compile(rf"\s*(?:(-?{_DECIMAL}(?:\s*/\s*{_DECIMAL})?)|([A-Za-z_]\w*)|([()\[\],=*+]))")
_FAMILY = re.compile(r"\s*[A-Za-z_]\w*\s*\(")
# Names of families in other libraries, where the nearest name would be another family.
_OTHER_NAMES = {
    "gaussian": "normal",
    "gauss": "normal",
    "norm": "normal",
    "t": "student_t",
    "expon": "exponential",
    "chi2": "chi_squared",
    "multinormal": "multivariate_normal",
    "multivariategaussian": "multivariate_normal",
    "gaussianmixture": "normal_mixture",
    "gmm": "normal_mixture",
    "mixture": "normal_mixture",
    "nbinom": "negative_binomial",
    "invgauss": "inverse_gaussian",
    "invgamma": "inverse_gamma",
    "fisher": "f",
    "snedecor": "f",
}
_BRACKETS = {"[": "]", "(": ")"}

Member: TypeAlias = "Distribution | Table"


def read(text: str) -> Member:
    """Parse the notation of a distribution.

    Args:
        text: The notation, such as `normal(0, 1)`, `0.4,0.3,0.2,0.1`, `model.npy` or `bytes:book.txt`.

    Returns:
        A distribution of `kullback.families`; or a table of numbers, which are not validated as probabilities.

    Raises:
        InputError: The text does not follow the grammar of this module, or its file cannot be read.

    Example:
        >>> read("normal(0, scale=2)")
        Normal(loc=0.0, scale=2.0)
        >>> read("mixture(0.5*normal(0,2) + 0.5*normal(20,2))")
        NormalMixture(weights=[0.5, 0.5], locs=[0.0, 20.0], scales=[2.0, 2.0])
        >>> read("1/4 3/4").values
        array([0.25, 0.75])
    """
    if text.startswith("bytes:"):
        return byte_counts(text.removeprefix("bytes:"))
    if _FAMILY.match(text):
        return _Parser(text).parse()
    numbers = _parse_numbers(text)
    if numbers is not None:
        return numbers
    if text == "-" or text.startswith("-:") or _is_path(text):
        return read_file(text)
    raise _unknown(text)


def _parse_numbers(text: str) -> Table | None:
    """The table that a text denotes, or None if no part of the text is a number."""
    content = text.strip()
    if content.startswith(("[", "{")):
        try:
            return parse_json(repr(text), content)
        except RecursionError as error:
            raise InputError(
                f"expected a vector or a matrix of numbers, got lists nested too deeply: {text!r}"
            ) from error
        except InputError:
            if content.startswith(("{", "[[")) or '"' in content:
                raise
    if content[:1] in _BRACKETS and content.endswith(_BRACKETS[content[0]]):
        content = content[1:-1].strip()
    parts = _split_numbers(content)
    cells = CellReader(repr(text))
    values = [cells.convert(part) for part in parts]
    if all(value is None for value in values) or Path(text).suffix.lower() in FORMATS:
        return None
    for part, value in zip(parts, values, strict=True):
        if value is None:
            raise InputError(f"{text!r}: expected numbers with separators between them, got {part!r}")
    cells.finish()
    return Table(np.array(values, np.float64))


def _split_numbers(content: str) -> list[str]:
    """The parts of a list of numbers, which can have decimal commas where the separator is not a comma."""
    if ";" in content:
        parts = content.split(";")
    else:
        parts = re.sub(r"\s*/\s*", "/", content).split()
        are_numbers = all(parse_number(part) is not None or DECIMAL_COMMA.fullmatch(part) for part in parts)
        if "," in content and not (len(parts) > 1 and are_numbers):
            parts = content.split(",")
    parts = [part.strip() for part in parts]
    return parts[:-1] if len(parts) > 1 and parts[-1] == "" else parts


def _is_path(text: str) -> bool:
    """Whether a text that is neither a family nor numbers is the path of a file."""
    if not text.strip() or "\0" in text:
        return False
    try:
        path = split_name(text)[0]
        exists = Path(path).exists()
    except (OSError, ValueError):  # a name that is too long
        path, exists = text, False
    return exists or "/" in path or "\\" in path or re.search(r"\.[A-Za-z]\w{0,9}$", path) is not None


def _unknown(text: str) -> InputError:
    """The error for a text that has none of the forms of the notation."""
    if not text.strip():
        return InputError(f"expected a distribution, got the empty argument {text!r}")
    name = re.match(r"\s*([A-Za-z_]\w*)\s*$", text)
    if name is None:
        return InputError(f"{text!r}: expected numbers, a family such as 'normal(0, 1)', or a file; {_HELP}")
    classes = _families_by_key()
    family = classes.get(name[1].lower().replace("_", ""))
    if family is not None:
        parameters = ", ".join(parameter_names(family))
        return InputError(f"{text!r}: expected the parameters of the family: {_snake_case(family)}({parameters})")
    return InputError(f"no family and no file is called {text.strip()!r}{_nearest_family(name[1])}; {_HELP}")


_HELP = "`kullback measure --list` lists the families, and `kullback measure --help` describes the notation"


def family_names() -> list[str]:
    """The names of the families in snake case, in alphabetical order."""
    return sorted(map(_snake_case, _families_by_key().values()))


def parameter_names(family: type["Distribution"]) -> list[str]:
    """The names of the parameters of a family, in order."""
    from dataclasses import fields

    return [field.name for field in fields(family)]  # pyright: ignore[reportArgumentType]


def _nearest_family(name: str) -> str:
    names = {_snake_case(family).replace("_", ""): _snake_case(family) for family in _families_by_key().values()}
    from difflib import get_close_matches

    key = name.lower().replace("_", "")
    if key in _OTHER_NAMES:
        return f"; did you mean {_OTHER_NAMES[key]}?"
    similar = get_close_matches(key, names, n=1)
    return f"; did you mean {names[similar[0]]}?" if similar else ""


def family_named(name: str) -> type["Distribution"]:
    """Find a family by its name.

    Args:
        name: The name in snake case or as in `kullback.families`, such as `student_t` or `StudentT`.

    Returns:
        The class of the family.

    Raises:
        InputError: The name is unknown; the message suggests a similar name.

    Example:
        >>> family_named("student_t").__name__
        'StudentT'
    """
    classes = _families_by_key()
    key = name.lower().replace("_", "")
    if key not in classes:
        raise InputError(f"no family is called {name!r}{_nearest_family(name)}; {_HELP}")
    return classes[key]


def _families_by_key() -> dict[str, type["Distribution"]]:
    """The families by their names in lower case, without those that are composed of other distributions."""
    from kullback import families

    composite = {"Distribution", "Independent", "Transformed"}
    names = [name for name in families.__all__ if name not in composite]
    return {name.lower(): getattr(families, name) for name in names}


def _vector_hint(family: type["Distribution"], parameters: dict[str, Any]) -> str:
    """How a vector is written, if a number was passed where the family has a vector; otherwise an empty text."""
    vectors = [name for name in family.event_axes if isinstance(parameters.get(name), float)]
    return f"; write a vector in brackets, as in {vectors[0]}=[0.4, 0.6]" if vectors else ""


class _Parser:
    """A recursive-descent parser of the rule `family`, with one method for each rule."""

    def __init__(self, text: str) -> None:
        self.text, self.position = text, 0

    def parse(self) -> Member:
        """The distribution; nothing may follow it."""
        try:
            distribution = self.family()
        except RecursionError:
            raise InputError(f"{self.text!r}: expected a family, got lists nested too deeply") from None
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

    def mixture(self) -> "NormalMixture":
        from kullback.families import Normal, NormalMixture

        self.take("(")
        weights, parts = [], []
        while True:
            weights.append(self.number())
            self.take("*")
            part = self.family()
            if not isinstance(part, Normal):
                raise InputError(f"{self.text!r}: expected a mixture of normals, got a component {type(part).__name__}")
            parts.append(part)
            if self.peek() != "+":
                break
            self.take("+")
        self.take(")")
        return NormalMixture(weights=weights, locs=[part.loc for part in parts], scales=[part.scale for part in parts])

    def arguments(self, family: type["Distribution"]) -> Member:
        """The distribution with the parameters in the parentheses after the name of its family."""
        names = parameter_names(family)
        parameters: dict[str, Any] = {}
        self.take("(")
        while self.peek() != ")":
            if parameters:
                self.take(",")
            name = names[len(parameters)] if len(parameters) < len(names) else None
            if self.peek()[:1].isalpha() or self.peek()[:1] == "_":
                name = self.take("name")
                if name.lower() in ("nan", "inf", "infinity") and self.peek() != "=":
                    raise InputError(f"{self.text!r}: expected finite parameters, got {name}")
                self.take("=")
            if name not in names or name in parameters:
                got = "more" if name is None else f"{name} twice" if name in parameters else name
                hint = _vector_hint(family, parameters)
                raise InputError(f"{self.text!r}: {_snake_case(family)} takes {', '.join(names)}, got {got}{hint}")
            parameters[name] = self.value()
        self.take(")")
        try:
            distribution = family(**parameters)
        except (TypeError, ValueError) as error:
            if isinstance(error, KullbackError):
                if hint := _vector_hint(family, parameters):
                    raise InputError(f"{self.text!r}: {error}{hint}") from None
                raise
            missing = [name for name in names if name not in parameters]
            problem = f"also needs {', '.join(missing)}" if missing else f"does not accept these parameters: {error}"
            raise InputError(f"{self.text!r}: {_snake_case(family)} {problem}") from None
        # Probabilities are returned as an array, so that `measure` can list their terms.
        is_vector = family.__name__ == "Categorical" and np.ndim(parameters.get("probs", 0)) in (1, 2)
        return Table(np.asarray(parameters["probs"])) if is_vector else distribution

    def number(self) -> float:
        start = self.position
        value = parse_number(self.take("number").replace(" ", ""))
        if value is None:
            self.position = start
            raise self.failure("a number")
        return value

    def value(self) -> Any:
        if self.peek() != "[":
            if self.peek() == "+":
                self.take("+")
            return self.number()
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
            f"{self.text!r}: expected {expected}, got {got}; a family is written as in normal(0, scale=1)"
        )


def _snake_case(family: type) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", family.__name__).lower()
