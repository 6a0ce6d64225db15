"""The command `metricbus show`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import Result

from metricbus import Image, MetricBus, Table
from metricbus._cli.format import format_duration, format_number, format_size, sparkline
from metricbus._common.processes import this_process
from metricbus._delivery.control_files import DeliveryStatus, delivery_status_file
from metricbus._delivery.lease import Lease
from metricbus._delivery.offsets_file import DeliveryProgress, save_progress
from metricbus._delivery.report import Tally
from metricbus._journal.run import RunFolder
from metricbus.sinks.media_text import printable
from tests.helpers.cli_runs import invoke, invoke_json


def show(*arguments: str) -> Result:
    return invoke("show", *arguments)


def show_json(*arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = invoke_json("show", *arguments)
    return result


@pytest.fixture
def run(tmp_path: Path) -> Path:
    config = {"lr": 0.1, "optimizer": {"name": "adam", "betas": [0.9, 0.99]}}
    with MetricBus(
        id="r", name="digits", sinks="csv", dir=tmp_path / "runs", config=config, tags=["a", "b"]
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


def test_shows_the_run_and_its_config(run: Path) -> None:
    done = show(str(run))
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("digits  r\nfinished; started ")
    assert "tags: a, b" in done.stdout
    assert line_of(done, "optimizer/betas") == ["optimizer/betas", "[0.9,", "0.99]"]


def test_shows_statistics_and_a_trend_for_each_series(run: Path) -> None:
    done = show(str(run))
    loss = line_of(done, "train/loss")
    assert loss[:7] == ["train/loss", "100", "0.01", "0.01", "1", "0.505", "0-99"]
    assert (loss[7][0], loss[7][-1], len(loss[7])) == ("█", "▁", 32)
    assert line_of(done, "val/acc")[:7] == ["val/acc", "2", "1", "nan", "0.75", "0.75", "0.75"]


def test_shows_media_and_tables(run: Path) -> None:
    done = show(str(run))
    assert " ".join(line_of(done, "picture")).endswith("6x4, a seven")
    assert line_of(done, "errors")[:4] == ["errors", "table", "1", "1"]
    assert "columns id, guess" in done.stdout


def test_shows_what_a_live_run_has_gained(run: Path) -> None:
    with MetricBus(id="live", sinks="", dir=run.parent, config={"lr": 0.1}, tags=["a"]) as bus:
        bus.config.update(lr=0.05)
        bus.add_tags("b")
        bus.summarize("test/acc", 0.875)
        bus.summarize("lost", math.nan)
        bus.flush()
        done = show(str(run.parent / "live"))
        assert line_of(done, "lr") == ["lr", "0.05"]
        assert "tags: a, b" in done.stdout
        assert line_of(done, "test/acc") == ["test/acc", "0.875"]
        described = show_json(str(run.parent / "live"))["run"]
        assert described["summary"] == {"test/acc": 0.875, "lost": None}
        assert (described["config"], described["tags"]) == ({"lr": 0.05}, ["a", "b"])


def test_shows_counts_and_location_of_each_sink(run: Path) -> None:
    done = show(str(run))
    assert "csv 104 0 0 0" in [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert f"csv: {run / 'csv' / 'metrics.csv'}" in done.stdout


def test_explains_pending_values_and_names_the_command(run: Path) -> None:
    file = run / "run.json"
    file.write_text(file.read_text().replace('"csv"', '"csv","mlflow"'))
    sink = next(sink for sink in show_json(str(run))["sinks"] if sink["sink"] == "mlflow")
    assert (sink["delivered"], sink["pending"]) == (0, 104)
    assert sink["why"] == f"no process is delivering to it; run metricbus deliver {run}"


def test_does_not_wrap_paths_and_commands(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = (tmp_path / "a-long-folder-name" / ("r" * 60)).absolute()
    long.parent.mkdir()
    run.rename(long)
    with_mlflow(long)
    lines = show(str(long)).stdout.splitlines()
    assert f"folder: {long}" in lines
    command = f"no process is delivering to it; run metricbus deliver {long}"
    assert f"mlflow+http://host:5000: {command}" in lines
    done = invoke("deliver", long, "--sinks", "csv:out")
    assert f"  csv:out: {tmp_path / 'out' / 'r' / 'metrics.csv'}" in done.stdout.splitlines()


def with_mlflow(run: Path) -> RunFolder:
    """Add MLflow to the sinks of a run."""
    folder = RunFolder(run)
    folder.save(msgspec.structs.replace(folder.load(), sinks=["csv", "mlflow+http://host:5000"]))
    return folder


def test_shows_the_last_error_of_the_delivery_process(run: Path) -> None:
    folder = with_mlflow(run)
    folder.delivery.mkdir()
    tally = Tally(values={}, positions={}, error="no route")
    status = DeliveryStatus(this_process(), {"mlflow+http://host:5000/": tally})
    delivery_status_file(folder, 1).write(status)
    _, sink = show_json(str(run))["sinks"]
    assert (sink["error"], sink["why"].split("; ")[0]) == ("no route", "no route")


def test_shows_the_process_that_is_delivering(run: Path) -> None:
    folder = with_mlflow(run)
    url = "mlflow+http://host:5000"
    save_progress(
        folder.offsets / "mlflow.json", DeliveryProgress(sink=url, destination="there", delivered=4)
    )
    lease = Lease(folder.offsets / "there")
    lease.acquire()
    _, sink = show_json(str(run))["sinks"]
    assert (sink["pending"], sink["why"]) == (100, f"{this_process()} is delivering to it")
    lease.release()
    assert "no process is delivering to it" in show_json(str(run))["sinks"][1]["why"]


def test_refers_to_the_log_for_rejected_values(run: Path) -> None:
    folder = RunFolder(run)
    (path,) = folder.offsets.glob("*.json")
    progress = msgspec.json.decode(path.read_bytes(), type=DeliveryProgress)
    save_progress(path, msgspec.structs.replace(progress, delivered=100, rejected=4))
    (sink,) = show_json(str(run))["sinks"]
    assert (sink["rejected"], sink["pending"]) == (4, 0)
    assert "it rejected 4 values" in sink["why"]


def test_ignores_a_damaged_progress_file(run: Path) -> None:
    (path,) = (run / "offsets").glob("*.json")
    path.write_text("{")
    (sink,) = show_json(str(run))["sinks"]
    assert (sink["delivered"], sink["pending"]) == (0, 104)


def test_reports_a_journal_without_permission(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "journal/0001.jsonl")

    monkeypatch.setattr("metricbus._cli.run_reader.summarize_run", refuse)
    done = show(str(run))
    assert done.exit_code == 2
    assert done.stderr == "metricbus: journal/0001.jsonl cannot be read: Permission denied\n"


def test_json_has_exact_numbers_and_null_for_nan(run: Path) -> None:
    result = show_json(str(run))
    assert (result["run"]["id"], result["run"]["status"]) == ("r", "finished")
    assert (result["values"], result["damaged"]) == (104, 0)
    acc = next(series for series in result["series"] if series["name"] == "val/acc")
    assert (acc["last"], acc["max"], acc["nan"], acc["count"]) == (None, 0.75, 1, 2)
    assert {item["kind"] for item in result["media"]} == {"image", "table"}


def test_finds_a_run_by_its_id(run: Path) -> None:
    assert show_json("r")["run"]["id"] == "r"


def test_a_glob_selects_series(run: Path) -> None:
    assert [item["name"] for item in show_json("r", "--name", "val/*")["series"]] == ["val/acc"]


def test_an_unknown_name_suggests_a_similar_one(run: Path) -> None:
    done = show("r", "--name", "train/los")
    assert done.exit_code == 2
    assert "Did you mean 'train/loss'?" in done.stderr


def test_an_unknown_run_suggests_a_similar_one(run: Path) -> None:
    done = show("rr")
    assert done.exit_code == 2
    assert "There is no run 'rr'. Did you mean r?" in done.stderr


def test_shows_a_live_run_so_far(tmp_path: Path) -> None:
    with MetricBus(id="live", sinks="", dir=tmp_path) as bus:
        bus.log("x", 1)
        bus.flush()
        assert show_json(str(tmp_path / "live"))["run"]["status"] == "running"


def test_shows_a_run_without_values(tmp_path: Path) -> None:
    with MetricBus(id="empty", sinks="", dir=tmp_path):
        pass
    assert "0 values in 0 rows" in show(str(tmp_path / "empty")).stdout


def test_reports_torn_and_damaged_parts_of_a_journal(run: Path) -> None:
    segment = run / "journal" / "0001.jsonl"
    segment.write_bytes(segment.read_bytes()[:-80] + b'\nnonsense\n{"kind":')
    done = show(str(run))
    assert done.exit_code == 0, done.stderr
    assert "bytes torn: 8 (" in done.stdout
    assert "lines damaged: " in done.stdout


def test_reports_a_journal_of_a_newer_format(run: Path) -> None:
    segment = run / "journal" / "0001.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b'"format":1', b'"format":9', 1))
    done = show(str(run))
    assert done.exit_code == 2
    assert "pip install --upgrade metricbus" in done.stderr


def test_shows_a_minimal_run_from_another_program(tmp_path: Path) -> None:
    (tmp_path / "f" / "journal").mkdir(parents=True)
    (tmp_path / "f" / "run.json").write_text('{"id": "f", "name": "foreign"}')
    (tmp_path / "f" / "journal" / "0001.jsonl").write_text(
        '{"kind": "scalars", "step": 0, "epoch": 0, "time": 0, "values": {"x": 1.5}}\n'
    )
    result = show_json(str(tmp_path / "f"))
    assert [(item["name"], item["last"]) for item in result["series"]] == [("x", 1.5)]


def test_fits_into_40_columns_except_for_paths(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    done = show(str(run), "--name", "*")
    lines = [line for line in done.stdout.splitlines() if str(run) not in line]
    assert max(map(len, lines)) <= 40
    assert line_of(done, "series")[:2] == ["series", "last"]


def test_help_has_an_example() -> None:
    assert "Example: metricbus show" in show("--help").stdout


def test_a_sparkline_keeps_a_single_peak() -> None:
    extremes = [(0.0, 1.0 if index == 77 else 0.0) for index in range(128)]
    assert sparkline(extremes, 16).count("█") == 1


def test_a_sparkline_has_gaps_and_levels() -> None:
    assert sparkline([(0.0, 0.0), None, (1.0, 1.0)], 10) == "▁ █"
    assert sparkline([(1.0, 1.0)] * 2, 10) == "▄▄"
    assert sparkline([None, None], 10) == ""
    assert sparkline([(-1.7e308, -1.7e308), (1.7e308, 1.7e308)], 2) == "▁█"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59, "59 s"), (720, "12 min"), (12_240, "3.4 h"), (7e5, "8.1 d"), (2e6, "23 d")],
)
def test_formats_a_duration_in_its_largest_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_formats_numbers_sizes_and_text() -> None:
    assert [format_number(value) for value in (None, 12345678, 0.1 + 0.2, math.nan)] == [
        "-",
        "12345678",
        "0.3",
        "nan",
    ]
    assert [format_size(count) for count in (12, 1500, 2_500_000)] == ["12 B", "1.5 kB", "2.5 MB"]
    assert printable("a\nb\x1b") == "a\\nb\\x1b"
