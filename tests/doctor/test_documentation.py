"""Every finding is documented in docs/doctor.md and in the docstring of its check, and is tested."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "src" / "kullback" / "doctor").glob("*.py"))
TESTS = (*sorted((ROOT / "tests" / "doctor").glob("*.py")), ROOT / "tests" / "cli" / "test_doctor.py")


def names_of_findings(tree: ast.AST) -> set[str]:
    """The names of the findings that are constructed in a syntax tree."""
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding"
    ]
    return {call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)}


def checks() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("check_"):
                yield f"{path.stem}.{node.name}", node


def test_every_finding_is_documented_and_tested() -> None:
    raised = {name for path in MODULES for name in names_of_findings(ast.parse(path.read_text()))}
    page = (ROOT / "docs" / "doctor.md").read_text()
    documented = set(re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE))
    assert raised == documented
    tests = "".join(path.read_text() for path in TESTS)
    assert not {name for name in raised if f'"{name}"' not in tests}


@pytest.mark.parametrize("check", [pytest.param(node, id=name) for name, node in checks()])
def test_the_docstring_of_a_check_names_its_findings(check: ast.FunctionDef) -> None:
    docstring = ast.get_docstring(check) or ""
    assert "Returns:" in docstring
    assert {name for name in names_of_findings(check) if f"`{name}`" not in docstring} == set()


def test_only_functions_named_check_create_findings() -> None:
    def count(tree: ast.AST) -> int:
        return sum(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding" for node in ast.walk(tree))

    assert sum(count(check) for _, check in checks()) == sum(count(ast.parse(path.read_text())) for path in MODULES)
