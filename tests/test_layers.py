"""Imports run downward only, one third-party library a file under integrations, and `import kullback` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "kullback"

# From the ground up; a module may import from its own row and the rows before it.
LAYERS = [
    {"errors", "result", "files", "_arrays", "_special"},
    {"residual"},
    {"log_gamma"},
    {"_checks", "_events", "_blocks", "_fast", "_fast_logits", "_quick"},
    {"discrete"},
    {"_generators", "_powers", "entropies", "divergences"},
    {"families"},
    {"closed_forms"},
    {"distributions"},
    {"densities"},
    {"measures"},
    {"fit"},
    {"tokens"},
    {"policy"},
    {"integrations"},
    {"train"},
    {"explore"},
    {"cli", "__main__"},
]
HEAVY = {"torch", "jax", "numba", "transformers", "trl", "accelerate", "datasets", "pandas"}


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, by their full names; relative imports resolved."""
    package = ["kullback", *path.relative_to(SOURCE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downward(path: Path) -> None:
    rank = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("kullback.")} & rank.keys()
    upward = {name for name in rooms if rank[name] > rank[room(path)]}
    assert not upward, f"{path.relative_to(SOURCE)} is in {room(path)} and imports {upward} above it"


def test_every_file_has_its_layer() -> None:
    assert {room(path) for path in FILES} == {name for layer in LAYERS for name in layer}


def test_a_file_fits_on_the_desk() -> None:
    large = {str(path.relative_to(SOURCE)): size for path in FILES if (size := path.stat().st_size) > 15_000}
    assert not large


def test_the_ground_needs_no_heavy_library() -> None:
    code = f"import sys, kullback; print(sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_says_its_version_without_them_too() -> None:
    code = (
        "import sys\nfrom kullback.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        f"print(sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_nothing_is_unpickled_or_evaluated() -> None:
    banned = {"pickle", "dill", "marshal", "shelve", "joblib"}
    for path in FILES:
        assert not imports(path) & banned, path
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"eval", "exec", "compile", "__import__"}, path
