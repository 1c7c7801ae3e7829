"""Imports run downward only, and `import kullback` loads no heavy library."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kullback

SOURCE = Path(__file__).parents[1] / "src" / "kullback"

# From the lowest layer to the highest. A module may import from its own layer and from the layers before it.
LAYERS = [
    "compiled",
    "configuration",
    "errors",
    "runs",
    "numerics",
    "result",
    "discrete",
    "families",
    "closed_forms",
    "samples",
    "densities",
    "distributions",
    "measure",
    "measure_entropy",
    "fit",
    "tokens",
    "policy",
    "budget",
    "optimum",
    "doctor",
    "integrations",
    "train",
    "explore",
    "compare",
    "cli",
    "__main__",
]
HEAVY = {"torch", "jax", "numba", "transformers", "trl", "accelerate", "datasets", "pandas"}

PUBLIC_MODULES = {f"kullback.{name}": module for name, module in kullback._MODULES.items()}
FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]
MODULES = {".".join(["kullback", *path.relative_to(SOURCE).with_suffix("").parts]) for path in FILES}


def layer(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """The full names of the modules that a file imports, at any depth of the code.

    Relative imports are resolved, and a public name of the package stands for the module that defines it.
    """
    package = ["kullback", *path.relative_to(SOURCE).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {PUBLIC_MODULES.get(name, name) for name in found}


def imports_by_string(path: Path) -> set[str]:
    """The modules of this package that string constants name, including the constant prefix of an f-string.

    A string names a module if it is the module's full name, or the full name of an attribute of the module. An f-string
    such as f"kullback.doctor.{name}" names the package before its last dot.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prefixes = {id(node.values[0]) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) and node.values}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and re.fullmatch(r"kullback(\.\w*)+", str(node.value)):
            name = node.value.rpartition(".")[0] if id(node) in prefixes else node.value
            found |= {module for module in ancestors(name) if module in MODULES or f"{module}.__init__" in MODULES}
    return found


def ancestors(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(2, len(parts) + 1))


def layers_above(path: Path) -> set[str]:
    used = {name.split(".")[1] for name in imports(path) | imports_by_string(path) if name.startswith("kullback.")}
    rank = LAYERS.index(layer(path))
    return {name for name in used if name in LAYERS and LAYERS.index(name) > rank}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downward(path: Path) -> None:
    above = layers_above(path)
    assert not above, f"{path.relative_to(SOURCE)} is in the layer {layer(path)} and imports {above} above it"


def test_every_file_has_its_layer() -> None:
    assert {layer(path) for path in FILES} == set(LAYERS)


@pytest.mark.parametrize(
    "code",
    [
        "from kullback.cli import main",
        "def f():\n    import kullback.cli.main",
        "def f():\n    from kullback import cli",
        "from kullback import dpo_loss",
        "import_module('kullback.cli')",
        "adapters = {'torch': 'kullback.integrations.torch'}",
        "import_module(f'kullback.integrations.{name}')",
    ],
)
def test_upward_imports_are_found(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    path = tmp_path / "discrete" / "example.py"
    path.parent.mkdir()
    path.write_text(code)
    assert layers_above(path) & {"cli", "integrations", "policy"}


def loaded(code: str) -> str:
    """The heavy libraries that a fresh interpreter has loaded after it ran the code."""
    code = f"import sys\n{code}\nprint(sorted(set(sys.modules) & {HEAVY | {'scipy.stats'}!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "code",
    [
        "import kullback",
        "import kullback.measure",
        "import kullback.distributions",
        "import kullback.compare.llama_cpp_statistics, kullback.compare.statistics",
    ],
)
def test_imports_load_no_heavy_library(code: str) -> None:
    assert loaded(code) == "[]"


def test_the_command_line_help_loads_no_heavy_library() -> None:
    code = "from kullback.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded(code).endswith(("[]", "['scipy.stats']"))


def test_nothing_is_unpickled_or_evaluated() -> None:
    banned = {"pickle", "dill", "marshal", "shelve", "joblib"}
    for path in FILES:
        assert not imports(path) & banned, path
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"eval", "exec", "compile", "__import__"}, path
