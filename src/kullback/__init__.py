"""Kullback: measure, minimise and constrain KL divergence.

`__init__.pyi` lists the public names. Each is imported at its first use, so that `import kullback` loads neither NumPy
nor PyTorch.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULES = {
    name.name: statement.module or ""
    for statement in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(statement, ast.ImportFrom)
    for name in statement.names
}

__all__ = sorted(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    elif name == "__version__":
        value = import_module("importlib.metadata").version("kullback")
    else:
        raise AttributeError(f"module 'kullback' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """A package whose public functions keep their names when a submodule of the same name is imported.

    Python binds an imported submodule to its name in the package. `kullback.measure` and `kullback.doctor` are the
    functions, in every order of imports.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
