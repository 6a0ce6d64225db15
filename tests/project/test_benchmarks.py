"""What the benchmarks' figures go through: turns, ratios, the file, the page, the command."""

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
from benchmarks.framework.fresh import fresh
from benchmarks.framework.harness import Figure, Result, Role, Target, interleaved, ratio
from benchmarks.framework.machine import Machine, Moment, commit, machine
from benchmarks.framework.numbers import apart, place, readable, times
from benchmarks.framework.results import Measured, load, merged, save
from benchmarks.framework.running import CaseError, run_case
from benchmarks.framework.spawned import Worker

ROOT = Path(__file__).parents[2]
HERE = Machine("A processor", 2, "8 GiB", "Linux 6", "CPython 3.11", {"numpy": "2.0"})


def made_up(case: str = "calls", **given: object) -> Measured:
    floor = Figure("append", [10.0, 20.0, 30.0], "floor")
    ours = Figure("log(a|b)", [40.0, 60.0, 240.0], "ours", complete="3 of 3")
    met = Target("log beside append", 4.0, 5.0)
    missed = Target("rate", 999_000.0, 1e6, "values/s", at_most=False)
    result = Result(
        id=case,
        title=f"About {case}",
        text="In turns.",
        unit="ns",
        figures=[floor, ours],
        targets=[met, missed],
        beside="append",
    )
    idle = Moment(0.1, 0.0)
    measured = Measured(case, [result], HERE, "2026-01-02 03:04", 1.5, idle, idle, "1a2b3c4")
    return msgspec.structs.replace(measured, **given)


def growing() -> Result:
    """Lines at so many places that a table cannot hold them all."""
    roles: dict[str, Role] = {"ours": "ours", "theirs": "peer"}
    figures = [
        Figure(name, [at, 2 * at], role, at=at, complete=f"{at:.0f} of {at:.0f}")
        for name, role in roles.items()
        for at in (10.0**power for power in range(13))
    ]
    return Result("growth", "Growth", "", "ns", figures, chart="lines", x="values")


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables, a list for each row, without what is between head and body."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    rows = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines]
    return [row for row in rows if not row[0].startswith("---")]


def test_arms_are_measured_there_and_back() -> None:
    order: list[tuple[str, int]] = []

    def arm(name: str) -> float:
        order.append((name, len(order)))
        return float(len(order))

    seen = interleaved({"a": lambda _: arm("a"), "b": lambda _: arm("b")}, 3)
    assert [name for name, _ in order] == ["a", "b", "b", "a", "a", "b"]
    assert seen == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_a_warm_up_counts_for_nothing() -> None:
    rounds: list[int] = []

    def arm(number: int) -> float:
        rounds.append(number)
        return float(number)

    assert interleaved({"a": arm}, 2, warm_up=True) == {"a": [0.0, 1.0]}
    assert rounds == [-1, 0, 1]


def test_a_ratio_is_that_of_rounds_and_not_of_medians() -> None:
    one, other = Figure("one", [2.0, 30.0, 40.0]), Figure("other", [1.0, 3.0, 20.0])
    assert ratio(one, other) == 2.0
    assert ratio(one, Figure("alone", [10.0])) == 3.0


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
def test_three_digits_count(value: float, text: str) -> None:
    assert readable(value) == text


def test_numbers_that_are_close_look_different() -> None:
    assert apart(1.0502, 1.05) == ("1.0502", "1.05")
    assert apart(1.05, 1.05) == ("1.05", "1.05")
    assert apart(140.0, 100.0) == ("140", "100")
    assert apart(3.14159, 1e6) == ("3.14", "1,000,000")
    assert times(1.0124) == "1.012"
    assert [place(1e7), place(0.00001), place(2.0)] == ["10,000,000", "0.00001", "2"]


def test_a_table_has_medians_spread_ratios_and_what_was_read_back() -> None:
    section = report.section(made_up().results[0])
    head, floor, ours = table_rows(section)
    assert head == ["", "median, ns", "least to most", "times append", "read back"]
    assert floor == ["append (floor)", "20.0", "10.0 to 30.0", "1.000", ""]
    assert ours == ["**log(a\\|b)**", "60.0", "40.0 to 240", "4.00", "3 of 3"]


def test_targets_met_and_missed_are_told_first() -> None:
    text = report.page([made_up()])
    assert text.startswith("### Targets\n\n1 of 2 met.")
    assert "| calls | log beside append | ≤ 5× | 4.00× | yes |" in text
    assert "| calls | rate | ≥ 1,000,000 values/s | 999,000 values/s | **no** |" in text
    assert "- rate: aimed at ≥ 1,000,000 values/s, seen 999,000 values/s, **not met**" in text


def test_a_table_of_growth_has_a_column_for_each_place_as_far_as_there_is_room() -> None:
    head, ours, theirs = table_rows(report.growth_table(growing()))
    assert head[:2] == ["median, ns; values", "1"]
    assert head[-2:] == ["1,000,000,000,000", "read back"]
    assert len(head) == len(ours) == report.MOST_COLUMNS + 2
    assert ours[:2] == ["**ours**", "1.50 (1.00 to 2.00)"]
    assert theirs[-1] == "1 of 1 … 1000000000000 of 1000000000000"


def test_what_makes_figures_worth_less_is_told() -> None:
    quiet, busy = made_up("calls"), made_up("ends", after=Moment(2.0, 0.5))
    text = report.page([quiet, busy, made_up("bad", quick=True, missing={"CLU": "needs jax"})])
    assert "**The machine had other work meanwhile:** ends." in text
    assert "**A quick run, whose figures mean nothing:** bad." in text
    assert "- CLU: needs jax" in text
    assert "**" not in report.describe(HERE)
    assert "other work" not in report.page([quiet])


def test_results_of_two_machines_say_which() -> None:
    other = msgspec.structs.replace(HERE, processor="Another one")
    text = report.page([made_up("calls"), made_up("ends", machine=other)])
    assert "Machine 2: Another one" in text
    assert [row[-1] for row in table_rows(text) if row[1:2] == ["2026-01-02 03:04"]] == ["1", "2"]


def test_the_frame_around_the_results_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"# By hand\n\n{report.START}\nold\n{report.END}\n\n## The end\n")
    for _ in range(2):  # the second time changes nothing
        report.write(page, [made_up()])
        text = page.read_text()
        assert text.startswith(f"# By hand\n\n{report.START}\n\n### Targets")
        assert text.endswith(f"{report.END}\n\n## The end\n")
        assert "old" not in text


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="results"):
        report.replaced("# By hand\n", "new")


def test_results_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "in" / "results.json"
    measured = [made_up("calls", missing={"a [1, 2]": "x"}), made_up("growth", results=[growing()])]
    save(path, measured)
    assert load(path) == measured
    assert '"samples": [10.0, 20.0, 30.0]' in path.read_text()
    assert load(tmp_path / "none.json") == []


def test_what_is_measured_again_replaces_its_case_alone() -> None:
    old = [made_up("ends"), made_up("calls"), made_up("of old")]
    new = made_up("calls", date="2027-01-01 00:00")
    assert merged(old, [new], ["calls", "ends", "bad"]) == [new, old[0]]


def test_a_picture_is_drawn_alike_each_time(tmp_path: Path) -> None:
    results = [made_up().results[0], growing()]
    first = [path.read_bytes() for path in charts.draw_all(results, tmp_path)]
    again = [path.read_bytes() for path in charts.draw_all(results, tmp_path)]
    assert first == again
    assert b"log(a|b)" in first[0]
    assert b"4.00" in first[0]


def test_pictures_of_results_that_are_gone_go(tmp_path: Path) -> None:
    (tmp_path / "gone.svg").touch()
    (tmp_path / "other.txt").touch()
    charts.draw_all([made_up().results[0]], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calls.svg", "other.txt"]


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one id"):
        charts.draw_all([growing(), growing()], tmp_path)


@pytest.mark.parametrize("samples", [[0.0], [-3.0, -1.0], [0.0, 5.0]])
def test_a_picture_takes_any_number(tmp_path: Path, samples: list[float]) -> None:
    figures = [Figure("one", samples, at=1.0), Figure("other", [0.0], at=2.0)]
    for chart in ("bars", "lines"):
        result = Result(chart, chart, "", "MB", figures, beside="other", chart=chart)
        assert charts.draw(result, tmp_path).stat().st_size


def test_the_page_is_what_its_results_say(tmp_path: Path) -> None:
    measured = load(ROOT / "docs" / "benchmarks" / "results.json")
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert report.replaced(page, report.page(measured)) == page, "python -m benchmarks --report"
    draw(tmp_path, measured)
    names = {path.name for path in (ROOT / "docs" / "benchmarks").glob("*.svg")}
    assert {path.name for path in (tmp_path / "benchmarks").glob("*.svg")} == names


def test_every_case_is_known() -> None:
    modules = (ROOT / "benchmarks" / "cases").glob("*.py")
    cases = {path.stem for path in modules if "def measure(" in path.read_text()}
    assert cases == set(CASES)


def test_cases_are_chosen_by_name() -> None:
    assert list(chosen("ends, calls")) == ["calls", "ends"]
    assert chosen("") == CASES
    with pytest.raises(Exception, match="no case is named no, such"):
        chosen("such,calls,no")


def test_the_machine_tells_nothing_of_whose_it_is() -> None:
    text = report.describe(machine())
    assert os.uname().nodename not in text.split()
    assert "/" not in text
    assert machine().cores >= 1
    assert machine().versions["msgspec"] == msgspec.__version__


def test_outside_of_a_checkout_no_commit_is_named(tmp_path: Path) -> None:
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
    context.tell(f"told {context.pick(100, 1)}")
    print("said")
    assert not [key for key in os.environ if key == "WANDB_API_KEY"]
    place = context.place("runs")
    assert os.getcwd() in str(place)
    return [Result("made-up", "Made up", "", "s", [Figure("one", [1.0])])]
"""

BAD = """
import subprocess, sys

def measure(context):
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    process = subprocess.Popen(sleeper, start_new_session=True)
    print("sleeper", process.pid)
    raise ValueError("2 of 3 values came back")
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Two cases that are measured by processes of their own."""
    for name, text in {"made_up_good": GOOD, "made_up_bad": BAD}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "not-for-benchmarks")
    return {"bad": "made_up_bad", "good": "made_up_good"}


def test_a_case_that_fails_is_named_and_the_others_go_on(
    modules: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "benchmarks" / "results.json", [made_up("kept"), made_up("good")])
    failed = run(modules, tmp_path, quick=True, order=["kept", "bad", "good"])
    out, err = capfd.readouterr()
    assert failed == ["bad"]
    assert "bad: FAILED: it ended with 1" in err
    assert "2 of 3 values came back" in err
    assert "told 1" in err
    assert "Made up" in out
    assert "said" not in out
    measured = load(tmp_path / "benchmarks" / "results.json")
    assert [(one.case, one.results[0].id) for one in measured] == [
        ("kept", "kept"),
        ("good", "made-up"),
    ]
    assert "### Made up" in (tmp_path / "benchmarks.md").read_text()


def test_nothing_that_a_case_started_stays(modules: dict[str, str]) -> None:
    with pytest.raises(CaseError, match="sleeper") as error:
        run_case("bad", modules["bad"], quick=True)
    pid = int(str(error.value).split("sleeper ")[1].split()[0])
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_worker_that_fails_ends_with_what_it_has_started() -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(ValueError, match="nothing"), Worker() as worker:
        assert worker.do(os.getpid) == worker.process.pid != os.getpid()
        pid = worker.do(os.spawnv, os.P_NOWAIT, sys.executable, sleeps)
        sleeper = psutil.Process(pid)
        worker.do(int, "nothing")
    psutil.wait_procs([sleeper], timeout=1)
    assert not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE


def test_a_new_interpreter_has_only_what_is_meant_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "csv")
    code = "import os, sys; print(os.getcwd(), 'METRICBUS_SINKS' in os.environ, *sys.argv[1:])"
    assert fresh(["-c", code, "given"], tmp_path) == f"{tmp_path} False given\n"
    with pytest.raises(RuntimeError, match="2 of 3"):
        fresh(["-c", "raise SystemExit('2 of 3')"], tmp_path)


def test_the_command_names_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    main(list_cases=True)
    assert capsys.readouterr().out.split() == list(CASES)


def test_the_command_refuses_what_it_does_not_know() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "nonsense"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no case is named nonsense" in done.stderr
