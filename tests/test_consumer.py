"""A consumer: progress that survives, nothing doubled, needs the folder and the URL alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricbus import MetricBus
from metricbus.consumer import Consumer
from metricbus.journal import JournalReader
from metricbus.offsets import load_progress, save_progress
from metricbus.run import RunFolder
from metricbus.specs import spec_of
from metricbus.urls import parse_sink


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        for step in range(100):
            bus.log("x", float(step), step=step)
    return RunFolder(tmp_path / "r")


def deliver(folder: RunFolder, url: str) -> Consumer:
    consumer = Consumer(folder, spec_of(parse_sink(url)))
    consumer.end("finished")
    consumer.run()
    return consumer


def lines(folder: RunFolder) -> list[str]:
    return (folder.path / "csv" / "metrics.csv").read_text().splitlines()[1:]


def test_a_folder_and_a_url_are_enough(folder: RunFolder) -> None:
    counts = deliver(folder, "csv").tally().counts(100)
    assert (counts.delivered, counts.pending) == (100, 0)
    assert len(lines(folder)) == 100


def test_delivering_again_doubles_nothing(folder: RunFolder) -> None:
    deliver(folder, "csv")
    counts = deliver(folder, "csv").tally().counts(100)
    assert (counts.delivered, counts.pending) == (100, 0)
    assert len(lines(folder)) == 100


@pytest.mark.parametrize("killed_after", range(0, 101, 10))
def test_after_a_kill_between_write_and_save_nothing_is_doubled_or_missing(
    folder: RunFolder, killed_after: int
) -> None:
    url = parse_sink("csv?batch_size=10")
    first = Consumer(folder, spec_of(url))
    first.end("finished")
    while len(lines(folder)) < killed_after if (folder.path / "csv").exists() else True:
        first._turn()
    path = folder.offsets / f"{url.key}.json"
    if path.exists():
        saved = path.read_bytes()
        first._turn()  # writes a further batch …
        path.write_bytes(saved)  # … whose progress is lost
    deliver(folder, "csv?batch_size=10")
    assert [line.split(",")[0] for line in lines(folder)] == [str(step) for step in range(100)]


def test_thinning_goes_on_after_a_restart_where_it_was(folder: RunFolder) -> None:
    url = parse_sink("csv?every=7&batch_size=10")
    first = Consumer(folder, spec_of(url))
    for _ in range(3):
        first._turn()
    deliver(folder, "csv?every=7&batch_size=10")
    assert [int(line.split(",")[0]) for line in lines(folder)] == list(range(0, 100, 7))


def test_progress_is_saved_and_loaded_as_it_was(tmp_path: Path, folder: RunFolder) -> None:
    reader = JournalReader(folder.journal)
    list(reader.read(limit=5))
    progress = load_progress(tmp_path / "none.json", "csv:")
    progress.positions = reader.positions
    progress.state = {"length": 3}
    progress.delivered = 4
    save_progress(tmp_path / "p.json", progress)
    assert load_progress(tmp_path / "p.json", "csv:") == progress
