"""`kullback fit`: its text and JSON output, and its errors."""

import json

import numpy as np
import pytest

from kullback.cli import main

TWO = "mixture(0.5*normal(0,2) + 0.5*normal(20,2))"


def run(capsys, *words: str) -> str:
    assert main(["fit", *words]) == 0
    return capsys.readouterr().out


def test_both_directions(capsys):
    facts = json.loads(run(capsys, TWO, "normal", "--json"))
    assert facts["parameters"] == pytest.approx({"loc": 10.0, "scale": 10.198039027185570})
    assert facts["kl"] == pytest.approx(0.935901951616756559)
    facts = json.loads(run(capsys, TWO, "normal", "--direction", "reverse", "--json"))
    assert [one["kl"] for one in facts["minima"]] == pytest.approx([0.6931463172594308] * 2 + [3.306603806698614])
    text = run(capsys, TWO, "normal", "--direction", "reverse", "--start", "normal(10, 2.2)", "--path")
    assert "every minimum found" in text
    assert "8.4451438" in text
    assert "step" in text


def test_samples_from_a_file(capsys, tmp_path):
    x = np.random.default_rng(0).gamma(3.0, 0.5, 300)
    np.save(tmp_path / "x.npy", x)
    facts = json.loads(run(capsys, str(tmp_path / "x.npy"), "gamma", "--json"))
    assert facts["kl"] == "nan"
    assert facts["parameters"]["concentration"] / facts["parameters"]["rate"] == pytest.approx(x.mean())
    assert "unknown" in run(capsys, str(tmp_path / "x.npy"), "gamma")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([TWO, "nrmal"], "did you mean normal?"),
        (["0.4,0.6", "normal"], "a file of samples"),
        (["cauchy(0,1)", "normal"], "finite"),
        ([TWO, "normal", "--start", "0.5,0.5"], "--start"),
        ([TWO, "normal", "--fixed", "scale"], "--fixed"),
        ([TWO, "normal", "--components", "0"], "--components"),
    ],
)
def test_bad_input_ends_with_one_line(capsys, words, message):
    assert main(["fit", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_samples_alone_cannot_give_the_reverse_fit(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(9.0))
    assert main(["fit", str(tmp_path / "x.npy"), "normal", "--direction", "reverse"]) == 2
    assert "log_prob" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["gamma", "student_t"])
def test_the_cross_entropy_of_samples_has_its_name(capsys, tmp_path, family):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).gamma(3.0, 0.5, 300))
    facts = json.loads(run(capsys, str(tmp_path / "x.npy"), family, "--path", "--json"))
    assert facts["kl"] == "nan"
    for item in (*facts["minima"], *facts["path"]):
        assert "kl" not in item
    assert facts["minima"][0]["cross_entropy"] == pytest.approx(facts["cross_entropy"])
    assert "-mean log q, nats" in run(capsys, str(tmp_path / "x.npy"), family, "--path")
    facts = json.loads(run(capsys, TWO, "normal", "--path", "--json"))
    assert all(item.keys() >= {"kl"} and "cross_entropy" not in item for item in (*facts["minima"], *facts["path"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["binomial"], "because a count cannot be fitted: pass total_count in --fixed"),
        (["binomial", "--fixed", "total_count=10", "--fixed", "total_count=12"], "got total_count 2 times"),
        (["poisson", "--fixed", "rate=-2"], "expected --fixed {'rate': ...} of Poisson to be >= 0"),
        (["normal_mixture"], "got none: pass --components, or a start"),
        (["normal_mixture", "--components", "100"], "got 4 samples and --components 100"),
        (["poisson", "--start", "poisson(nan)"], "'poisson(nan)': expected finite parameters, got nan"),
        (["poisson", "--start", "poisson(inf)"], "'poisson(inf)': expected finite parameters, got inf"),
        (["poisson", "--start", ""], "got the empty argument"),
    ],
)
def test_errors_name_the_options_of_the_command(words, message, tmp_path, capsys):
    path = tmp_path / "counts.csv"
    path.write_text("1\n2\n5\n0\n")
    assert main(["fit", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_limit_of_the_family_is_named_instead_of_another_start(capsys, tmp_path):
    np.savetxt(tmp_path / "x.csv", [2, 3, 3, 4, 3, 3])
    text = run(capsys, str(tmp_path / "x.csv"), "negative_binomial")
    assert "not converged: no member that was found is below the limit total_count -> infinity" in text
    assert "fit Poisson" in text
    assert "--start" not in text
