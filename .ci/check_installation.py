"""Check an installation without extras: what it imports, what it computes, and which files it contains.

`make package` runs this file with the Python of an environment into which only the wheel was installed.
"""

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib.resources import files
from pathlib import Path

HEAVY = ("torch", "jax", "numba", "scipy.stats", "transformers", "trl", "pandas")

started = time.perf_counter()
import kullback  # noqa: E402

value = kullback.kl_probs([0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.3, 0.1])
seconds = time.perf_counter() - started

loaded = sorted(set(HEAVY) & set(sys.modules))
assert not loaded, f"kullback.kl_probs imports {loaded}"
assert abs(value - 0.0339798) < 1e-6
if shutil.which("c++") and Path(sysconfig.get_paths()["include"], "Python.h").is_file():
    assert sys.modules["kullback.compiled"].kernels, "expected compiled kernels, because there is a compiler"
assert importlib.util.find_spec("torch") is None, "expected an environment without extras"

from kullback.families import Laplace, Normal, StudentT  # noqa: E402

assert abs(kullback.kl(Normal(loc=0.0, scale=1.0), Normal(loc=1.0, scale=2.0)) - 0.4431471805599453) < 1e-15
assert kullback.measure(StudentT(df=5.0, loc=0.0, scale=1.0), Laplace(loc=0.0, scale=1.0)).status == "bounded"
message = ""
try:
    kullback.token_kl  # noqa: B018
except kullback.KullbackError as error:
    message = str(error)
assert "pip install 'kullback[train]'" in message, f"expected an error that names the extra, got {message!r}"

package = files("kullback")
assert (package / "py.typed").is_file()
assert (package / "explore" / "static" / "explorer.html").is_file()

command = Path(sys.executable).with_name("kullback")
done = subprocess.run([command, "measure", "0.5,0.5", "0.9,0.1"], capture_output=True, text=True, check=True)
assert "0.5108" in done.stdout, done.stdout
page = Path(sys.prefix) / "page.html"
subprocess.run([command, "explore", "--output", str(page)], check=True, capture_output=True)
assert page.stat().st_size > 50_000

print(f"kullback {kullback.__version__} without extras: import and first kl_probs took {seconds:.3f} s")
