"""The benchmark framework: rounds, ratios, stored results, the page, and the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from benchmarks.__main__ import CASES, chosen, draw, main, run
from benchmarks.framework import charts, report
from benchmarks.framework.fresh import run_fresh
from benchmarks.framework.harness import Figure, Result, Role, Target, interleaved, ratio
from benchmarks.framework.machine import LoadSample, Machine, commit, current_machine
from benchmarks.framework.numbers import (
    distinguishable,
    format_ratio,
    format_tick,
    readable,
)
from benchmarks.framework.results import Measured, load, merged, save
from benchmarks.framework.running import CaseError, run_case
from benchmarks.framework.spawned import Worker

ROOT = Path(__file__).parents[2]
HERE = Machine("A processor", 2, "8 GiB", "Linux 6", "CPython 3.11", {"numpy": "2.0"})


def make_measured(case: str = "calls", **changes: object) -> Measured:
    floor = Figure("append", [10.0, 20.0, 30.0], "floor")
    ours = Figure("log(a|b)", [40.0, 60.0, 240.0], "ours", read_back="3 of 3")
    met = Target("log relative to append", 4.0, 5.0)
    missed = Target("rate", 999_000.0, 1e6, "values/s", at_most=False)
    result = Result(
        id=case,
        title=f"About {case}",
        text="A text.",
        unit="ns",
        figures=[floor, ours],
        targets=[met, missed],
        baseline="append",
    )
    idle = LoadSample(0.1, 0.0)
    measured = Measured(case, [result], HERE, "2026-01-02 03:04", 1.5, idle, idle, "1a2b3c4")
    return msgspec.structs.replace(measured, **changes)


def line_result() -> Result:
    """Return a line chart with more positions than a table has columns."""
    roles: dict[str, Role] = {"ours": "ours", "theirs": "peer"}
    figures = [
        Figure(name, [x, 2 * x], role, x=x, read_back=f"{x:.0f} of {x:.0f}")
        for name, role in roles.items()
        for x in (10.0**power for power in range(13))
    ]
    return Result("growth", "Growth", "", "ns", figures, chart="lines", x_label="values")


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of all rows of all tables, without the rows between header and body."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    return [row for row in rows if not row[0].startswith("---")]


def test_arms_are_measured_in_alternating_order() -> None:
    order: list[tuple[str, int]] = []

    def arm(name: str) -> float:
        order.append((name, len(order)))
        return float(len(order))

    samples = interleaved({"a": lambda _: arm("a"), "b": lambda _: arm("b")}, 3)
    assert [name for name, _ in order] == ["a", "b", "b", "a", "a", "b"]
    assert samples == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_warm_up_samples_are_discarded() -> None:
    rounds: list[int] = []

    def arm(number: int) -> float:
        rounds.append(number)
        return float(number)

    assert interleaved({"a": arm}, 2, warm_up=True) == {"a": [0.0, 1.0]}
    assert rounds == [-1, 0, 1]


def test_a_ratio_is_the_median_over_the_rounds() -> None:
    figure, baseline = Figure("one", [2.0, 30.0, 40.0]), Figure("other", [1.0, 3.0, 20.0])
    assert ratio(figure, baseline) == 2.0
    assert ratio(figure, Figure("single round", [10.0])) == 3.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_234_567, "1,230,000"),
        (407.2, "407"),
        (9.996, "10.0"),
        (0.012345, "0.0123"),
        (-5.678, "-5.68"),
        (0, "0"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert readable(value) == text


def test_a_measured_value_near_its_limit_has_more_digits() -> None:
    assert distinguishable(1.0502, 1.05) == ("1.0502", "1.05")
    assert distinguishable(1.05, 1.05) == ("1.05", "1.05")
    assert distinguishable(140.0, 100.0) == ("140", "100")
    assert distinguishable(3.14159, 1e6) == ("3.14", "1,000,000")
    assert format_ratio(1.0124) == "1.012"
    assert [format_tick(x) for x in (1e7, 0.00001, 2.0)] == ["10,000,000", "0.00001", "2"]


def test_a_table_has_medians_spreads_ratios_and_counts() -> None:
    section = report.section(make_measured().results[0])
    head, floor, ours = table_rows(section)
    assert head == ["", "median, ns", "min to max", "ratio to append", "read back"]
    assert floor == ["append (floor)", "20.0", "10.0 to 30.0", "1.000", ""]
    assert ours == ["**log(a\\|b)**", "60.0", "40.0 to 240", "4.00", "3 of 3"]


def test_met_and_missed_targets_are_listed_first() -> None:
    text = report.page([make_measured()])
    assert text.startswith("### Targets\n\n1 of 2 targets are met.")
    assert "| calls | log relative to append | ≤ 5× | 4.00× | yes |" in text
    assert "| calls | rate | ≥ 1,000,000 values/s | 999,000 values/s | **no** |" in text
    assert "- rate: target ≥ 1,000,000 values/s, measured 999,000 values/s, **not met**" in text


def test_the_table_for_a_line_chart_has_a_limited_number_of_columns() -> None:
    head, ours, theirs = table_rows(report.x_table(line_result()))
    assert head[:2] == ["median, ns; values", "1"]
    assert head[-2:] == ["1,000,000,000,000", "read back"]
    assert len(head) == len(ours) == report.MAX_COLUMNS + 2
    assert ours[:2] == ["**ours**", "1.50 (1.00 to 2.00)"]
    assert theirs[-1] == "1 of 1 … 1000000000000 of 1000000000000"


def test_the_page_warns_about_load_and_quick_runs() -> None:
    quiet, busy = make_measured("calls"), make_measured("flush_close", after=LoadSample(2.0, 0.5))
    text = report.page(
        [quiet, busy, make_measured("faults", quick=True, missing={"CLU": "needs jax"})]
    )
    assert "**The machine had other load during:** flush_close." in text
    assert "**Quick run; the figures are not meaningful:** faults." in text
    assert "- CLU: needs jax" in text
    assert "**" not in report.describe(HERE)
    assert "other load during" not in report.page([quiet])


def test_results_from_two_machines_name_the_machine() -> None:
    other = msgspec.structs.replace(HERE, processor="Another one")
    text = report.page([make_measured("calls"), make_measured("flush_close", machine=other)])
    assert "Machine 2: Another one" in text
    assert [row[-1] for row in table_rows(text) if row[1:2] == ["2026-01-02 03:04"]] == ["1", "2"]


def test_text_outside_the_markers_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"# By hand\n\n{report.START}\nold\n{report.END}\n\n## The end\n")
    for _ in range(2):  # the second write changes nothing
        report.write(page, [make_measured()])
        text = page.read_text()
        assert text.startswith(f"# By hand\n\n{report.START}\n\n### Targets")
        assert text.endswith(f"{report.END}\n\n## The end\n")
        assert "old" not in text


def test_a_page_without_markers_is_rejected() -> None:
    with pytest.raises(ValueError, match="marker"):
        report.replaced("# By hand\n", "new")


def test_saved_results_are_loaded_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "in" / "results.json"
    measured = [
        make_measured("calls", missing={"a [1, 2]": "x"}),
        make_measured("growth", results=[line_result()]),
    ]
    save(path, measured)
    assert load(path) == measured
    assert '"samples": [10.0, 20.0, 30.0]' in path.read_text()
    assert load(tmp_path / "none.json") == []


def test_a_new_measurement_replaces_only_its_case() -> None:
    old = [make_measured("flush_close"), make_measured("calls"), make_measured("removed")]
    new = make_measured("calls", date="2027-01-01 00:00")
    assert merged(old, [new], ["calls", "flush_close", "faults"]) == [new, old[0]]


def test_charts_are_deterministic(tmp_path: Path) -> None:
    results = [make_measured().results[0], line_result()]
    first = [path.read_bytes() for path in charts.draw_all(results, tmp_path)]
    again = [path.read_bytes() for path in charts.draw_all(results, tmp_path)]
    assert first == again
    assert b"log(a|b)" in first[0]
    assert b"4.00" in first[0]


def test_charts_of_removed_results_are_deleted(tmp_path: Path) -> None:
    (tmp_path / "gone.svg").touch()
    (tmp_path / "other.txt").touch()
    charts.draw_all([make_measured().results[0]], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls.svg", "other.txt"]


def test_results_with_the_same_id_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same id"):
        charts.draw_all([line_result(), line_result()], tmp_path)


@pytest.mark.parametrize("samples", [[0.0], [-3.0, -1.0], [0.0, 5.0]])
def test_a_chart_can_show_any_number(tmp_path: Path, samples: list[float]) -> None:
    figures = [Figure("one", samples, x=1.0), Figure("other", [0.0], x=2.0)]
    for chart in ("bars", "lines"):
        result = Result(chart, chart, "", "MB", figures, baseline="other", chart=chart)
        assert charts.draw(result, tmp_path).stat().st_size


def test_the_page_matches_the_saved_results(tmp_path: Path) -> None:
    measured = load(ROOT / "docs" / "benchmarks" / "results.json")
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert report.replaced(page, report.page(measured)) == page, "python -m benchmarks --report"
    draw(tmp_path, measured)
    names = {path.name for path in (ROOT / "docs" / "benchmarks").glob("*.svg")}
    assert {path.name for path in (tmp_path / "benchmarks").glob("*.svg")} == names


def test_every_case_is_registered() -> None:
    modules = (ROOT / "benchmarks" / "cases").glob("*.py")
    cases = {path.stem for path in modules if "def measure(" in path.read_text()}
    assert cases == set(CASES)


def test_cases_are_chosen_by_name() -> None:
    assert list(chosen("flush_close, calls")) == ["calls", "flush_close"]
    assert chosen("") == CASES
    with pytest.raises(Exception, match="no case is named no, such"):
        chosen("such,calls,no")


def test_the_description_does_not_identify_the_machine() -> None:
    text = report.describe(current_machine())
    assert os.uname().nodename not in text.split()
    assert "/" not in text
    assert current_machine().cores >= 1
    assert current_machine().versions["msgspec"] == msgspec.__version__


def test_commit_is_empty_outside_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "a"], check=True)
    clean = commit(tmp_path)
    assert len(clean) >= 7
    (tmp_path / "pyproject.toml").touch()
    assert commit(tmp_path) == f"{clean}+changes"


GOOD = """
import os, sys
from benchmarks.framework.harness import Figure, Result

def measure(context):
    context.log(f"picked {context.pick(100, 1)}")
    print("printed")
    assert not [key for key in os.environ if key == "WANDB_API_KEY"]
    folder = context.new_folder("runs")
    assert os.getcwd() in str(folder)
    return [Result("made-up", "Made up", "", "s", [Figure("one", [1.0])])]
"""

BAD = """
import subprocess, sys

def measure(context):
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = subprocess.Popen(sleeper, start_new_session=True)
    print("sleeper", process.pid)
    raise ValueError("2 of 3 values were read back")
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Create a case that succeeds and one that fails."""
    for name, text in {"made_up_good": GOOD, "made_up_bad": BAD}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "not-for-benchmarks")
    return {"bad": "made_up_bad", "good": "made_up_good"}


def test_a_failed_case_is_named_and_the_others_run(
    modules: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "benchmarks" / "results.json", [make_measured("kept"), make_measured("good")])
    failed = run(modules, tmp_path, quick=True, order=["kept", "bad", "good"])
    out, err = capfd.readouterr()
    assert failed == ["bad"]
    assert "bad: FAILED: The case exited with status 1" in err
    assert "2 of 3 values were read back" in err
    assert "picked 1" in err
    assert "Made up" in out
    assert "printed" not in out
    measured = load(tmp_path / "benchmarks" / "results.json")
    assert [(case.case, case.results[0].id) for case in measured] == [
        ("kept", "kept"),
        ("good", "made-up"),
    ]
    assert "### Made up" in (tmp_path / "benchmarks.md").read_text()


def test_processes_that_a_case_started_are_killed(modules: dict[str, str]) -> None:
    with pytest.raises(CaseError, match="sleeper") as error:
        run_case("bad", modules["bad"], quick=True)
    pid = int(str(error.value).split("sleeper ")[1].split()[0])
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_failed_worker_is_killed_with_its_children() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(ValueError, match="nothing"), Worker() as worker:
        assert worker.call(os.getpid) == worker.process.pid != os.getpid()
        pid = worker.call(os.spawnv, os.P_NOWAIT, sys.executable, sleep)
        sleeper = psutil.Process(pid)
        worker.call(int, "nothing")
    psutil.wait_procs([sleeper], timeout=1)
    assert not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE


def test_a_new_interpreter_has_no_metricbus_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "csv")
    code = "import os, sys; print(os.getcwd(), 'METRICBUS_SINKS' in os.environ, *sys.argv[1:])"
    assert run_fresh(["-c", code, "argument"], tmp_path) == f"{tmp_path} False argument\n"
    with pytest.raises(RuntimeError, match="2 of 3"):
        run_fresh(["-c", "raise SystemExit('2 of 3')"], tmp_path)


def test_the_command_lists_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    main(list_cases=True)
    assert capsys.readouterr().out.split() == list(CASES)


def test_the_command_rejects_unknown_cases() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "nonsense"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "no case is named nonsense" in result.stderr
