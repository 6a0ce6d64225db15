"""Arms of the case `delivery`: ways to write rows of 20 values to a backend.

An arm is opened in a new folder, which is not timed. Its `write` is timed: it writes all rows and
closes the backend. `read_back` counts the values in the backend.
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
from metricbus._delivery.cursor import DeliveryCursor
from metricbus._delivery.sink_specs import SinkSpec, spec_of
from metricbus._journal.run import RunFolder
from metricbus.sinks import Flushed

NAMES = [f"train/metric{i}" for i in range(20)]
METRICS_PER_BATCH = 1000  # MLflow's maximum

_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")


class Opened(NamedTuple):
    """Open backend that is ready to be written to."""

    write: Callable[[], object]
    read_back: Callable[[], int]


def journal(folder: Path, rows: int) -> Path:
    """Write a journal of this many rows without delivering it; return the run folder."""
    with MetricBus(id="run", sinks="", dir=folder, strict=True) as bus:
        for step, values in steps(rows):
            bus.log(values, step=step)
    return folder / "run"


def steps(rows: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the step and the values of each row."""
    for step in range(rows):
        yield step, dict.fromkeys(NAMES, step / 7)


def by_sink(run: Path, url: str, count: Callable[[], int]) -> Opened:
    """Open a sink that receives a run's journal."""
    folder = RunFolder(run)
    spec = spec_of(parse_sink(url))
    spec.sink.open(folder.load(), folder.path, {})
    return Opened(lambda: consume(folder, spec), count)


def consume(folder: RunFolder, spec: SinkSpec) -> None:
    """Deliver the journal as a consumer does, without its pauses."""
    cursor = DeliveryCursor(folder, spec)
    cursor.acquire()
    cursor.opened()
    while (batch := cursor.read(ended=False)) is not None:
        cursor.intend()
        spec.sink.write(batch.records)
        cursor.written()
        flushed = spec.sink.flush()
        state, acknowledged = flushed if isinstance(flushed, Flushed) else (flushed, None)
        cursor.flushed(state)
        cursor.acknowledged(acknowledged)
    cursor.release()
    spec.sink.close("finished")


def value_by_value(peer: Peer, rows: int) -> Opened:
    """Open an arm that calls the peer once per value."""

    def write() -> None:
        log = peer.log
        for step, values in steps(rows):
            for name, value in values.items():
                log(name, value, step)
        peer.close()

    return Opened(write, peer.count)


def row_by_row(peer: Peer, rows: int) -> Opened:
    """Open an arm that calls the peer once per row."""

    def write() -> None:
        for step, values in steps(rows):
            peer.log_row(values, step)
        peer.close()

    return Opened(write, peer.count)


# Floors: the same work with the bare libraries


def csv_writer(folder: Path, rows: int) -> Opened:
    """Open an arm that writes metricbus's CSV format with the standard library, in one call."""
    path = folder / "metrics.csv"
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


def ready_lines(folder: Path, rows: int) -> Opened:
    """Open an arm that writes one preformatted line per row, with a flush after each."""
    path = folder / LOG
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


def bare_events(folder: Path, rows: int) -> Opened:
    """Open an arm that serializes one TensorBoard event per row and writes it with checksums."""
    import google_crc32c
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    file = open(folder / "events.out.tfevents.1.bench", "wb")  # noqa: SIM115 - closed by `write`
    event = Event(wall_time=1.5, summary=Summary(value=[Summary.Value(tag=tag) for tag in NAMES]))
    values_of_event = list(event.summary.value)

    def masked_crc(data: bytes) -> bytes:
        crc = google_crc32c.value(data)
        return _CRC.pack((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

    def write_event(data: bytes) -> None:
        length = _LENGTH.pack(len(data))
        file.write(length + masked_crc(length) + data + masked_crc(data))

    def write() -> None:
        for step, values in steps(rows):
            event.step = step
            for slot, value in zip(values_of_event, values.values(), strict=True):
                slot.simple_value = value
            write_event(event.SerializeToString())
        file.close()

    write_event(Event(wall_time=1.5, file_version="brain.Event:2").SerializeToString())
    return Opened(write, lambda: reading.tensorboard_values(folder))


def bare_records(folder: Path, rows: int) -> Opened:
    """Open an arm that serializes one W&B record per row to a file, without W&B's process."""
    from wandb.proto import wandb_internal_pb2

    proto: Any = wandb_internal_pb2
    path = folder / "records"
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
        data, offset, values = path.read_bytes(), 0, 0
        while offset < len(data):
            (length,) = _LENGTH.unpack_from(data, offset)
            offset += _LENGTH.size + length
            values += len(proto.Record.FromString(data[offset - length : offset]).history.item)
        return values

    return Opened(write, count)


def full_batches(folder: Path, uri: str, rows: int) -> Opened:
    """Open an arm that calls MLflow's client with as many metrics per call as it accepts."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(uri)
    experiment = f"{folder.name}-batches"
    run = client.create_run(client.create_experiment(experiment)).info.run_id
    rows_per_batch = METRICS_PER_BATCH // len(NAMES)

    def write() -> None:
        batch: list[Metric] = []
        for step, values in steps(rows):
            now = time.time_ns() // 1_000_000
            batch += [Metric(name, value, now, step) for name, value in values.items()]
            if (step + 1) % rows_per_batch == 0 or step + 1 == rows:
                client.log_batch(run, batch)
                batch = []
        client.set_terminated(run)

    return Opened(write, lambda: reading.mlflow_values(uri, experiment))
