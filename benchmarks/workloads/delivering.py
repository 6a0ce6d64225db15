"""Ways to bring rows of 20 values into a backend, for the case `delivery`.

Each is opened in a new folder first, which is not timed. Then `write` writes all rows and closes,
which is; and `read_back` counts what is there.
"""

from __future__ import annotations

import csv
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peers import Peer
from benchmarks.workloads import reading
from benchmarks.workloads.own_sinks import LOG
from metricbus import MetricBus
from metricbus._common.sink_urls import parse_sink
from metricbus._delivery.batch_reader import BatchReader
from metricbus._delivery.sink_specs import SinkSpec, spec_of
from metricbus._journal.run import RunFolder

NAMES = [f"train/metric{i}" for i in range(20)]
METRICS_A_BATCH = 1000  # the most that MLflow takes

_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")


class Opened(NamedTuple):
    """Something that is open to be written to."""

    write: Callable[[], object]
    read_back: Callable[[], int]


def journal(place: Path, rows: int) -> Path:
    """The folder of a run that has a journal alone, to be delivered."""
    with MetricBus(id="run", sinks="", dir=place, strict=True) as bus:
        for step, values in steps(rows):
            bus.log(values, step=step)
    return place / "run"


def steps(rows: int) -> Iterator[tuple[int, dict[str, float]]]:
    """What is logged: the values of each step."""
    for step in range(rows):
        yield step, dict.fromkeys(NAMES, step / 7)


def by_sink(run: Path, url: str, count: Callable[[], int]) -> Opened:
    """A sink that is given a run's journal."""
    folder = RunFolder(run)
    spec = spec_of(parse_sink(url))
    spec.sink.open(folder.load(), folder.path, {})
    return Opened(lambda: consume(folder, spec), count)


def consume(folder: RunFolder, spec: SinkSpec) -> None:
    """What a consumer does, without its pauses."""
    feed = BatchReader(folder, spec)
    given = 0
    while (batch := feed.next(ended=False)) is not None:
        spec.sink.write(batch.records)
        given += len(batch.records)
        feed.commit(batch, dict(spec.sink.flush()), given)
        feed.ledger.acknowledge(spec.sink.acknowledged())
    spec.sink.close("finished")


def value_by_value(peer: Peer, rows: int) -> Opened:
    """A call a value."""

    def write() -> None:
        log = peer.log
        for step, values in steps(rows):
            for name, value in values.items():
                log(name, value, step)
        peer.close()

    return Opened(write, peer.count)


def row_by_row(peer: Peer, rows: int) -> Opened:
    """A call a row."""

    def write() -> None:
        for step, values in steps(rows):
            peer.log_row(values, step)
        peer.close()

    return Opened(write, peer.count)


# The floors: what the bare libraries can do.


def csv_writer(place: Path, rows: int) -> Opened:
    """The lines of metricbus's CSV by the standard library, in one call."""
    path = place / "metrics.csv"
    file = open(path, "w", newline="")  # noqa: SIM115 - closed by `write`
    writer = csv.writer(file)
    writer.writerow(("step", "epoch", "time", "name", "value", "kind"))

    def write() -> None:
        writer.writerows(
            (step, 0, "1700000000.500000000", name, value, "scalar")
            for step, values in steps(rows)
            for name, value in values.items()
        )
        file.close()

    return Opened(write, lambda: reading.tidy_csv_values(path))


def ready_lines(place: Path, rows: int) -> Opened:
    """Lines of text that are there already, a row each, as `logging` would write them: at once."""
    path = place / LOG
    file = open(path, "w")  # noqa: SIM115 - closed by `write`
    head = "2026-01-31 12:00:00,000 metricbus: step"
    lines = [
        f"{head} {step} epoch 0 | " + " ".join(f"{name}={values[name]:.6g}" for name in NAMES)
        for step, values in steps(rows)
    ]

    def write() -> None:
        for line in lines:
            file.write(f"{line}\n")
            file.flush()
        file.close()

    return Opened(write, lambda: reading.log_values(path))


def bare_events(place: Path, rows: int) -> Opened:
    """TensorBoard's events, one a row: filled in, serialized, framed with their checksums."""
    import google_crc32c
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    file = open(place / "events.out.tfevents.1.bench", "wb")  # noqa: SIM115 - closed by `write`
    event = Event(wall_time=1.5, summary=Summary(value=[Summary.Value(tag=tag) for tag in NAMES]))
    cells = list(event.summary.value)

    def masked(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return _CRC.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    def put(data: bytes) -> None:
        length = _LENGTH.pack(len(data))
        file.write(length + masked(length) + data + masked(data))

    def write() -> None:
        for step, values in steps(rows):
            event.step = step
            for cell, value in zip(cells, values.values(), strict=True):
                cell.simple_value = value
            put(event.SerializeToString())
        file.close()

    put(Event(wall_time=1.5, file_version="brain.Event:2").SerializeToString())
    return Opened(write, lambda: reading.tensorboard_values(place))


def bare_records(place: Path, rows: int) -> Opened:
    """W&B's records, one a row: filled in, serialized, put into a file; no process of W&B's."""
    from wandb.proto import wandb_internal_pb2

    proto: Any = wandb_internal_pb2
    path = place / "records"
    file = open(path, "wb")  # noqa: SIM115 - closed by `write`
    record = proto.Record()
    items = [record.history.item.add(nested_key=[name]) for name in NAMES]

    def write() -> None:
        for step, values in steps(rows):
            record.history.step.num = step
            for item, value in zip(items, values.values(), strict=True):
                item.value_json = repr(value)
            data = record.SerializeToString()
            file.write(_LENGTH.pack(len(data)) + data)
        file.close()

    def count() -> int:
        data, at, found = path.read_bytes(), 0, 0
        while at < len(data):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size + length
            found += len(proto.Record.FromString(data[at - length : at]).history.item)
        return found

    return Opened(write, count)


def full_batches(place: Path, uri: str, rows: int) -> Opened:
    """MLflow's own client with as many metrics in a call as it takes."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    experiment = f"{place.name}-batches"
    run = client.create_run(client.create_experiment(experiment)).info.run_id
    rows_a_batch = METRICS_A_BATCH // len(NAMES)

    def write() -> None:
        batch: list[Metric] = []
        for step, values in steps(rows):
            now = time.time_ns() // 1_000_000
            batch += [Metric(name, value, now, step) for name, value in values.items()]
            if (step + 1) % rows_a_batch == 0 or step + 1 == rows:
                client.log_batch(run, batch)
                batch = []
        client.set_terminated(run)

    return Opened(write, lambda: reading.mlflow_values(uri, experiment))
