"""The journal: bytes per scalar, and the rates of writing and reading.

Each step has twenty scalars with names like `train/m12`. They are written as the collector writes
them: calls from the queue are joined into rows, and each chunk of calls is one `write`. The files
stay in the page cache. Nothing else runs during the measurement, and everything is read back and
compared.
"""

from __future__ import annotations

import gc
import json
import os
import random
import statistics
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.framework.harness import Context, Figure, Result, Role, Target, interleaved
from benchmarks.workloads.reading import complete
from metricbus import MetricBus, read
from metricbus._aggregate.row_builder import join_calls
from metricbus._common.records import Call, ScalarRow
from metricbus._journal.segment_reader import JournalReader
from metricbus._journal.segment_writer import SegmentWriter

NAMES = [f"train/m{i}" for i in range(20)]
CHUNK = 256  # calls per chunk of the collector
START = 1_700_000_000_000_000_000
STEP_NS = 3_456_789
MAX_BYTES, MIN_RATE = 40.0, 1_000_000.0  # targets: bytes per scalar, values per second
WRITING, READING = "SegmentWriter.append", "JournalReader.read"
ALL_SERIES = "metricbus.read, then all series"
REALISTIC = "loss curves, float64"

Rows = Sequence[dict[str, float]]
Arm = Callable[[], object]


def measure(context: Context) -> list[Result]:
    """Measure size, writing and reading."""
    curves = loss_curves(context.pick(10_000, 500))
    return [
        _size_table(context, curves),
        _writing_table(context, curves),
        _reading_table(context, curves),
    ]


def loss_curves(steps: int) -> Rows:
    """Return a random walk for each name, falling from 2.3, with a fixed seed."""
    generator = random.Random(7)
    row = dict.fromkeys(NAMES, 2.3)
    rows = []
    for _ in range(steps):
        row = {name: value * generator.lognormvariate(-0.0005, 0.02) for name, value in row.items()}
        rows.append(row)
    return rows


def _size_table(context: Context, curves: Rows) -> Result:
    kinds: dict[str, Rows] = {
        REALISTIC: curves,
        "loss curves, from float32 (`loss.item()`)": _map_values(curves, _through_float32),
        "loss curves, rounded to 4 decimals": _map_values(curves, lambda value: round(value, 4)),
        "whole numbers": _map_values(curves, lambda value: float(int(value * 100))),
    }
    count = len(curves) * len(NAMES)
    figures = [
        Figure("binary float64, without names or steps", [8.0], "floor"),
        Figure("decimal digits of loss curves, float64", [_digits(curves)], "floor"),
    ]
    for kind, rows in kinds.items():
        folder = context.new_folder("journal-size")
        length = _append(calls_of(rows), folder)
        figures.append(Figure(kind, [length / count], "ours", read_back=_compare(folder, rows)))
    folder = context.new_folder("journal-size")
    length = _append(single_calls_of(curves, own_steps=True), folder)
    single_rows = [{name: row[name]} for row in curves for name in NAMES]
    figures.append(
        Figure(
            f"{REALISTIC}, one per step",
            [length / count],
            "ours",
            read_back=_compare(folder, single_rows),
        )
    )
    result = Result(
        id="journal-size",
        title="Bytes per scalar in the journal",
        text=(
            "Twenty scalars per step, with names like `train/m12`. Numbers are written with the "
            "digits needed to restore the same float64, so the size depends on the values. A "
            "float32 converted to float64 has as many digits as other values."
        ),
        unit="bytes",
        figures=figures,
        baseline=REALISTIC,
    )
    measured = result.figure(REALISTIC).median
    target = Target("bytes per scalar, 20 per step, full float64", measured, MAX_BYTES, "bytes")
    return msgspec.structs.replace(result, targets=[target])


def _writing_table(context: Context, curves: Rows) -> Result:
    calls, singles = calls_of(curves), single_calls_of(curves)
    chunks = [list(join_calls(chunk)) for chunk in _chunks(calls)]
    encoder = msgspec.json.Encoder()
    pieces = [encoder.encode_lines(chunk) for chunk in chunks]
    lines = [[msgspec.to_builtins(row) for row in chunk] for chunk in chunks]
    folders: dict[str, Path] = {}
    single_calls = f"{WRITING}, single calls"

    def new_folder(name: str) -> Path:
        folders[name] = context.new_folder("journal-writing")
        return folders[name]

    arms: dict[str, tuple[Role, Arm]] = {
        "os.write of prepared bytes": ("floor", lambda: _write(pieces, new_folder("bytes"))),
        "msgspec encoding, without a file": (
            "floor",
            lambda: [encoder.encode_lines(chunk) for chunk in chunks],
        ),
        WRITING: ("ours", lambda: _append(calls, new_folder(WRITING))),
        single_calls: ("ours", lambda: _append(singles, new_folder(single_calls))),
        "json.dumps of each row and file.write": ("peer", lambda: _dump(lines, new_folder("json"))),
    }
    figures = _rates(context, arms, len(singles))
    size = sum(map(len, pieces))
    for name in ("bytes", "json"):
        found = (folders[name] / "0001.jsonl").read_bytes()
        rows = [json.loads(line)["values"] for line in found.splitlines()]
        if rows != list(curves) or (name == "bytes" and len(found) != size):
            raise RuntimeError(f"{name}: the file does not contain the expected rows.")
    read_back = {name: _compare(folders[name], curves) for name in (WRITING, single_calls)}
    result = Result(
        id="journal-writing",
        title="Writing the journal",
        text=(
            "The rate from queued calls to bytes in the page cache, for "
            f"{len(curves):,} steps of 20 values. The calls have mappings, or single values that "
            f"are joined into rows. Each chunk of {CHUNK} calls is one write. Each floor does a "
            "part of the work."
        ),
        unit="values/s",
        figures=_with_read_back(figures, read_back),
        baseline=WRITING,
        better="higher",
    )
    return _with_targets(result, [WRITING, single_calls])


def _reading_table(context: Context, curves: Rows) -> Result:
    folder = context.new_folder("journal-reading")
    with MetricBus(id="run", sinks="", dir=folder) as bus:
        for step, row in enumerate(curves):
            bus.log(row, step=step)
    run = folder / "run"
    file = run / "journal" / "0001.jsonl"
    lines = file.read_bytes().splitlines()[1:-1]  # without the header and the end marker
    decoder = msgspec.json.Decoder(ScalarRow)
    arms: dict[str, tuple[Role, Arm]] = {
        "reading the file and splitting it into lines": (
            "floor",
            lambda: file.read_bytes().split(b"\n"),
        ),
        "msgspec decoding of prepared lines": ("floor", lambda: list(map(decoder.decode, lines))),
        READING: ("ours", lambda: list(JournalReader(run / "journal").read())),
        ALL_SERIES: ("ours", lambda: _series(run)),
        "json.loads of prepared lines": ("peer", lambda: list(map(json.loads, lines))),
    }
    figures = _rates(context, arms, len(curves) * len(NAMES))
    journal_text = _compare(run / "journal", curves)
    series = _series(run)
    if any(series[name] != [row[name] for row in curves] for name in NAMES):
        raise RuntimeError("The series differ from the logged values.")
    read_back = {figure.name: journal_text for figure in figures if figure.role == "ours"}
    result = Result(
        id="journal-reading",
        title="Reading the journal",
        text=(
            f"{len(curves):,} rows of 20 values, from the page cache. `JournalReader` feeds the "
            "sinks. `metricbus.read` returns a whole run as NumPy columns."
        ),
        unit="values/s",
        figures=_with_read_back(figures, read_back),
        baseline=READING,
        better="higher",
    )
    return _with_targets(result, [READING, ALL_SERIES])


def _rates(context: Context, arms: Mapping[str, tuple[Role, Arm]], values: int) -> list[Figure]:
    context.log(f"{len(arms)} arms")

    def timed(run: Arm) -> Callable[[int], float]:
        def measure(_: int) -> float:
            gc.collect()
            start = time.perf_counter()
            result = run()
            seconds = time.perf_counter() - start
            del result  # freed outside the measured time
            return values / seconds

        return measure

    measured = {name: timed(run) for name, (_, run) in arms.items()}
    samples = interleaved(measured, context.pick(9, 2), warm_up=True)
    return [Figure(name, samples[name], role) for name, (role, _) in arms.items()]


def _with_targets(result: Result, names: Sequence[str]) -> Result:
    targets = [
        Target(name, result.figure(name).median, MIN_RATE, "values/s", at_most=False)
        for name in names
    ]
    return msgspec.structs.replace(result, targets=targets)


def _with_read_back(figures: Sequence[Figure], read_back: Mapping[str, str]) -> list[Figure]:
    return [
        msgspec.structs.replace(figure, read_back=read_back.get(figure.name, ""))
        for figure in figures
    ]


# Inputs and functions that are measured


def calls_of(rows: Rows) -> list[Call]:
    """Return the entries of the queue for one mapping per step."""
    return [(row, 1.0, step, 0, START + step * STEP_NS) for step, row in enumerate(rows)]


def single_calls_of(rows: Rows, *, own_steps: bool = False) -> list[Call]:
    """Return the entries of the queue for one value per call.

    With `own_steps`, each value has a step of its own, so that values are not joined into rows.
    """
    flat = [(step, name, value) for step, row in enumerate(rows) for name, value in row.items()]
    return [
        (name, value, number if own_steps else step, 0, START + step * STEP_NS)
        for number, (step, name, value) in enumerate(flat)
    ]


def _chunks(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    return (calls[start : start + CHUNK] for start in range(0, len(calls), CHUNK))


def _append(calls: Sequence[Call], folder: Path) -> int:
    """Write calls as the collector does; return the number of bytes of the rows."""
    writer = SegmentWriter(folder, run="bench")
    before = writer.length
    for chunk in _chunks(calls):
        writer.append(list(join_calls(chunk)))
    length = writer.length - before
    writer.close()
    return length


def _write(pieces: Sequence[bytes], folder: Path) -> None:
    file = os.open(folder / "0001.jsonl", os.O_WRONLY | os.O_CREAT)
    for piece in pieces:
        os.write(file, piece)
    os.close(file)


def _dump(chunks: Sequence[Sequence[Any]], folder: Path) -> None:
    with open(folder / "0001.jsonl", "w") as file:
        for chunk in chunks:
            file.write("".join([json.dumps(row) + "\n" for row in chunk]))
            file.flush()


def _series(run: Path) -> dict[str, list[float]]:
    history = read(run)
    return {name: history.series(name).value.tolist() for name in NAMES}


def _compare(journal: Path, rows: Rows) -> str:
    """Read a journal; raise unless it has exactly these values in order, however grouped."""
    records = [row.record for row in JournalReader(journal).read()]
    found = [record.values for record in records if isinstance(record, ScalarRow)]
    flat = [item for row in found for item in row.items()]
    if flat != [item for row in rows for item in row.items()]:
        raise RuntimeError("The journal does not contain the values that were written.")
    return complete("the journal", len(flat), sum(map(len, rows)))


def _map_values(rows: Rows, change: Callable[[float], float]) -> Rows:
    return [{name: change(value) for name, value in row.items()} for row in rows]


def _through_float32(value: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


def _digits(rows: Rows) -> float:
    return statistics.fmean(len(repr(value)) for row in rows for value in row.values())
