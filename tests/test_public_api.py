"""The public names: each is imported lazily, documented, and a function or class whatever is imported first."""

import inspect
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import kullback


def test_every_public_name_can_be_imported() -> None:
    assert len(kullback.__all__) == len(set(kullback.__all__)) == 48
    assert dir(kullback) == kullback.__all__
    for name in kullback.__all__:
        assert getattr(kullback, name) is not None


def test_other_names_are_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'kl_div'"):
        _ = kullback.kl_div


@pytest.mark.parametrize("name", sorted(set(kullback.__all__) - {"KullbackError"}))
def test_public_names_are_documented(name: str) -> None:
    text = getattr(kullback, name).__doc__
    assert text
    assert "Args:" in text or not inspect.signature(getattr(kullback, name)).parameters
    assert "Example:" in text
    assert ">>>" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import kullback.measure",
        "from kullback.measure import measure",
        "from kullback.densities import quadrature",
        "import kullback.doctor",
        "from kullback.doctor.masks import check_masks",
        "kullback.doctor; import kullback.doctor.masks",
        "from kullback.fit import fit_forward",
        "import kullback.cli",
    ],
)
def test_names_of_submodules_remain_functions(code: str) -> None:
    check = (
        f"import kullback\n{code}\nfrom types import FunctionType\nfrom kullback.families import Normal\n"
        "assert isinstance(kullback.measure, FunctionType) and isinstance(kullback.doctor, FunctionType)\n"
        "assert kullback.measure(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=1.0)).value == 0.5\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_stub_is_consistent_with_the_modules() -> None:
    stub = Path(kullback.__file__).with_suffix(".pyi").read_text()
    for name, module in kullback._MODULES.items():
        assert f"from {module} import {name} as {name}\n" in stub
        assert getattr(kullback, name) is getattr(import_module(module), name)


def test_the_version_is_the_version_of_the_installed_package() -> None:
    assert kullback.__version__ == version("kullback")


def test_importing_the_package_loads_no_module_of_it() -> None:
    code = "import sys, kullback; print([name for name in sys.modules if name.startswith(('kullback.', 'numpy'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import kullback\n"
        "from kullback.errors import MissingDependencyError\n"
        "try: kullback.token_kl\n"
        "except MissingDependencyError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'kullback[train]'" in done.stdout, done.stderr
