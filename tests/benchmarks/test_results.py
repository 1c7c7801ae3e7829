"""The stored figures of the benchmarks, the page that is generated from them, and the tables that the scripts write."""

import ast
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import arrays  # noqa: E402
import explorer  # noqa: E402
import measure  # noqa: E402
import ppo  # noqa: E402
import render  # noqa: E402
import results  # noqa: E402
from budget_tasks import Trace  # noqa: E402

import budget  # noqa: E402
import optimum  # noqa: E402
import tokens  # noqa: E402

MARKERS = [
    (match["file"], match["name"])
    for match in render.MARKER.finditer((BENCHMARKS / "README.template.md").read_text(encoding="utf-8"))
]
STORED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (BENCHMARKS / "results").glob("*.json")}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory for the results."""
    monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_page_is_up_to_date() -> None:
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == render.page()


def test_every_marker_has_its_table_and_every_table_its_marker() -> None:
    assert sorted(MARKERS) == sorted((file, name) for file, tables in STORED.items() for name in tables)


@pytest.mark.parametrize("file", STORED)
def test_stored_tables_are_complete(file: str) -> None:
    for table in STORED[file].values():
        assert table["commit"]
        assert table["date"]
        assert table["machine"]
        assert table["versions"]["python"]
        assert table["command"].startswith(f"python benchmarks/{file}.py")
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}


@pytest.mark.parametrize("file", STORED)
def test_script_saves_under_its_name(file: str) -> None:
    tree = ast.parse((BENCHMARKS / f"{file}.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "results.save"]
    assert {ast.literal_eval(call.args[0]) for call in calls} == {file}


def test_save_writes_the_source_and_keeps_other_tables(directory: Path) -> None:
    results.save("kl", {"first": (["KL", "error"], [["0.1", 1e-16]])}, packages=["scipy", "absent-package"])
    path = results.save("kl", {"second": (["KL"], [["0.2"]])})
    assert path == directory / "kl.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert list(stored) == ["first", "second"]
    first = stored["first"]
    assert first["commit"] == results.commit() != "unknown"
    assert "cores" in first["machine"]
    assert "AVX-512" in first["machine"]
    assert set(first["versions"]) == {"python", "kullback", "numpy", "scipy"}
    assert (first["columns"], first["rows"]) == (["KL", "error"], [["0.1", 1e-16]])


def test_markdown_escapes_separators() -> None:
    assert results.markdown((["KL(p || q)", "n"], [["a", 1]])) == "| KL(p \\|\\| q) | n |\n|---|---|\n| a | 1 |"


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.2, 2, "0.20"),
        (14.3, 2, "14"),
        (3.8e-5, 2, "3.8e-5"),
        (3000.0, 1, "3e3"),
        (0.07, 1, "0.07"),
        (155.6, 3, "156"),
        (0.996, 2, "1.0"),
        (9.96, 2, "10"),
        (0.0, 1, "0"),
        (-0.25, 2, "-0.25"),
    ],
)
def test_significant(value: float, digits: int, expected: str) -> None:
    assert results.significant(value, digits) == expected


def test_missing_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="expected a table 'absent'"):
        render._table("budget", "absent")


# The tables of the scripts have the columns of the stored tables.


def columns(file: str, name: str) -> list[str]:
    return STORED[file][name]["columns"]


@pytest.mark.slow
def test_arrays_error_run(directory: Path) -> None:
    arrays.main(["--parts", "error"])
    table = json.loads((directory / "arrays.json").read_text(encoding="utf-8"))["error"]
    assert table["columns"] == columns("arrays", "error")
    assert [row[0] for row in table["rows"]] == [row[0] for row in STORED["arrays"]["error"]["rows"]]
    assert all(float(row[-1]) < 1e-14 for row in table["rows"])


def test_arrays_tables() -> None:
    options = arrays.argparse.Namespace(sizes=[10, 1000, 10**6, 10**8])
    names = [
        row[0] for row in STORED["arrays"]["time-avx512"]["rows"] if " of " not in row[0] and "share" not in row[0]
    ]
    times = dict.fromkeys([*names, f"{arrays.READ}, 2 threads"], arrays.Time(2e-3, 1e-3, 1e-16))
    figures = {arrays.column(n, dtype): times for n in options.sizes for dtype in arrays.DTYPES}
    head, rows = arrays.time_table(options, figures)
    assert head == columns("arrays", "time-avx512") == columns("arrays", "time-no-avx512")
    assert {row[0] for row in STORED["arrays"]["time-avx512"]["rows"]} <= {
        *(row[0] for row in rows),
        "compiled kernel of kl_probs",
    }
    logits = dict.fromkeys([arrays.EAGER, arrays.COMPILED, arrays.KL_LOGITS], arrays.Time(1e-9, 1e-9, 1e-8))
    head, rows = arrays.logits_table(dict.fromkeys(columns("arrays", "logits")[1:-1], logits))
    assert head == columns("arrays", "logits")
    assert [row[0] for row in rows] == [row[0] for row in STORED["arrays"]["logits"]["rows"]]


def trace(kind: str, kls: list[float], **fields: object) -> Trace:
    values = {
        "task": "sums", "name": "", "kind": kind, "budget": 0.0 if kind == "none" else 0.1, "rate": 1e-3, "seed": 0,
        "steps": list(range(20, 20 * len(kls) + 1, 20)), "kls": kls, "batch_kl": 0.1, "rewards": [0.5, 0.9, 0.9],
        "final_reward": 0.9, "beta": 0.2, "diverged": False, "not_binding": [False] * len(kls),
    }  # fmt: skip
    return Trace(**{**values, **fields})


def test_budget_tables() -> None:
    runs = [
        trace("none", [0.1, 0.5, 1.0]),
        trace("KLBudget", [0.05, 0.1, 0.104]),
        trace("PPO2017", [0.05, 0.2, 0.3], diverged=True),
        trace("Ziegler2019", [0.05, 0.1, 0.104], rewards=[0.5, 0.8, 0.8]),
    ]
    assert len(budget.row(runs[1])) == len(budget.COLUMNS) == len(columns("budget", "seeds"))
    assert budget.COLUMNS == columns("budget", "seeds") == columns("budget", "learning-rates")
    assert budget.row(runs[1])[3:7] == ["+2.0%", "+0.0%", "+4.0%", "+0.0%"]
    head, rows = budget.summary_table(runs)
    assert head == columns("budget", "controllers")
    assert rows == [
        ["sums", "KLBudget", "1", "100%", "2%", "+4%", "67% of the run", "-"],
        ["sums", "PPO2017", "1 (1 diverged)", "0%", "150%", "+200%", "- (1 run never)", "-"],
        ["sums", "Ziegler2019", "1", "100%", "2%", "+4%", "67% of the run", "-"],
    ]


def test_settings_at_equal_kl() -> None:
    runs = [
        trace("none", [0.1, 0.5, 1.0], name="none_0_0.001_0_60"),
        trace("KLBudget", [0.05, 0.1, 0.104], name="KLBudget_0.1_0.001_0_60"),
        trace("PPO2017", [0.05, 0.2, 0.3], name="PPO2017_0.1_0.001_0_60", diverged=True),
        trace("Ziegler2019", [0.05, 0.1, 0.30004], name="Ziegler2019_0.1_0.001_0_60"),
        trace("FixedBeta", [0.05, 0.1, 0.3], name="FixedBeta_0.1_0.001_0_60"),
        trace("FixedBeta", [0.0, 0.0, 0.0], name="FixedBeta_0.2_0.001_0_60"),
    ]
    assert budget.equal_kl_settings(runs) == [(0.3, 1e-3, 0, 60)]


def test_rewards_at_equal_kl_are_those_of_the_last_policies() -> None:
    runs = [
        trace("FixedBeta", [0.05, 0.1, 0.3], name="FixedBeta_0.1_0.001_0_60", final_reward=16.0),
        trace("FixedBeta", [0.05, 0.1, 0.5], name="FixedBeta_0.1_0.001_1_60", seed=1, final_reward=18.0),
        trace("KLBudget", [0.3, 0.3, 0.301], name="KLBudget_0.3_0.001_0_60", final_reward=19.0),
        trace("KLBudget", [0.5, 0.5, 0.501], name="KLBudget_0.5_0.001_1_60", seed=1, final_reward=23.0),
    ]
    head, rows = budget.equal_kl_table(runs)
    assert head == columns("budget", "equal-kl-digits") == columns("budget", "equal-kl-CartPole-v1")
    assert rows == [["FixedBeta", "0.1", "0.4", "17", "0.401", "21", "+4", "1", "2"]]


def test_the_reward_difference_vanishes_on_a_run_of_equal_kl() -> None:
    def at(kind: str, kl: float) -> Trace:
        return trace(kind, [kl] * 3, budget=kl, rewards=[-((kl**0.5 - 1) ** 2)] * 3)  # concave in sqrt(KL)

    other, wide = at("FixedBeta", 1.0), [at("KLBudget", kl) for kl in (0.25, 2.5, 25.0)]
    assert budget._reward_difference(other, wide) > 0.1
    assert budget._reward_difference(other, [*wide, at("KLBudget", 1.0)]) == pytest.approx(0.0)
    assert budget._reward_difference(other, [*wide, at("KLBudget", 0.98)]) == pytest.approx(0.0, abs=0.01)


def test_frontier_columns() -> None:
    from frontier import COLUMNS

    assert columns("frontier", "trainers") == columns("frontier", "budgets") == COLUMNS


def test_ppo_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "_random_score", lambda _task: 0.0)
    scores = {
        (task, seed, variant): seed + index + 1.0
        for task in ppo.TASKS
        for seed in (0, 1)
        for index, variant in enumerate(ppo.VARIANTS)
    }
    tables = ppo.score_tables(scores, dict.fromkeys(scores, 0.02))
    assert tables["ablation"][0] == columns("ppo", "ablation")
    assert [row[0] for row in tables["ablation"][1]] == [row[0] for row in STORED["ppo"]["ablation"]["rows"]]
    assert tables["rank-correlation"][0] == columns("ppo", "rank-correlation")
    assert tables["rank-correlation"][1][0][0] == "11"


def test_returns_of_ppo_are_compared_at_equal_kl() -> None:
    of_rules = {("task", seed, "fixed-1.0"): (0.02 + 0.01 * seed, 16.0) for seed in (0, 1)}
    of_budgets = {key: (kl, 19.0 + 2 * key[1]) for key, (kl, _) in of_rules.items()}
    rows = ppo.equal_kl_rows(of_rules, of_budgets, "the mean")
    assert rows == [["task", "fixed-1.0", "0.025", "16.0", "the mean", "0.025", "20.0", "+4.0", "1", "2"]]
    assert len(ppo.EQUAL_KL_COLUMNS) == len(rows[0])


def test_tokens_error_table() -> None:
    head, rows = tokens.error_table(targets=(1e-4,))
    assert head == columns("tokens", "error")
    assert rows[0][0] == "9e-5"
    assert float(rows[0][2]) < 1e-6


def test_explorer_table() -> None:
    found = {
        "a handle": explorer.Measured([16.0, 17.0, 18.0], 0.0, 2.5),
        "a slider": explorer.Measured([20.0], 81.0, 3.0),
    }
    assert explorer.frames_table("1.0", found) == (
        columns("explorer", "frames"),
        [
            ["Chromium 1.0", "a handle", "3", "17.0", "17.9", "below 50", "2.5"],
            ["Chromium 1.0", "a slider", "1", "20.0", "20.0", "81", "3.0"],
        ],
    )


def test_measure_run(directory: Path) -> None:
    measure.main(["--repeats", "1"])
    stored = json.loads((directory / "measure.json").read_text(encoding="utf-8"))
    for name, table in stored.items():
        assert table["columns"] == columns("measure", name)
        assert len(table["rows"]) == len(STORED["measure"][name]["rows"])
    assert all(float(row[-1]) < 1e-10 for name in ("measure", "closed-form") for row in stored[name]["rows"])


def test_optimum_run(directory: Path) -> None:
    optimum.main(["--repeats", "1", "--states", "3000"])
    stored = json.loads((directory / "optimum.json").read_text(encoding="utf-8"))
    for name, table in stored.items():
        assert table["columns"] == columns("optimum", name)
    assert all(float(row[-1]) < 1e-13 for name in ("fits", "budgets") for row in stored[name]["rows"])
    (row,) = stored["soft-value-iteration"]["rows"]
    assert float(row[-1]) < float(row[-2]) < 1e-9
