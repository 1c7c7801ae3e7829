"""The tables that `kullback measure` and `kullback fit` read: formats, headers, labels, damage and bounded memory."""

import io
import json
import math
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kullback.cli import main
from kullback.cli.distribution_syntax import read
from kullback.cli.number_files import read_file
from kullback.cli.number_tables import Table
from kullback.errors import InputError

P = [0.4, 0.3, 0.2, 0.1]


def values(text: str) -> list:
    table = read(text)
    assert isinstance(table, Table)
    return table.values.tolist()


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def measure(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["measure", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/4,3/4", [0.25, 0.75]),
        ("0.5/2, 3/4", [0.25, 0.75]),
        ("1 / 4 3 / 4", [0.25, 0.75]),
        ("[0.4, 0.6]", [0.4, 0.6]),
        ("[0.4 0.6]", [0.4, 0.6]),
        ("(0.4, 0.6)", [0.4, 0.6]),
        ("0.5 0.5", [0.5, 0.5]),
        ("0.5;0.5", [0.5, 0.5]),
        ("0,4;0,6", [0.4, 0.6]),
        ("0,4; 0,6", [0.4, 0.6]),
        ("0,4 0,6", [0.4, 0.6]),
        ("1,234;0,5", [1.234, 0.5]),
        ("0.4,0.6,", [0.4, 0.6]),
        ("\t0.4,\n0.6", [0.4, 0.6]),
        ("+4e-1,.6", [0.4, 0.6]),
        ("[[0.4, 0.6], [1, 0]]", [[0.4, 0.6], [1.0, 0.0]]),
        ('{"a": 0.4, "b": 0.6}', [0.4, 0.6]),
    ],
)
def test_notations_of_numbers(text: str, expected: list) -> None:
    assert values(text) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "0.4,0.3,0.2,0.1"),
        ("p.CSV", "0.4\n0.3\n0.2\n0.1\n"),
        ("p.csv", "0.4\r\n0.3\r\n0.2\r\n0.1\r\n"),
        ("p.csv", "\ufeff0.4,0.3,0.2,0.1"),
        ("p.csv", "\n\n# comment\n0.4,0.3,0.2,0.1,\n\n"),
        ("p.csv", "0.4;0.3;0.2;0.1"),
        ("p.csv", "0,4;0,3;0,2;0,1"),
        ("p.csv", '"0,4","0,3","0,2","0,1"'),
        ("p.csv", '"0.4","0.3","0.2","0.1"'),
        ("p.csv", "probability\n0.4\n0.3\n0.2\n0.1"),
        ("p.csv", "a,b,c,d\n0.4,0.3,0.2,0.1"),
        ("p.csv", 'word,p\n"a,b",0.4\n"say ""c""",0.3\nd,0.2\ne,0.1'),
        ("p.csv", "a,0.4\nb,0.3\nc,0.2\nd,0.1"),
        ("p.csv", "0.4,a\n0.3,b\n0.2,c\n0.1,d"),
        ("p.csv", ",p\n0,0.4\n1,0.3\n2,0.2\n3,0.1"),
        ("p.csv", ",0\n0,0.4\n1,0.3\n2,0.2\n3,0.1"),
        ("p.csv", "index,p\n7,0.4\n5,0.3\n6,0.2\n2,0.1"),
        ("p.csv", "p\na,0.4\nb,0.3\nc,0.2\nd,0.1"),
        ("p.csv", "word;p\na;0,4\nb;0,3\nc;0,2\nd;0,1"),
        ("p.tsv", "0.4\t0.3\t0.2\t0.1"),
        ("p.TSV", "word\tp\na\t0,4\nb\t0,3\nc\t0,2\nd\t0,1"),
        ("p.txt", "0.4 0.3\t0.2   0.1".replace("\t", " ")),
        ("p.txt", "  0.4\n  0.3\n  0.2\n  0.1"),
        ("p.txt", "0.4, 0.3, 0.2, 0.1"),
        ("p.txt", "4/10 3/10 2/10 1/10"),
        ("p.txt", "0,4 0,3 0,2 0,1"),
        ("p.txt", '"the cat" 0.4\nb    0.3\nc 0.2\nd 0.1'),
        ("p.csv", "0.4,0.3,0.2,0.1".encode("utf-16")),
        ("p.json", "[0.4, 0.3, 0.2, 0.1]"),
        ("p.JSON", "\ufeff[0.4, 0.3, 0.2, 0.1]"),
        ("p.json", '{"probs": [0.4, 0.3, 0.2, 0.1]}'),
        ("p.json", '{"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}'),
        ("p.json", '[{"w": "a", "p": 0.4}, {"w": "b", "p": 0.3}, {"p": 0.2, "w": "c"}, {"w": "d", "p": 0.1}]'),
        ("p.json", '{"p": {"0": 0.4, "1": 0.3, "2": 0.2, "3": 0.1}}'),
        ("p.jsonl", "0.4\n0.3\n\n0.2\n0.1\n"),
        ("p.jsonl", "[0.4, 0.3, 0.2, 0.1]\n"),
        ("p.ndjson", '{"w": "a", "p": 0.4}\n{"w": "b", "p": 0.3}\n{"w": "c", "p": 0.2}\n{"w": "d", "p": 0.1}'),
        ("p.json", '{"w": "a", "p": 0.4}\n{"w": "b", "p": 0.3}\n{"w": "c", "p": 0.2}\n{"w": "d", "p": 0.1}'),
    ],
)
def test_files_that_people_have(name: str, content: str | bytes, tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / name, content)
    assert values(path) == P
    # The format of standard input is recognised from its content.
    standard_input(monkeypatch, Path(path).read_bytes())
    assert values("-") == P


def test_numpy_archives(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", p=P)
    assert values(f"{tmp_path}/one.npz") == P
    np.savez_compressed(tmp_path / "two.NPZ.npz", p=P, q=P[::-1])
    assert values(f"{tmp_path}/two.NPZ.npz:q") == P[::-1]
    with pytest.raises(InputError, match=r"expected one array, got p, q; pass FILE:NAME"):
        read(f"{tmp_path}/two.NPZ.npz")
    with pytest.raises(InputError, match=r"expected one of its names \('p', 'q'\), got 'r'"):
        read(f"{tmp_path}/two.NPZ.npz:r")
    np.savez(tmp_path / "pickle.npz", p=np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="Object arrays cannot be loaded"):
        read(f"{tmp_path}/pickle.npz")
    for dtype in ("float16", ">f8", "float32", "int8", "uint64", np.longdouble):
        np.save(tmp_path / "x.npy", np.array([1, 0], dtype))
        assert values(f"{tmp_path}/x.npy") == [1.0, 0.0]


def test_columns_rows_and_members_by_name(tmp_path: Path, capsys) -> None:
    columns = write(tmp_path / "c.csv", "token,p,q\na,0.5,0.25\nb,0.5,0.75\n")
    assert (values(f"{columns}:p"), values(f"{columns}:q")) == ([0.5, 0.5], [0.25, 0.75])
    facts = measure(capsys, f"{columns}:p", f"{columns}:q", "--terms")
    assert facts["kl"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), rel=1e-14)
    assert [term["event"] for term in facts["terms"]] == ["a", "b"]
    assert main(["measure", columns, "0.5,0.5"]) == 2
    assert "each column sums to 1" in capsys.readouterr().err
    rows = write(tmp_path / "r.csv", "model,a,b\nbase,0.5,0.5\ntuned,0.25,0.75\n")
    assert values(f"{rows}:tuned") == [0.25, 0.75]
    members = write(tmp_path / "m.json", '{"p": [0.5, 0.5], "q": {"a": 0.25, "b": 0.75}}')
    assert (values(f"{members}:p"), values(f"{members}:q")) == ([0.5, 0.5], [0.25, 0.75])
    with pytest.raises(InputError, match="expected one distribution, got 2: 'p', 'q'; pass FILE:NAME"):
        read(members)
    labels = write(tmp_path / "l.json", '{"a": 0.4, "b": 0.6}')
    with pytest.raises(InputError, match=r"expected one of its names \('a', 'b'\), got 'x'"):
        read(f"{labels}:x")


def test_a_name_that_occurs_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "p,q,p\n0.5,0.4,0.3\n0.5,0.6,0.7\n")
    assert values(f"{path}:q") == [0.4, 0.6]
    with pytest.raises(InputError, match="expected one column or row of the name 'p', got several"):
        read(f"{path}:p")


@pytest.mark.parametrize("content", ["1e-400,1", "[1e-400, 1]", '{"a": 1e-400, "b": 1}', "a 1\nb 1e-999", "1;0,1e-400"])
def test_numbers_that_would_become_zero_are_refused(content: str, tmp_path: Path, capsys) -> None:
    """KL(q || p) would be inf, and is about 460 nats."""
    path = write(tmp_path / ("x.json" if content[0] in "[{" else "x.csv"), content)
    for argument in (path, content):
        assert main(["measure", argument, "0.5,0.5"]) == 2
        assert re.search(r"(1e-400|1e-999) would become 0; pass the logarithms", capsys.readouterr().err)
    assert values(write(tmp_path / "zero.csv", "0e-400,0.000,1\n")) == [0.0, 0.0, 1.0]


def test_parquet(tmp_path: Path, capsys) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"word": list("abcd"), "p": P, "q": P[::-1]})
    frame.to_parquet(tmp_path / "both.parquet")
    assert values(f"{tmp_path}/both.parquet:p") == P
    assert values(f"{tmp_path}/both.parquet:q") == P[::-1]
    frame.set_index("word")[["p"]].to_parquet(tmp_path / "p.PARQUET")
    assert values(f"{tmp_path}/p.PARQUET") == P
    frame.set_index("word")[["q"]].iloc[::-1].to_parquet(tmp_path / "q.parquet")
    # Aligned by label, q is [0.1, 0.2, 0.3, 0.4] in the order of p.
    facts = measure(capsys, f"{tmp_path}/p.PARQUET", f"{tmp_path}/q.parquet")
    assert facts["kl"] == pytest.approx(sum(x * math.log(x / y) for x, y in zip(P, P[::-1], strict=True)), rel=1e-14)
    pandas.DataFrame({"rows": [P, P[::-1]]}).to_parquet(tmp_path / "rows.parquet")
    assert values(f"{tmp_path}/rows.parquet") == [P, P[::-1]]
    pandas.DataFrame({"p": [0.5, None]}).to_parquet(tmp_path / "missing.parquet")
    write(tmp_path / "bad.parquet", b"PAR1 but no more")
    frame = pandas.DataFrame({"p": [0.2, 0.3, 0.5]}, dtype="float32")
    frame.to_parquet(tmp_path / "float32.parquet")  # its sum in float64 is 1 + 1.5e-8
    assert main(["measure", f"{tmp_path}/float32.parquet", "0.5,0.25,0.25"]) == 0
    capsys.readouterr()
    for name, message in (("missing", "1 missing in column 'p'"), ("bad", "expected a Parquet file")):
        assert main(["measure", f"{tmp_path}/{name}.parquet", "0.5,0.5"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_parquet_without_pyarrow_names_the_package(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", b"PAR1")
    code = "import sys; sys.modules['pyarrow'] = None\nfrom kullback.cli import main\n"
    code += f"exit(main(['measure', {path!r}, '1']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install pyarrow" in done.stderr


def test_labels_are_aligned_or_refused(tmp_path: Path, capsys) -> None:
    p = write(tmp_path / "p.csv", "word,p\na,0.5\nb,0.3\nc,0.2\n")
    q = write(tmp_path / "q.csv", "c,a,b\n0.6,0.3,0.1\n")
    facts = measure(capsys, p, q)
    truth = 0.5 * math.log(0.5 / 0.3) + 0.3 * math.log(0.3 / 0.1) + 0.2 * math.log(0.2 / 0.6)
    assert facts["kl"] == pytest.approx(truth, rel=1e-14)
    assert measure(capsys, q, p)["reverse_kl"] == pytest.approx(truth, rel=1e-14)
    other = write(tmp_path / "other.json", '{"a": 0.5, "b": 0.3, "d": 0.2}')
    fewer = write(tmp_path / "fewer.json", '{"a": 0.5, "b": 0.5}')
    twice = write(tmp_path / "twice.csv", "a,0.5\nb,0.3\na,0.2\n")
    for text, message in (
        (other, "but the event 'c' of P is absent from Q"),
        (fewer, "but the event 'c' of P is absent from Q"),
        (twice, "expected distinct labels, got the event 'a' twice"),
    ):
        assert main(["measure", p, text]) == 2
        assert message in capsys.readouterr().err
    # The rows of matrices are aligned too.
    first = write(tmp_path / "first.csv", "model,a,b\nx,0.5,0.5\ny,0.9,0.1\n")
    second = write(tmp_path / "second.csv", "model,b,a\ny,0.1,0.9\nx,0.5,0.5\n")
    assert measure(capsys, first, second)["kl"] == [0.0, 0.0]
    # Numbers without labels are matched by position.
    assert measure(capsys, p, "0.5,0.3,0.2")["kl"] == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "", "the file is empty"),
        ("p.csv", "\n \n", "the file is empty"),
        ("p.txt", "a", "got one line without numbers: 'a'"),
        ("p.csv", "a,b\n", "got one line without numbers: 'a, b'"),
        ("p.csv", "0.5\nx\n", "line 2, column 1: expected a number, got 'x'"),
        ("p.csv", "p\n0.5\n\n\nNA\n", "line 5, column 1: expected a number, got 'NA'"),
        ("p.csv", "a,0.5\nb,\n", "line 2"),
        ("p.csv", "0.5,0.5\n0.5\n", "line 2: expected 2 cells, as in the first line, got 1"),
        ("p.csv", "a,b,c\n0.5,0.5\n", "expected 3 cells, as in the first line, got 2"),
        ("p.csv", "p\na,b,0.5\n", "expected 1 cells, as in the first line, got 3"),
        ("p.csv", "x,y,0.5\n", "the columns 1 and 2 contain text"),
        ("p.csv", "0,0.2\n1,0.3\n2,0.5\n", "which is an index of the rows"),
        ("p.csv", "1,0.2\n2,0.3\n3,0.5\n", "which is an index of the rows"),
        ("p.csv", "n;p\na;1,234\nb;5,678\n", "can be a decimal comma or a separator of thousands"),
        ("p.csv", "x\n1,5\n2,5\n4,25\n", "the comma in '1,5' can be a decimal comma, or a separator of a label"),
        ("p.tsv", "x\n0,5\n0,5\n", "the comma in '0,5' can be a decimal comma, or a separator of a label"),
        ("p.txt", "x\n,5\n-2,5\n", "the comma in ',5' can be a decimal comma, or a separator of a label"),
        ("p.csv", "a;0,5\nb;0.5\n", "expected decimal points or decimal commas, got both"),
        ("p.csv", b"\x89PNG\r\n\x1a\n\x00\x00", "is this a binary file?"),
        ("p.csv", "é,0.5\nb,0.5\n".encode("latin1"), "got byte 0xe9, which is not UTF-8; convert a text file"),
        ("p.csv", b"0.5,\x000.5", "null character"),
        ("p.csv", '"0.5,0.5\n', "line 1"),
        ("p.json", "", "the file is empty"),
        ("p.json", "{", "expected JSON"),
        ("p.json", "{}", "got {}"),
        ("p.json", "[]", "got shape (0,)"),
        ("p.json", "[true, false]", "got true at position 0"),
        ("p.json", '["0.5", "0.5"]', 'got "0.5" at position 0'),
        ("p.json", "[[0.5, 0.5], [1]]", "rows of different lengths"),
        ("p.json", "[[[0.5]]]", "got shape (1, 1, 1)"),
        ("p.json", "[" * 100_000, "nested too deeply"),
        ("p.json", "1" * 5000, "expected"),
        ("p.jsonl", "0.5\n{\n", "line 2: expected JSON"),
        ("p.json", '[{"p": 1}, {"q": 1}]', "got others in object 1"),
        ("p.json", '{"a": 0.4, "a": 0.6, "b": 0.4}', "expected distinct keys in each object, got 'a' twice"),
        ("p.json", '[{"x": "a", "p": 0.4, "p": 0.5}, {"x": "b", "p": 0.5}]', "got 'p' twice"),
        (
            "p.jsonl",
            '{"p": 0.5}\n{"p": 0.4, "p": 0.5}\n',
            "line 2: expected distinct keys in each object, got 'p' twice",
        ),
        ("p.npy", b"", "the file is empty"),
        ("p.npy", b"not a file of NumPy", "in a NumPy file"),
        (
            "p.npy",
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }",
            "NumPy",
        ),
        ("p.npz", b"PK\x03\x04 damaged", "in a NumPy file"),
        ("p.foo", "0.5,0.5", "expected a file whose name ends in .csv, .tsv, .txt"),
        ("noextension", "0.5,0.5", "expected a file whose name ends in .csv, .tsv, .txt"),
    ],
)
def test_damaged_files_give_one_line(name: str, content: str | bytes, message: str, tmp_path: Path, capsys) -> None:
    path = write(tmp_path / name, content)
    assert main(["measure", path, "0.5,0.5"]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert message in output.err
    assert output.out == ""


def test_a_directory_and_an_empty_standard_input(tmp_path: Path, capsys, monkeypatch) -> None:
    assert main(["measure", str(tmp_path), "0.5,0.5"]) == 2
    assert "expected a file, got a directory" in capsys.readouterr().err
    standard_input(monkeypatch, b"")
    assert main(["measure", "-", "0.5,0.5"]) == 2
    assert "-: expected a vector or a matrix of numbers, but the file is empty" in capsys.readouterr().err
    assert main(["measure", "-", "-"]) == 2
    assert "got - for both" in capsys.readouterr().err


def test_binary_files_on_standard_input(tmp_path: Path, monkeypatch) -> None:
    np.save(tmp_path / "p.npy", P)
    np.savez(tmp_path / "p.npz", a=P, b=[1.0])
    standard_input(monkeypatch, (tmp_path / "p.npy").read_bytes())
    assert values("-") == P
    standard_input(monkeypatch, (tmp_path / "p.npz").read_bytes())
    assert values("-:a") == P
    standard_input(monkeypatch, b"aab")
    assert values("bytes:-")[97:99] == [2.0, 1.0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
def test_named_pipes_are_read_as_standard_input(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m kullback measure <(echo 0.5,0.5) <(printf '[0.25, 0.75]') --json"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["kl"] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_the_memory_for_bytes_of_a_large_file_is_bounded(tmp_path: Path) -> None:
    size = 1 << 26
    with open(tmp_path / "large", "wb") as file:
        for _ in range(64):
            file.write(b"abcd" * (size // 256))
    tracemalloc.start()
    counts = values(f"bytes:{tmp_path}/large")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts[97:101] == [size / 4] * 4
    assert peak < 16 * 2**20  # 64 MiB of content


@pytest.mark.slow
def test_the_memory_for_a_text_file_is_the_memory_of_its_numbers(tmp_path: Path) -> None:
    count = 300_000
    (tmp_path / "large.csv").write_text("p\n" + "0.123456789012345678\n" * count)
    tracemalloc.start()
    assert len(values_array(f"{tmp_path}/large.csv")) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 8 * count


def values_array(text: str) -> np.ndarray:
    table = read(text)
    assert isinstance(table, Table)
    return table.values


def test_normalize_divides_by_the_sum_and_states_it(capsys) -> None:
    facts = measure(capsys, "4,3,2,1", "0.3,0.3,0.3,0.1", "--normalize")
    given = measure(capsys, "0.4,0.3,0.2,0.1", "0.3,0.3,0.3,0.1")["kl"]  # the quotients by the sums are rounded
    assert facts["kl"] == pytest.approx(given, rel=1e-14)
    assert facts["divided_by"] == {"p": 10.0, "q": pytest.approx(1.0)}
    assert main(["measure", "4,3,2,1", "0.3,0.3,0.3,0.1", "--normalize"]) == 0
    assert "normalised   P was divided by 10, Q by 1" in capsys.readouterr().out
    for numbers, message in (
        ("0,0", "expected a positive finite sum to divide by, got 0.0"),
        ("1,-1", "p[1] is -1.0"),
        ("nan,1", "p[0] is nan"),
        ("1e308,1e308", "got inf"),
    ):
        assert main(["measure", numbers, "0.5,0.5", "--normalize"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "--normalize" not in error


def test_the_remedy_is_an_option_of_the_command(capsys) -> None:
    assert main(["measure", "0.5,0.6", "0.5,0.5"]) == 2
    error = capsys.readouterr().err
    assert "--normalize" in error
    assert "--logits" in error
    for numbers in ("1.5,-0.5", "nan,1"):
        assert main(["measure", numbers, "0.5,0.5"]) == 2
        error = capsys.readouterr().err
        assert "--normalize" not in error
        assert "divide by the sum" not in error


def test_logits(capsys) -> None:
    facts = measure(capsys, "0,1,-inf", "0,0,-1", "--logits")
    z = math.log1p(math.e), math.log(2 + math.exp(-1))
    p = [math.exp(-z[0]), math.exp(1 - z[0])]
    truth = p[0] * (-z[0] + z[1]) + p[1] * (1 - z[0] + z[1])
    assert facts["kl"] == pytest.approx(truth, rel=1e-13)
    assert facts["reverse_kl"] == "inf"
    assert facts["reverse"]["warnings"] == ["q is -inf at 2, where p is -1"]
    assert facts["entropy"] == pytest.approx(-sum(x * math.log(x) for x in p), rel=1e-13)
    assert facts["cross_entropy"] == pytest.approx(facts["entropy"] + truth, rel=1e-13)
    for numbers, message in (("nan,0", "p[0] is nan"), ("inf,0", "p[0] is inf"), ("-inf,-inf", "a finite logit")):
        assert main(["measure", numbers, "0,0", "--logits"]) == 2
        assert message in capsys.readouterr().err


def test_counts(capsys) -> None:
    facts = measure(capsys, "40,30,20,10", "33,27,28,12", "--counts")
    assert facts["status"] == "estimated"
    assert facts["observations"] == {"p": 100, "q": 100}
    low, high = facts["interval"]
    assert 0 <= low <= facts["kl"] <= high
    known = measure(capsys, "40,30,20,10", "0.25,0.25,0.25,0.25", "--counts")
    assert known["observations"] == {"p": 100, "q": None}
    assert "reverse_kl" not in known
    bits = measure(capsys, "40,30,20,10", "33,27,28,12", "--counts", "--bits")
    assert bits["kl"] == pytest.approx(facts["kl"] / math.log(2), rel=1e-12)
    unseen = measure(capsys, "10,290", "0,300", "--counts")
    assert (unseen["kl"], unseen["status"]) == ("inf", "unreliable")
    for p, q, message in (
        ("1.5,2", "1,2", "p[0] is 1.5"),
        ("-1,2", "1,2", "p[0] is -1.0"),
        ("0,0", "1,2", "all counts are 0"),
        ("0.5,0.5", "1,2", "--reverse"),
        ("0.5,0.5", "0.5,0.5", "remove --counts"),
        ("normal(0,1)", "normal(0,1)", "--counts: expected two tables"),
    ):
        assert main(["measure", p, q, "--counts"]) == 2
        assert message in capsys.readouterr().err


def test_samples_of_a_fit_are_read_from_every_format(tmp_path: Path, capsys, monkeypatch) -> None:
    x = [1.0, 2.0, 4.0, 5.0]
    path = write(tmp_path / "x.TSV", "name\tx\na\t1,0\nb\t2,0\nc\t4,0\nd\t5,0\n")
    standard_input(monkeypatch, json.dumps(x).encode())
    for target in (path, "-"):
        assert main(["fit", target, "normal", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["parameters"] == pytest.approx({"loc": 3.0, "scale": math.sqrt(2.5)}, rel=1e-9)


def test_a_key_that_occurs_twice_in_an_argument_is_refused(capsys) -> None:
    assert main(["measure", '{"a": 0.4, "a": 0.6, "b": 0.4}', '{"a": 0.5, "b": 0.5}']) == 2
    assert "expected distinct keys in each object, got 'a' twice" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="devices of POSIX")
@pytest.mark.parametrize("argument", ["/dev/zero", "/dev/urandom", "bytes:/dev/zero", "/dev/zero:p"])
def test_a_device_without_end_is_refused(argument: str, capsys) -> None:
    assert main(["measure", argument, "0.5,0.5"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_path_is_required_after_bytes(capsys) -> None:
    assert main(["measure", "bytes:", "0.5,0.5"]) == 2
    assert "expected the path of a file after bytes:" in capsys.readouterr().err


def test_control_characters_of_names_and_labels_are_escaped(tmp_path: Path, capsys) -> None:
    p = write(tmp_path / "two\nlines\x1b[31m.csv", "event,p\n\x1b[2Jred,0.4\nblue,0.6\n")
    assert main(["measure", p, p, "--terms"]) == 0
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "two\\nlines\\x1b[31m.csv" in output.splitlines()[0]
    assert "\\x1b[2Jred" in output


@pytest.mark.parametrize("line", ["1 2 x", "1 x 2", "O.5,0.5", "1;x"])
def test_a_text_in_a_single_row_of_numbers_is_refused(line, tmp_path, capsys):
    path = tmp_path / "samples.txt"
    path.write_text(line)
    for words in (["fit", str(path), "normal"], ["measure", str(path), "0.5,0.5", "--counts"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert "samples.txt: line 1" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["q:q", "a:b:c", ":q", "x.csv:q"])
def test_names_of_columns_with_colons(tmp_path, monkeypatch, capsys, name):
    path = write(tmp_path / "c.csv", f"token,{name},r\na,0.25,0.5\nb,0.75,0.5\n")
    truth = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert measure(capsys, f"{path}:{name}", f"{path}:r")["kl"] == pytest.approx(truth, rel=1e-14)
    monkeypatch.chdir(tmp_path)
    assert measure(capsys, f"c.csv:{name}", "c.csv:r")["kl"] == pytest.approx(truth, rel=1e-14)


def test_paths_with_colons(tmp_path, capsys):
    (tmp_path / "a.csv:b").mkdir()
    path = write(tmp_path / "a.csv:b" / "c:d.csv", "token,q:q,r\na,0.25,0.5\nb,0.75,0.5\n")
    truth = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert measure(capsys, f"{path}:q:q", f"{path}:r")["kl"] == pytest.approx(truth, rel=1e-14)


@pytest.mark.parametrize("line", [5, 7, 19, 20, 21, 40])
@pytest.mark.parametrize("header", [True, False])
def test_the_line_of_a_cell_without_a_number_is_named(tmp_path: Path, capsys, line: int, header: bool) -> None:
    rows = ["p" if header else "0.5", "", "# a comment", *["0.25"] * 60]
    rows[line - 1] = "NA"
    (tmp_path / "p.csv").write_text("\n".join(rows) + "\n")
    assert main(["fit", str(tmp_path / "p.csv"), "normal"]) == 2
    assert f"line {line}, column 1: expected a number, got 'NA'" in capsys.readouterr().err


def test_parquet_columns_that_are_neither_numbers_nor_labels_are_named(tmp_path: Path, capsys) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = tmp_path / "p.parquet"
    for column, message in (
        ({"flag": [True, False]}, "but 'flag' is of type bool"),
        ({"n": pandas.to_timedelta([1, 2], unit="s")}, "but 'n' is of type duration"),
        ({"word": ["a", None], "p": [0.5, 0.5]}, "expected a label in each row, got 1 missing in column 'word'"),
    ):
        pandas.DataFrame(column).to_parquet(path)
        assert main(["fit", str(path), "normal"]) == 2
        assert message in capsys.readouterr().err


def test_labels_keep_their_spaces_and_lines(tmp_path: Path, capsys) -> None:
    """The tokens " the" and "the" of a language model are two events."""
    (tmp_path / "p.csv").write_text('token,p\n" the",0.5\n"the",0.25\nx,0.25\n')
    (tmp_path / "q.csv").write_text('token,p\n"the",0.5\n" the",0.25\nx,0.25\n')
    facts = measure(capsys, str(tmp_path / "p.csv"), str(tmp_path / "q.csv"))
    assert facts["kl"] == pytest.approx(0.25 * math.log(2))
    (tmp_path / "q.csv").write_text("token,p\n the,0.5\nthe,0.25\nx,0.25\n")  # without quotes, as pandas writes them
    assert measure(capsys, str(tmp_path / "p.csv"), str(tmp_path / "q.csv"))["kl"] == 0
    (tmp_path / "q.csv").write_text('token,p\n"the",0.5\nx,0.25\ny,0.25\n')
    assert main(["measure", str(tmp_path / "p.csv"), str(tmp_path / "q.csv")]) == 2
    assert "expected the same labels" in capsys.readouterr().err
    (tmp_path / "lines.csv").write_text('token,p\n"a\n\n# b",0.5\n"a",0.5\n')
    assert read_file(str(tmp_path / "lines.csv")).events == ("a\n\n# b", "a")
    (tmp_path / "spaced.csv").write_text('"token", "p"\n"a, b", 0.5\n"c", 0.5\n')
    assert read_file(str(tmp_path / "spaced.csv")).events == ("a, b", "c")


def test_rows_that_begin_with_a_number_sign_are_not_dropped(tmp_path: Path, capsys) -> None:
    (tmp_path / "p.csv").write_text("# written by hand, 3\ntoken,n\n#,50\nx,25\n")
    assert main(["fit", str(tmp_path / "p.csv"), "poisson"]) == 2
    assert "line 3: '#,50' can be a comment, or a row with a label" in capsys.readouterr().err
    (tmp_path / "p.csv").write_text('# written by hand, 3\n#\ntoken,n\n"#",50\nx,25\n')
    assert read_file(str(tmp_path / "p.csv")).events == ("#", "x")


def test_a_missing_number_in_the_first_row_does_not_make_a_column_of_labels(tmp_path: Path, capsys) -> None:
    (tmp_path / "p.csv").write_text("y,x\n,1.5\n3,2.5\n2,3.5\n")
    assert main(["fit", str(tmp_path / "p.csv"), "normal"]) == 2
    assert "column 1: expected a number in the first row, got ''" in capsys.readouterr().err
    (tmp_path / "p.csv").write_text("token,p\n,0.5\n3,0.25\nx,0.25\n")
    assert read_file(str(tmp_path / "p.csv")).events == ("", "3", "x")


def test_json_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\x85", "p": 0.25}, {"text": "c", "p": 0.75}]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_file(str(path)).events == ("a\u2028b\x85", "c")


def test_rows_of_arrays_in_parquet_are_matched_by_their_labels(tmp_path: Path, capsys) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    rows = {"t": ["a", "b"], "p": [[0.1, 0.9], [0.5, 0.5]]}
    pandas.DataFrame(rows).to_parquet(tmp_path / "p.parquet")
    pandas.DataFrame({key: values[::-1] for key, values in rows.items()}).to_parquet(tmp_path / "q.parquet")
    assert main(["measure", str(tmp_path / "p.parquet"), str(tmp_path / "q.parquet"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kl"] == [0, 0]


@pytest.mark.parametrize(
    "content",
    [
        "0\n100.1\n99.9\n100.0\n",
        "0\n3\n4\n2\n",
        "2019\n100.1\n99.9\n100.0\n",
        "2019\n3\n4\n2\n",
        "0,1\n0.3,1.7\n2.5,0.1\n",
        "0,1,2\n3,1,7\n2,5,0\n",
        "2019,2020\n0.25,0.5\n0.75,0.5\n",
        "country,2019\nfr,40\nde,60\n",
        "country;2019\nfr;40\nde;60\n",
        "age\t0\na\t0.5\nb\t0.25\n",
    ],
)
def test_a_first_line_of_numbers_that_can_be_names_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    with pytest.raises(InputError, match="can contain the names of the columns or data"):
        read_file(str(path))
    # Both remedies are accepted: names in place of the line, and names above it.
    first, rest = content.split("\n", 1)
    names = re.sub(r"[^,;\t]+", lambda found: f"n{found.start()}", first)
    path.write_text(f"{names}\n{rest}")
    replaced = read_file(str(path)).values
    path.write_text(f"{names}\n{content}")
    above = read_file(str(path)).values
    assert len(above) == len(replaced) + 1


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("0\n0.25\n0.75\n", 3),  # probabilities
        ("0.0\n100.1\n99.9\n", 3),
        ("0,1\n1,0\n", 2),
        ("2019\n2007\n1911\n5\n", 4),
        ("the\t2019\nof\t1990\nand\t7\n", 3),
        ("0,1,2\n", 3),
        ("name,2019\na,40\nb,60\n", 2),  # the name of the first column states that it contains labels
        ("label,2019,2020\na,40,1\nb,60,2\n", 2),
    ],
)
def test_other_first_lines_are_data_or_names(content: str, rows: int, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    assert len(read_file(str(path)).values) == rows


def test_years_are_names_beside_a_column_of_labels(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("name,2019,2020\na,40,1\nb,60,2\n")
    assert read_file(f"{path}:2020").values.tolist() == [1, 2]
    assert read_file(f"{path}:2019").rows is None
    assert read_file(f"{path}:2019").events == ("a", "b")


@pytest.mark.parametrize("delimiter", ["\t", ",", ";"])
def test_quotation_marks_without_a_pair_are_refused(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    path.write_text('token\tcount\n"\t5\nmid\t3\n"\t9\nend\t2\n'.replace("\t", delimiter))
    with pytest.raises(InputError, match='a quotation mark that is a part of a label is written """"'):
        read_file(str(path))
    path.write_text('token\tcount\n"hello\t5\nmid\t3\n'.replace("\t", delimiter))
    with pytest.raises(InputError, match='a quotation mark that is a part of a label is written """"'):
        read_file(str(path))
    path.write_text('token\tcount\n""""\t5\n"a\n"\t3\n"\t\n"\t1\n'.replace("\t", delimiter))
    assert read_file(str(path)).events == ('"', "a\n", f"{delimiter}\n")


@pytest.mark.parametrize(
    ("content", "values", "events"),
    [
        ("x,y\n1.0,1\n2.0,\n4.0,2\n", [1, 2, 4], None),
        ("x,y\n1.0,1\n2.0,NA\n4.0,2\n", [1, 2, 4], None),
        ("y,x\n,1.0\nNA,2.0\n", [1, 2], None),
        ("subject,x\n1,5.0\n2,6.0\n3,7.5\n", [5, 6, 7.5], None),
        ("country,city,x\nfr,paris,1\nfr,lyon,2\n", [1, 2], ("fr, paris", "fr, lyon")),
        ("word,note,x\nthe,,1\nof,rare,2\n", [1, 2], ("the", "of")),
        ("id,x,y\n7,1,a\n9,2,b\n", [1, 2], ("a", "b")),
        ("id,x,y\n7,1,0.5\n9,2,?\n", [1, 2], ("7", "9")),
    ],
)
def test_of_a_named_column_the_other_columns_need_no_numbers(
    content: str, values: list, events: tuple | None, tmp_path: Path
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(content)
    table = read_file(f"{path}:x")
    assert (table.values.tolist(), table.events) == (values, events)


def test_points_in_files_with_semicolons_can_separate_thousands(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("n;x\n950;a\n1.200;b\n")
    with pytest.raises(InputError, match=r"'1\.200' can be a decimal point or a separator of thousands"):
        read_file(str(path))
    for decimal in ("0.200", "1.2", "1.2000", "1200.500"):
        path.write_text(f"n;x\n950;a\n1.200;b\n{decimal};c\n")
        assert read_file(str(path)).values[1] == 1.2
    path.write_text("n,x\n950,a\n1.200,b\n")
    assert read_file(str(path)).values[1] == 1.2


def test_a_fit_states_the_number_of_samples(tmp_path: Path, capsys) -> None:
    path = tmp_path / "x.csv"
    path.write_text("x\n1\n2\n4\n")
    assert main(["fit", str(path), "normal"]) == 0
    assert "3 samples" in capsys.readouterr().out
    assert main(["fit", str(path), "normal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 3


@pytest.mark.parametrize("first", ["", "Unnamed: 0"])
@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.tsv", "\t"), ("p.csv", ";")])
def test_an_index_of_pandas_beside_labels_is_no_event(tmp_path, first, name, delimiter):
    rows = [[first, "label", "count"], ["0", "a", "50"], ["1", "b", "30"], ["2", "c", "20"]]
    path = write(tmp_path / name, "".join(delimiter.join(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="the first column has no name beside the labels in column 2"):
        read(str(path))
    assert read(f"{path}:count").values.tolist() == [50, 30, 20]


@pytest.mark.parametrize("first", ["", "Unnamed: 0"])
def test_an_index_of_pandas_beside_labels_is_no_event_of_objects(tmp_path, first):
    rows = [{first: 0, "label": "a", "count": 50}, {first: 1, "label": "b", "count": 30}]
    path = write(tmp_path / "p.json", json.dumps(rows))
    with pytest.raises(InputError, match="the first column has no name beside the labels in column 2"):
        read(str(path))
    assert read(f"{path}:count").values.tolist() == [50, 30]
