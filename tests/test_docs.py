"""The examples of README and docs run, their links resolve, and the API reference documents every public name."""

import ast
import doctest
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kullback

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [*sorted(ROOT.glob("*.md")), *PAGES, ROOT / "benchmarks" / "README.md"]

sys.path.insert(0, str(DOCS / "extensions"))
reference, families_page, docstrings = map(import_module, ("reference", "families_page", "docstrings"))
sys.path.remove(str(DOCS / "extensions"))

ENTRIES = [entry for page in reference.PAGES.values() for entry in reference.entries(page)]


def identify(path: Path) -> str:
    return str(path.relative_to(ROOT))


# Examples


class Cell(NamedTuple):
    """A code cell of a page.

    Args:
        line: The line of its first statement in the page.
        code: Its statements, padded with empty lines such that a traceback has the line numbers of the page.
    """

    line: int
    code: str


def cells(page: Path) -> list[Cell]:
    """The code cells of a page, in order."""
    found, text = [], page.read_text(encoding="utf-8")
    for match in re.finditer(r"^```\{code-cell\}[^\n]*\n(?::[^\n]*\n)*(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(1)) + 1
        found.append(Cell(line, "\n" * (line - 1) + match[1]))
    return found


def doctest_of(page: Path) -> doctest.DocTest:
    # A fence that closes an example is not a part of its output.
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)


@pytest.mark.parametrize("page", [page for page in PAGES if cells(page)], ids=identify)
@pytest.mark.filterwarnings("default")
def test_code_cells_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(page), 1):
        try:
            exec(compile(cell.code, str(page), "exec"), namespace)
        except Exception as error:
            raise AssertionError(f"{identify(page)}, cell {number} (line {cell.line}): {error!r}") from error


@pytest.mark.parametrize("page", TEXTS, ids=identify)
def test_doctests_of_pages_run(page: Path) -> None:
    assert doctest.DocTestRunner().run(doctest_of(page)).failed == 0


def test_the_readme_has_an_example() -> None:
    assert ">>> import kullback as kk" in README.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=identify)
def test_pages_have_no_output_that_was_pasted(page: Path) -> None:
    assert not doctest_of(page).examples


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub and MyST name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=identify)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", text):
        if target.startswith("generated/"):
            assert target in GENERATED, target
            continue
        path = (page.parent / target) if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_every_page_is_in_a_table_of_contents() -> None:
    text = "\n".join(re.findall(r"^```\{toctree\}.*?^```$", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL))
    listed = set(re.findall(r"^(?:.* <)?([\w/]+)>?$", text, re.MULTILINE))
    assert {page.stem for page in PAGES} - {"index"} <= listed
    assert {name.removesuffix(".rst") for name in GENERATED if not name.startswith("generated/api/")} <= listed


def test_cited_works_are_in_the_bibliography() -> None:
    keys = set(re.findall(r"^@\w+\{(\w+),", (DOCS / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        cited = re.findall(r"\{cite:[pt]\}`([^`]+)`", page.read_text(encoding="utf-8"))
        assert {key for group in cited for key in group.split(",")} <= keys, page.name


# Tables that repeat what the code has


def test_the_doctor_page_has_a_row_for_every_finding() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \|", (DOCS / "doctor.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    names = set(findings())
    assert sorted(names - set(rows)) == []
    assert sorted(set(rows) - names) == []


def findings() -> Iterator[str]:
    """The names of the findings that the checks can return: string constants in calls of Finding and of its helpers."""
    for path in sorted((ROOT / "src" / "kullback" / "doctor").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding" and node.args:
                for part in ast.walk(node.args[0]):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


# The API reference

GENERATED = {
    "generated/families.rst": families_page.page_text(),
    "generated/api/index.rst": reference.index_text(),
    **{f"generated/api/{name}.rst": reference.page_text(page) for name, page in reference.PAGES.items()},
}


@pytest.mark.parametrize("name", sorted(kullback.__all__))
def test_every_public_name_is_in_the_reference(name: str) -> None:
    value = getattr(kullback, name)
    assert [entry.path for entry in ENTRIES if entry.value is value]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.path)
def test_every_documented_name_is_public(entry: Any) -> None:
    assert entry.name in import_module(entry.module).__all__
    assert not entry.name.startswith("_")
    assert any(f":: {entry.path}\n" in f"{text}\n" for text in GENERATED.values())


def test_names_are_documented_once() -> None:
    paths = [entry.path for entry in ENTRIES]
    assert sorted(path for path in set(paths) if paths.count(path) > 1) == []


def test_the_families_page_has_every_family_and_pair() -> None:
    text = GENERATED["generated/families.rst"]
    families = families_page.all_families()
    assert len(families) == len(kullback.families.__all__) - 1
    for family in families:
        assert f"<kullback.families.{family.__name__}>`" in text
    for function, pairs in families_page.pairs_by_function().items():
        assert all(families_page._pair(*pair) in text for pair in pairs)
        assert function.__name__ != "<lambda>"


@pytest.mark.parametrize(
    "function", families_page.pairs_by_function(), ids=lambda function: f"{function.__module__}.{function.__name__}"
)
def test_every_closed_form_has_its_formula(function: Callable[..., Any]) -> None:
    docstring = inspect.getdoc(function) or ""
    assert "KL(" in docstring
    assert "=" in docstring or "inf" in docstring


# Docstrings

KL_WORDS = ("sum", "log", "phi(", "integral", "E_", "E[", "mean", "exp(")


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """The documented functions of a public object: itself, or the public methods that a class defines itself."""
    if inspect.isfunction(value):
        yield "", value
    elif inspect.isclass(value):
        for name, member in vars(value).items():
            function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            bases = value.__mro__[1:]
            inherited = any(name in vars(base) for base in bases if not base.__module__.startswith("kullback"))
            if inspect.isfunction(function) and function.__doc__ and not name.startswith("_") and not inherited:
                yield f".{name}", function


def has_an_example_to_show(value: Any) -> bool:
    """Whether users call the object; exceptions, interfaces and results without methods only have their fields."""
    if not inspect.isclass(value):
        return inspect.isfunction(value)
    if issubclass(value, BaseException) or getattr(value, "_is_protocol", False) or typing.is_typeddict(value):
        return False
    is_record = hasattr(value, "_fields") or is_dataclass(value)
    return not is_record or issubclass(value, kullback.families.Distribution) or any(members(value))


FUNCTIONS = [
    pytest.param(function, id=f"{entry.path}{name}")
    for entry in ENTRIES
    for name, function in members(entry.value)
    if getattr(function, "__module__", "").startswith("kullback")
]
CLASSES = [
    pytest.param(entry.value, id=entry.path)
    for entry in ENTRIES
    if inspect.isclass(entry.value) and not issubclass(entry.value, BaseException)
]
WITH_EXAMPLES = [pytest.param(entry.value, id=entry.path) for entry in ENTRIES if has_an_example_to_show(entry.value)]


def raises(function: Callable[..., Any]) -> bool:
    """Whether the body of a function, without the functions inside it, has a raise statement."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    pending: list[ast.AST] = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Raise):
            return True
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            pending += ast.iter_child_nodes(node)
    return False


def is_annotated_to_return(function: Callable[..., Any]) -> bool:
    return inspect.signature(function).return_annotation not in (None, "None", inspect.Signature.empty)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_have_their_sections(function: Callable[..., Any]) -> None:
    docstring = inspect.getdoc(function) or ""
    sections = [line for line in docstring.splitlines() if line in docstrings.SECTIONS]
    parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    wanted = ["Args:"] * bool(parameters) + ["Returns:"] * is_annotated_to_return(function)
    wanted += ["Raises:"] * raises(function)
    assert [section for section in wanted if section not in sections] == []
    assert sections == [section for section in docstrings.SECTIONS if section in sections], "order of sections"


@pytest.mark.parametrize("kind", CLASSES)
def test_classes_describe_their_arguments(kind: type) -> None:
    docstring = inspect.getdoc(kind) or ""
    names = [field.name for field in fields(kind) if field.init] if is_dataclass(kind) else []
    names += list(getattr(kind, "_fields", ()))
    if names:
        assert "Args:" in docstring.splitlines()
        assert [
            name for name in names if not re.search(rf"^    {name}(, \w+)*( \(.*\))?:", docstring, re.MULTILINE)
        ] == []


@pytest.mark.parametrize("value", WITH_EXAMPLES)
def test_public_objects_have_an_example(value: Any) -> None:
    example = (inspect.getdoc(value) or "").partition("\nExample:\n")[2]
    assert ">>>" in example


KL_FUNCTIONS = [
    pytest.param(entry.value, id=entry.path)
    for entry in ENTRIES
    if inspect.isfunction(entry.value) and re.fullmatch(r"measure|kl|kl_\w+|(?!register|check)\w+_kl", entry.name)
]


@pytest.mark.parametrize("function", KL_FUNCTIONS)
def test_kl_functions_have_a_formula(function: Callable[..., Any]) -> None:
    docstring = (inspect.getdoc(function) or "").partition("Args:")[0]
    assert "KL(" in docstring
    assert any(word in docstring for word in KL_WORDS)
