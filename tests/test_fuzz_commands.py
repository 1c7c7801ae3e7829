"""Random command lines end with a documented exit status and without a traceback; see tests/fuzz_commands.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_commands.py")
spec = importlib.util.spec_from_file_location("fuzz_commands", SCRIPT)
assert spec is not None
assert spec.loader is not None
fuzz_commands = importlib.util.module_from_spec(spec)
sys.modules["fuzz_commands"] = fuzz_commands
spec.loader.exec_module(fuzz_commands)


@pytest.mark.filterwarnings("ignore")
def test_a_part_of_the_random_command_lines() -> None:
    _, failures = fuzz_commands.fuzz(0, range(120))
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ('{"kl": -1e-9, "unit": "nats"}', "kl is -1e-09"),
        ('{"kl": "nan"}', "kl is nan"),
        ('{"kl": 2.0, "interval": [0.0, 1.0]}', "outside of its interval"),
        ('{"kl": NaN}', "not JSON"),
        ('{"kl": 1} {"kl": 1}', "not JSON"),
    ],
)
def test_wrong_output_is_found(out: str, expected: str, tmp_path: Path) -> None:
    case = fuzz_commands.Case(["measure", "a", "b", "--json"])
    assert expected in " ".join(fuzz_commands.faults(case, 0, out, "", tmp_path))


def test_a_wrong_status_is_found(tmp_path: Path) -> None:
    case = fuzz_commands.Case(["measure"])
    for status, out, err in ((3, "", ""), (2, "", ""), (2, "", "kullback: a\nb\n"), (2, "x", "kullback: a\n")):
        assert list(fuzz_commands.faults(case, status, out, err, tmp_path))
    assert not list(fuzz_commands.faults(case, 2, "", "kullback: a\n", tmp_path))
