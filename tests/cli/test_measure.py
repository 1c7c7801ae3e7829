"""`kullback measure`: reference values, text and JSON output, and invalid input."""

import contextlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kullback import families
from kullback.cli import main
from kullback.cli.distribution_syntax import read
from kullback.errors import KullbackError


def run_measure(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["measure", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("p", "q", "unit", "kl", "reverse"),
    [
        ("0.4,0.3,0.2,0.1", "0.3,0.3,0.3,0.1", "nats", "0.033980", "0.035335"),
        ("0.4,0.3,0.2,0.1", "0.3,0.3,0.3,0.1", "bits", "0.049022", "0.050978"),
        (",".join(["0.16666666666666666"] * 6), "0.5,0.1,0.1,0.1,0.1,0.1", "bits", "0.349978", "0.423998"),
        ("uniform(0,2)", "uniform(0,3)", "nats", "0.405465", "inf"),
        ("uniform(0,3)", "uniform(0,2)", "nats", "inf", "0.405465"),
        (".3,.25,.2,.15,.1", ".1,.15,.2,.25,.3", "nats", "0.270805", "0.270805"),
    ],
)
def test_reference_values(p: str, q: str, unit: str, kl: str, reverse: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_measure(capsys, p, q, *(["--bits"] if unit == "bits" else []))
    shown = [f"{float(facts[name]):.6f}" for name in ("kl", "reverse_kl")]
    assert shown == [kl, reverse]
    assert facts["unit"] == unit


def test_entropy_and_cross_entropy_of_the_die(capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_measure(capsys, ",".join(["0.16666666666666666"] * 6), "0.5,0.1,0.1,0.1,0.1,0.1", "--bits")
    assert round(facts["entropy"], 6) == 2.584963
    assert round(facts["cross_entropy"], 6) == 2.934940
    assert facts["cross_entropy"] - facts["entropy"] == pytest.approx(facts["kl"], rel=1e-12)


def test_a_mixture_by_quadrature(capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_measure(capsys, "mixture(0.5*normal(0,2) + 0.5*normal(20,2))", "normal(10, 10.19803902718557)")
    assert facts["kl"] == pytest.approx(0.935901951616756559, abs=1e-10)
    assert facts["reverse_kl"] == pytest.approx(3.70909007605118678, abs=1e-10)
    assert (facts["method"], facts["status"]) == ("quadrature", "bounded")
    assert 0 < facts["error"] < 1e-10


def test_the_term_table_sums_to_the_kl(capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_measure(capsys, "0.4,0.3,0.2,0.1", "0.3,0.3,0.3,0.1", "--terms", "--bits")
    for column in ("term", "p_log_ratio"):
        assert math.fsum(term[column] for term in facts["terms"]) == pytest.approx(facts["kl"], rel=1e-13)
    assert all(term["term"] >= 0 for term in facts["terms"])
    assert any(term["p_log_ratio"] < 0 for term in facts["terms"])


def test_reverse_swaps_the_two(capsys: pytest.CaptureFixture[str]) -> None:
    forward = run_measure(capsys, "0.4,0.6", "0.3,0.7")
    swapped = run_measure(capsys, "0.4,0.6", "0.3,0.7", "--reverse")
    assert (swapped["kl"], swapped["reverse_kl"]) == (forward["reverse_kl"], forward["kl"])
    assert swapped["p"] == "0.3,0.7"


def test_the_text_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "0.5,0.25,0.25", "0.5,0.5,0", "--terms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "KL(P || Q)   inf nats   exact sum"
    assert lines[3] == "KL(Q || P)   0.3465735903 nats   exact sum"
    assert lines[4] == "H(P)         1.039720771 nats"
    assert "KL(P || Q): q is 0 at 2, where p is 0.25" in lines


def test_bytes_of_files_and_files_of_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"aab<")
    (tmp_path / "b.txt").write_bytes(b"ab<<")
    facts = run_measure(capsys, f"bytes:{tmp_path}/a.txt", f"bytes:{tmp_path}/b.txt", "--bits", "--terms")
    assert facts["kl"] == pytest.approx(0.5 - 0.25, rel=1e-14)
    assert [term["event"] for term in facts["terms"]] == ["'<'", "'a'", "'b'"]
    table = np.array([[0.5, 0.5], [0.25, 0.75]])
    np.save(tmp_path / "p.npy", table)
    np.savetxt(tmp_path / "p.csv", table, delimiter=",")
    (tmp_path / "p.json").write_text(json.dumps(table.tolist()))
    for name in ("p.npy", "p.csv", "p.json"):
        facts = run_measure(capsys, str(tmp_path / name), "0.5,0.5")
        assert facts["kl"] == pytest.approx([0.0, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)], abs=1e-15)
    assert main(["measure", str(tmp_path / "p.npy"), "0.5,0.5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("p", "q", "message"),
    [
        ("0.5,0.6", "0.5,0.5", "sums to 1.1"),
        ("0.5,0.5", "1,0,0", "same number of events in P and Q, got 2 and 3"),
        ("1.5,-0.5", "0.5,0.5", "p[1] is -0.5"),
        ("norml(0,1)", "normal(0,1)", "did you mean normal?"),
        ("gaussian(0,1)", "normal(0,1)", "did you mean normal?"),
        ("normal(0)", "normal(0,1)", "expected Normal to receive scale"),
        ("normal(0,1,2)", "normal(0,1)", "normal takes loc, scale, got more"),
        ("normal(0,1/0)", "normal(0,1)", "expected a number, got '1/0)'"),
        ("categorical(.4,.6)", "0.5,0.5", "got probs and logits; write a vector in brackets, as in probs=[0.4, 0.6]"),
        ("dirichlet(1,2)", "dirichlet([1,2])", "got more; write a vector in brackets, as in concentration=[0.4, 0.6]"),
        ("normal(0,sd=2)", "normal(0,1)", "normal takes loc, scale, got sd"),
        ("normal(0,loc=2)", "normal(0,1)", "got loc twice"),
        ("normal(0,-1)", "normal(0,1)", "scale to be > 0 and finite, but it is -1.0"),
        ("normal(0,1", "normal(0,1)", "expected ',', got the end"),
        ("__import__('os').system('true')", "normal(0,1)", "no family is called '__import__'"),
        ("mixture(0.5*gamma(1,2))", "normal(0,1)", "expected a mixture of normals, got a component Gamma"),
        ("0.5,0.5", "normal(0,1)", "two tables of probabilities or two families"),
        ("absent.npy", "0.5,0.5", "absent.npy: cannot be read: No such file"),
        ("bytes:absent", "0.5,0.5", "absent: cannot be read"),
        ("0.5,x", "0.5,0.5", "expected"),
        ("", "0.5,0.5", "got the empty argument"),
        ("nan,1", "0.5,0.5", "P: 'nan,1': expected finite numbers, but p[0] is nan"),
        ("0.5,0.5", "inf,1", "Q: 'inf,1': expected finite numbers, but q[0] is inf"),
        ("norml", "normal(0,1)", "no family and no file is called 'norml'; did you mean normal?"),
        ("pareto(0.25, 1e-300)", "cauchy(0, 5e-324)", "rescale both distributions"),
        (
            "low_rank_multivariate_normal(2,2,3)",
            "poisson(2)",
            "cov_factor to have shape (..., n, rank), got a number without axes",
        ),
        ("normal", "normal(0,1)", "expected the parameters of the family: normal(loc, scale)"),
        ("xyzzy", "normal(0,1)", "no family and no file is called 'xyzzy'; `kullback measure --list`"),
        ("absent.foo", "0.5,0.5", "absent.foo: cannot be read: No such file"),
        ("[0.4, null]", "0.5,0.5", "got 'null'"),
        ("[[0.4, null]]", "0.5,0.5", "got null at position 1"),
        ("[" * 20_000, "0.5,0.5", "expected"),
        ("gamma(" + "[" * 20_000, "0.5,0.5", "nested too deeply"),
        ("gamma([1,[2]],3)", "normal(0,1)", "expected Gamma's concentration to be numbers"),
        ("1,234;5,678", "0.5,0.5", "can be a decimal comma or a separator of thousands"),
        ("0,5;0.5", "0.5,0.5", "expected decimal points or decimal commas, got both"),
        ("1/0,1", "0.5,0.5", "got '1/0'"),
        ("1_0,1", "0.5,0.5", "got '1_0'"),
        ("\0.csv", "0.5,0.5", "expected"),
        ('{"a": 0.5, "b": [1]}', "0.5,0.5", "expected a number for each label, got [1] for 'b'"),
    ],
)
def test_invalid_input_gives_one_line_and_exit_status_2(
    p: str, q: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", p, q]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert len(output.err.splitlines()) == 1
    assert message in output.err
    assert len(output.err) < 2100
    assert output.err.count("student_t") == 0, "the families are not listed in an error"


def test_terms_of_densities_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "normal(0,1)", "normal(1,1)", "--terms"]) == 2
    assert "no events to list" in capsys.readouterr().err


def test_files_without_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "p.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "p.json").write_text('{"a": "x"}')
    (tmp_path / "p.csv").write_text("a,b\n")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "empty").write_bytes(b"")
    for name in ("p.npy", "p.json", "p.csv", "empty.json"):
        assert main(["measure", str(tmp_path / name), "0.5,0.5"]) == 2
        assert "expected a vector or a matrix of numbers" in capsys.readouterr().err
    assert main(["measure", f"bytes:{tmp_path}/empty", f"bytes:{tmp_path}/empty"]) == 2
    assert "the file is empty" in capsys.readouterr().err


def test_parameters_can_be_fractions() -> None:
    assert read("normal(-1/2, 1 / 3)") == read("normal(-0.5, 0.3333333333333333)")
    assert read("mixture(1/4*normal(0,1) + 3/4*normal(1,1))") == read("mixture(0.25*normal(0,1) + 0.75*normal(1,1))")
    assert read("dirichlet([1/2, 3])") == read("dirichlet([0.5, 3])")


def test_parameters_by_order_and_by_name_are_the_same() -> None:
    for text in ("StudentT(3, 0.5, 2)", "student_t(df=3, loc=.5, scale=2)", "studentt( 3 ,scale=2e0,loc=5e-1)"):
        distribution = read(text)
        assert isinstance(distribution, families.StudentT)
        assert (distribution.df, distribution.loc, distribution.scale) == (3.0, 0.5, 2.0)


@given(st.text(alphabet="normal(),=*+[]/0123456789.e-_ 'xn", max_size=30))
def test_any_text_is_parsed_or_raises_a_kullback_error(text: str) -> None:
    with contextlib.suppress(KullbackError):
        read(text)


def test_entropies_of_densities(capsys):
    assert main(["measure", "normal(0, 2)", "normal(1, 3)", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    exact = 0.5 * math.log(2 * math.pi * math.e * 4)
    assert facts["entropy"] == pytest.approx(exact, rel=1e-12)
    # E_p[-log q] of two normal distributions
    cross = math.log(3) + 0.5 * math.log(2 * math.pi) + (4 + 1) / 18
    assert facts["cross_entropy"] == pytest.approx(cross, rel=1e-12)
    assert facts["entropy_kind"] == "differential"
    assert main(["measure", "poisson(3)", "poisson(4)"]) == 0
    assert "differential" not in capsys.readouterr().out


def test_one_vector_against_the_rows_of_a_matrix(tmp_path, capsys):
    (tmp_path / "rows.json").write_text("[[0.5, 0.5], [0.1, 0.9]]")
    facts = run_measure(capsys, "0.5,0.5", str(tmp_path / "rows.json"))
    assert facts["kl"] == pytest.approx([0.0, math.log(5 / 3)], rel=1e-12)
    assert facts["entropy"] == pytest.approx([math.log(2)] * 2, rel=1e-12)
    assert main(["measure", "0.5,0.5", str(tmp_path / "rows.json")]) == 0
    assert "0.5108256238" in capsys.readouterr().out


def test_an_empty_file_gives_one_line(tmp_path, capsys):
    for name in ("empty.csv", "empty.json", "empty.npy"):
        (tmp_path / name).write_text("\n")
        assert main(["measure", str(tmp_path / name), "0.5,0.5"]) == 2
        error = capsys.readouterr().err
        assert "the file is empty" in error
        assert error.count("\n") == 1


def test_numbers_can_have_a_plus_sign():
    assert read("normal(+1, scale=+2e+0)").loc == 1.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_results_of_files_of_low_precision_have_all_digits(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.125, 0.375]]).astype(dtype)
    for name, row in zip("pq", values, strict=True):
        np.save(tmp_path / f"{name}.npy", row)
    assert main(["measure", str(tmp_path / "p.npy"), str(tmp_path / "q.npy"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    p, q = values.astype(float) / values.astype(float).sum(-1, keepdims=True)
    assert report["kl"] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-12)
    assert report["entropy"] == pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-12)
    assert report["cross_entropy"] == pytest.approx(float(-(p * np.log(q)).sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("p", "q", "entropy"),
    [
        # H = log(2 pi e) + log(det)/2; of the multinomial, sum -log of the probabilities of its values
        ("multivariate_normal([0,0],[[1,0.2],[0.2,1]])", "multivariate_normal([1,0],[[1,0],[0,1]])", 2.8174660687),
        ("dirichlet([1,2,3])", "dirichlet([2,2,3])", float(stats.dirichlet([1, 2, 3]).entropy())),
        ("student_t(0.05,0,1)", "student_t(1,0,1)", float(stats.t(0.05).entropy())),
        ("beta(1e-3,1e-3)", "beta(1,1)", float(stats.beta(1e-3, 1e-3).entropy())),
        ("cauchy(1e300,1)", "cauchy(1e300,2)", math.log(4 * math.pi)),
    ],
)
def test_the_entropy_of_every_distribution_that_has_one_is_printed(p, q, entropy, capsys):
    assert main(["measure", p, q, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["entropy"] == pytest.approx(entropy, rel=1e-9)
    assert report["cross_entropy"] == pytest.approx(entropy + report["kl"], rel=1e-9, abs=1e-9)
    assert report["entropy_kind"] == "differential"


def test_an_estimated_entropy_has_its_standard_error(capsys):
    assert main(["measure", "multinomial(5,[0.2,0.8])", "multinomial(5,[0.5,0.5])", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    exact = float(stats.multinomial(5, [0.2, 0.8]).entropy())
    assert abs(report["entropy"] - exact) < 5 * report["entropy_std_error"]
    assert "entropy_kind" not in report
    assert main(["measure", "multinomial(5,[0.2,0.8])", "multinomial(5,[0.5,0.5])"]) == 0
    assert "estimated, standard error" in capsys.readouterr().out


def test_the_reason_for_an_unknown_entropy_is_printed(capsys):
    assert main(["measure", "zipf(1.0001)", "zipf(1.0001)"]) == 0
    assert re.search(r"^H\(P\)  +unknown: \w", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [
        ["0.4,0.6", "--bits", "0.5,0.5"],
        ["--bits", "0.4,0.6", "--error", "1e-9", "0.5,0.5"],
        ["0.4,0.6", "--error", "1e-9", "0.5,0.5", "--bits"],
        ["0.5,0.5", "--reverse", "0.4,0.6", "--bits"],
    ],
)
def test_options_can_be_between_p_and_q(arguments, capsys):
    assert main(["measure", *arguments]) == 0
    assert "KL(P || Q)   0.02904940555 bits" in capsys.readouterr().out
    assert main(["measure", *arguments, "0.1,0.9"]) == 2
    assert "expected no further arguments, got 0.1,0.9" in capsys.readouterr().err
