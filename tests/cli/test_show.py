"""`metricbus show`, as a person would run it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from metricbus import Image, MetricBus, Table
from metricbus._cli.app import app
from metricbus._cli.escaping import printable
from metricbus._cli.format import number, size, span, sparkline
from metricbus._common.processes import this_process
from metricbus._delivery.control_files import DeliveryStatus, delivery_status_file
from metricbus._delivery.cursor import DeliveryProgress, save_progress
from metricbus._delivery.lease import Lease
from metricbus._delivery.report import Tally
from metricbus._journal.run import RunFolder


def show(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["show", *arguments])


def as_json(*arguments: str) -> dict[str, Any]:
    done = show(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = {"lr": 0.1, "optimizer": {"name": "adam", "betas": [0.9, 0.99]}}
    with MetricBus(
        id="r", run="digits", sinks="csv", dir=tmp_path / "runs", config=config, tags=["a", "b"]
    ) as bus:
        for step in range(100):
            bus.log("train/loss", 1 - step / 100, step=step)
        bus.log("val/acc", 0.75)
        bus.log("val/acc", math.nan)
        bus.log("picture", Image(np.zeros((4, 6, 3)), caption="a seven"))
        bus.log("errors", Table(columns=["id", "guess"], rows=[[1, 2]]))
    return tmp_path / "runs" / "r"


def line_of(done: Result, start: str) -> list[str]:
    (line,) = (line for line in done.stdout.splitlines() if line.startswith(start))
    return line.split()


def test_it_shows_who_the_run_is_and_its_config(run: Path) -> None:
    done = show(str(run))
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("digits  r\nfinished; begun ")
    assert "tags: a, b" in done.stdout
    assert line_of(done, "optimizer/betas") == ["optimizer/betas", "[0.9,", "0.99]"]


def test_every_series_has_its_numbers_and_its_course(run: Path) -> None:
    done = show(str(run))
    loss = line_of(done, "train/loss")
    assert loss[:7] == ["train/loss", "100", "0.01", "0.01", "1", "0.505", "0-99"]
    assert (loss[7][0], loss[7][-1], len(loss[7])) == ("█", "▁", 32)
    assert line_of(done, "val/acc")[:7] == ["val/acc", "2", "1", "nan", "0.75", "0.75", "0.75"]


def test_media_and_tables_are_told(run: Path) -> None:
    done = show(str(run))
    assert " ".join(line_of(done, "picture")).endswith("6x4, a seven")
    assert line_of(done, "errors")[:4] == ["errors", "table", "1", "1"]
    assert "columns id, guess" in done.stdout


def test_each_sink_has_its_counts_and_its_place(run: Path) -> None:
    done = show(str(run))
    assert "csv 104 0 0 0" in [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"csv: {run / 'csv' / 'metrics.csv'}" in done.stdout


def test_pending_values_come_with_the_reason_and_the_command(run: Path) -> None:
    file = run / "run.json"
    file.write_text(file.read_text().replace('"csv"', '"csv","mlflow"'))
    sink = next(sink for sink in as_json(str(run))["sinks"] if sink["sink"] == "mlflow")
    assert (sink["delivered"], sink["pending"]) == (0, 104)
    assert sink["why"] == f"nobody delivers to it; metricbus deliver {run}"


def test_paths_and_commands_stand_on_one_line_each(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = (tmp_path / "a-long-name-of-a-folder" / ("r" * 60)).absolute()
    long.parent.mkdir()
    run.rename(long)
    with_mlflow(long)
    lines = show(str(long)).stdout.splitlines()
    assert f"folder: {long}" in lines
    command = f"nobody delivers to it; metricbus deliver {long}"
    assert f"mlflow+http://host:5000: {command}" in lines
    done = CliRunner().invoke(app, ["deliver", str(long), "--sinks", "csv:out"])
    assert f"  csv:out: {tmp_path / 'out' / 'r' / 'metrics.csv'}" in done.stdout.splitlines()


def with_mlflow(run: Path) -> RunFolder:
    """The run, as if it had been told to write to MLflow too."""
    folder = RunFolder(run)
    folder.save(msgspec.structs.replace(folder.load(), sinks=["csv", "mlflow+http://host:5000"]))
    return folder


def test_the_last_error_of_the_delivery_process_is_told(run: Path) -> None:
    folder = with_mlflow(run)
    folder.delivery.mkdir()
    tally = Tally(values={}, positions={}, error="no route")
    status = DeliveryStatus(this_process(), {"mlflow+http://host:5000/": tally})
    delivery_status_file(folder, 1).write(status)
    _, sink = as_json(str(run))["sinks"]
    assert (sink["error"], sink["why"].split("; ")[0]) == ("no route", "no route")


def test_who_delivers_now_is_told(run: Path) -> None:
    folder = with_mlflow(run)
    url = "mlflow+http://host:5000"
    save_progress(
        folder.offsets / "mlflow.json", DeliveryProgress(sink=url, place="there", delivered=4)
    )
    lease = Lease(folder.offsets / "there")
    lease.acquire()
    _, sink = as_json(str(run))["sinks"]
    assert (sink["pending"], sink["why"]) == (100, f"{this_process()} delivers to it now")
    lease.release()
    assert "nobody delivers to it" in as_json(str(run))["sinks"][1]["why"]


def test_rejected_values_point_to_the_log(run: Path) -> None:
    folder = RunFolder(run)
    (path,) = folder.offsets.glob("*.json")
    progress = msgspec.json.decode(path.read_bytes(), type=DeliveryProgress)
    save_progress(path, msgspec.structs.replace(progress, delivered=100, rejected=4))
    (sink,) = as_json(str(run))["sinks"]
    assert (sink["rejected"], sink["pending"]) == (4, 0)
    assert "it refused 4 values" in sink["why"]


def test_a_progress_file_that_is_damaged_counts_as_none(run: Path) -> None:
    (path,) = (run / "offsets").glob("*.json")
    path.write_text("{")
    (sink,) = as_json(str(run))["sinks"]
    assert (sink["delivered"], sink["pending"]) == (0, 104)


def test_a_journal_without_permission_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "journal/0001.jsonl")

    monkeypatch.setattr("metricbus._cli.run_reader.summarise", refuse)
    done = show(str(run))
    assert done.exit_code == 2
    assert done.stderr == "metricbus: journal/0001.jsonl cannot be read: Permission denied\n"


def test_json_has_exact_numbers_and_null_for_nan(run: Path) -> None:
    found = as_json(str(run))
    assert (found["run"]["id"], found["run"]["status"]) == ("r", "finished")
    assert (found["values"], found["damaged"]) == (104, 0)
    acc = next(series for series in found["series"] if series["name"] == "val/acc")
    assert (acc["last"], acc["max"], acc["nan"], acc["count"]) == (None, 0.75, 1, 2)
    assert {one["kind"] for one in found["media"]} == {"image", "table"}


def test_a_run_is_found_by_its_id(run: Path) -> None:
    assert as_json("r")["run"]["id"] == "r"


def test_series_are_chosen_by_a_glob(run: Path) -> None:
    assert [one["name"] for one in as_json("r", "--name", "val/*")["series"]] == ["val/acc"]


def test_an_unknown_name_suggests_the_nearest(run: Path) -> None:
    done = show("r", "--name", "train/los")
    assert done.exit_code == 2
    assert "did you mean train/loss?" in done.stderr


def test_no_such_run_is_told_with_near_ones(run: Path) -> None:
    done = show("rr")
    assert done.exit_code == 2
    assert "there is no run 'rr'; did you mean r?" in done.stderr


def test_a_live_run_is_shown_up_to_now(tmp_path: Path) -> None:
    with MetricBus(id="live", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1)
        bus.flush()
        assert as_json(str(tmp_path / "live"))["run"]["status"] == "running"


def test_a_run_that_has_logged_nothing_is_shown(tmp_path: Path) -> None:
    with MetricBus(id="empty", sinks="", dir=tmp_path):
        pass
    assert "0 values in 0 rows" in show(str(tmp_path / "empty")).stdout


def test_a_torn_and_damaged_journal_is_shown_with_what_is_wrong(run: Path) -> None:
    segment = run / "journal" / "0001.jsonl"
    segment.write_bytes(segment.read_bytes()[:-80] + b'\nnonsense\n{"kind":')
    done = show(str(run))
    assert done.exit_code == 0, done.stderr
    assert "bytes torn: 8 (" in done.stdout
    assert "lines damaged: " in done.stdout


def test_a_journal_of_a_newer_format_is_told(run: Path) -> None:
    segment = run / "journal" / "0001.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'"format":1', b'"format":9', 1))
    done = show(str(run))
    assert done.exit_code == 2
    assert "pip install --upgrade metricbus" in done.stderr


def test_a_foreign_run_with_the_least_that_a_run_needs_is_shown(tmp_path: Path) -> None:
    (tmp_path / "f" / "journal").mkdir(parents=True)
    (tmp_path / "f" / "run.json").write_text('{"id": "f", "name": "foreign"}')
    (tmp_path / "f" / "journal" / "0001.jsonl").write_text(
        '{"kind": "scalars", "step": 0, "epoch": 0, "time": 0, "values": {"x": 1.5}}\n'
    )
    found = as_json(str(tmp_path / "f"))
    assert [(one["name"], one["last"]) for one in found["series"]] == [("x", 1.5)]


def test_at_40_columns_no_line_is_longer_but_those_to_be_copied(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    done = show(str(run), "--name", "*")
    lines = [line for line in done.stdout.splitlines() if str(run) not in line]
    assert max(map(len, lines)) <= 40
    assert line_of(done, "series")[:2] == ["series", "last"]


def test_help_has_an_example() -> None:
    assert "Example: metricbus show" in show("--help").stdout


def test_a_sparkline_shows_one_peak_among_many_values() -> None:
    low = np.zeros(128)
    high = np.zeros(128)
    high[77] = 1.0
    assert sparkline(low, high, 16).count("█") == 1


def test_a_sparkline_has_gaps_and_levels() -> None:
    values = np.array([0.0, np.nan, 1.0])
    assert sparkline(values, values, 10) == "▁ █"
    assert sparkline(np.ones(2), np.ones(2), 10) == "▄▄"
    assert sparkline(np.full(2, np.nan), np.full(2, np.nan), 10) == ""
    assert sparkline(np.array([-1.7e308, 1.7e308]), np.array([-1.7e308, 1.7e308]), 2) == "▁█"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (59, "59 s"), (720, "12 min"), (12_240, "3.4 h"), (7e5, "8.1 d"), (2e6, "23 d")],
)
def test_a_span_is_told_in_its_largest_unit(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_numbers_sizes_and_texts_are_short_and_on_one_line() -> None:
    assert [number(value) for value in (None, 12345678, 0.1 + 0.2, math.nan)] == [
        "-",
        "12345678",
        "0.3",
        "nan",
    ]
    assert [size(count) for count in (12, 1500, 2_500_000)] == ["12 B", "1.5 kB", "2.5 MB"]
    assert printable("a\nb\x1b") == "a\\nb\\x1b"
