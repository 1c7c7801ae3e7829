"""Docstrings, comments, messages and documentation use standard terms, and no name that was replaced remains."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "kullback"
MODULES = sorted(SOURCE.rglob("*.py"))
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py")) + sorted((ROOT / "examples").glob("*.py"))
STATIC = sorted((SOURCE / "explore" / "static").glob("*"))
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]

# Metaphors, personifications and elliptic phrases that this project once used, with what to write instead.
BANNED = {
    r"leash(es)?": "budget step",
    r"bustle": "root-mean-square step",
    r"blur(red|s)?": "standard error",
    r"told|tells?": "passed, known, identifies",
    r"nobody|somebody|whoever": "name the thing",
    r"that of|those of": "repeat the noun",
    r"is no (?!longer|more|less|larger|smaller|greater|better|worse)\w+": "is not a ...",
    r"knows?": "has, stores, supports",
    r"wants?": "requires, increases",
    r"sees|saw": "reads, measures",
    r"judge[ds]?|judging|judg(e)?ments?": "evaluate, evaluation",
    r"buys?|bought": "trade for",
    r"rests|resting|rested": "is at its minimum",
    r"at the desk|on the desk": "name the place",
    r"rooms?": "page, package",
    r"braked|brakes": "applies the brake",
    r"aims? at": "targets",
    r"sight(ed)?|shores?": "grid, edge",
    r"heats?|heated|heating": "raise the temperature",
    r"pains?": "regression",
    r"in hand": "current",
    r"looked? again|looks again|look(ed)? at": "measured again, examined",
    r"of its own kind|of their own kind": "of the same type",
    r"by itself alone|not to be had|to be had": "available",
    r"farther than can be seen": "larger than the measurement error",
    r"powerless": "saturated",
    r"pushe?s? mass": "move probability",
    r"informed[_ ]units": "active_units_by_kl",
    r"says?|said": "states",
    r"anew|no matter|as far as": "again, regardless of, if",
    r"inside (?:(?:a|an|the|its) )?(?:KL )?budgets?": "with a KL budget, within a KL budget",
    r"held-out panels?": "held-out samples",
    r"the ones? (?:that|which|in|with|without|after|before|from)": "repeat the noun",
    r"(?:got|gets) (?:worse|better)": "worsened, improved",
    r"left alone|moved back|goes back": "unchanged, scaled back",
    r"(?:allows?|enables?|permits?) to": "name who is allowed, or use a noun",
    r"thereby|whereby|wherein|therein|thereof|hereby|hence|upon": "use a plain conjunction",
}
PATTERN = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)

# Identifiers that were replaced, or that need their context to be understood.
BANNED_NAMES = {
    *(
        "leash",
        "leashes",
        "Leash",
        "bustle",
        "blur",
        "sight",
        "_sight",
        "shore",
        "_shore",
        "told",
        "doubt",
        "drift_doubt",
    ),
    *(
        "offset_doubt",
        "powerless",
        "Level",
        "Power",
        "Given",
        "Found",
        "Kind",
        "_Anew",
        "Seen",
        "Pair",
        "Positions",
        "Arm",
    ),
    *(
        "Track",
        "Occurrences",
        "RLlib",
        "Held",
        "Local",
        "Explained",
        "Record",
        "told_budget",
        "picked",
        "seen_as",
        "made",
    ),
    *(
        "dispersion",
        "_leaks",
        "left_after",
        "may_begin",
        "power_of_gamma",
        "divisor",
        "kl_level",
        "informed_units",
        "judged",
    ),
    *("step_scale", "moved", "braked", "best_of_n", "hold", "place_symptoms", "mask_symptoms", "kl_symptoms"),
}


def text_of_module(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings, other string constants and comments of a Python file, by line.

    Examples in docstrings and the tables of former names, which are assigned to names with the prefix `_FORMER`, are
    skipped.
    """
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    skipped = {constant for table in former_names(tree) for constant in ast.walk(table)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            for offset, line in enumerate(node.value.splitlines()):
                if not line.lstrip().startswith((">>>", "...")):
                    yield node.lineno + offset, line
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def former_names(tree: ast.Module) -> Iterator[ast.expr]:
    """The values that a module assigns to names with the prefix `_FORMER`."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.startswith("_FORMER"):
                yield value


def text_of_page(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page outside of code fences."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, re.sub(r"`[^`]*`", "``", line)


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=identify)
def test_modules_use_standard_terms(path: Path) -> None:
    found = [
        f"{line}: {match[0]!r} in {text.strip()!r}"
        for line, text in text_of_module(path)
        if (match := PATTERN.search(text))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", PAGES, ids=identify)
def test_pages_use_standard_terms(path: Path) -> None:
    found = [
        f"{line}: {match[0]!r} in {text.strip()!r}"
        for line, text in text_of_page(path)
        if (match := PATTERN.search(text))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", STATIC, ids=identify)
def test_web_assets_use_standard_terms(path: Path) -> None:
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    found = [f"{line}: {match[0]!r} in {text.strip()!r}" for line, text in lines if (match := PATTERN.search(text))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=identify)
def test_no_replaced_name_remains(path: Path) -> None:
    used = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                used.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                used.add(name)
    assert not used & BANNED_NAMES
