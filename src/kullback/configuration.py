"""What an installation consists of: the version, the kernels and the libraries that it uses."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from kullback import compiled

__all__ = ["kernels", "show_config"]

_LIBRARIES = ("numpy", "scipy", "torch", "jax", "transformers", "trl", "stable-baselines3")


def kernels() -> str:
    """Which implementation computes the KL of arrays: compiled, with the instruction set, or NumPy."""
    if compiled.kernels is None:
        return "NumPy, because the package was installed without a C++ compiler"
    return f"compiled, {compiled.kernels.instruction_sets()[-1]}"


def show_config() -> None:
    """Print the version of Kullback, the kernels in use, and the versions of the libraries that are installed.

    Returns:
        None. The lines are printed to standard output, for reports of problems.

    Example:
        >>> show_config()  # doctest: +ELLIPSIS
        kullback ...
        kernels ...
        ...
    """
    lines = {"kullback": version("kullback"), "kernels": kernels(), "python": platform.python_version()}
    lines["platform"] = f"{sys.platform} {platform.machine()}"
    for library in _LIBRARIES:
        try:
            lines[library] = version(library)
        except PackageNotFoundError:
            lines[library] = "not installed"
    for name, text in lines.items():
        print(f"{name:<18} {text}")
