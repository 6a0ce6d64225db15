"""The journal alone: bytes a scalar, and how fast it is written and read.

Twenty scalars a step under names like `train/m12`, as the collector writes them: calls from the
queue are joined into rows, and each chunk of calls becomes one `write`. The files stay in the page
cache. Nobody shares the processor with what is measured, and everything that was written is read
back and compared.
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
from metricbus._common.records import Call, Scalars
from metricbus._journal.segment_reader import JournalReader
from metricbus._journal.segment_writer import SegmentWriter

NAMES = [f"train/m{i}" for i in range(20)]
CHUNK = 256  # calls that the collector takes at a time
START = 1_700_000_000_000_000_000
STEP_NS = 3_456_789
BYTES, WRITE, READ = 40.0, 1_000_000.0, 1_000_000.0  # the targets
WRITING, READING = "SegmentWriter.append", "JournalReader.read"
WHOLE = "metricbus.read, and all series"
REALISTIC = "loss curves, float64"

Rows = Sequence[dict[str, float]]
Arm = Callable[[], object]


def measure(context: Context) -> list[Result]:
    """Size, writing, reading."""
    curves = loss_curves(context.pick(10_000, 500))
    return [_size(context, curves), _writing(context, curves), _reading(context, curves)]


def loss_curves(steps: int) -> Rows:
    """A random walk for each name that falls from 2.3; always the same one."""
    chance = random.Random(7)
    now = dict.fromkeys(NAMES, 2.3)
    rows = []
    for _ in range(steps):
        now = {name: value * chance.lognormvariate(-0.0005, 0.02) for name, value in now.items()}
        rows.append(now)
    return rows


def _size(context: Context, curves: Rows) -> Result:
    kinds: dict[str, Rows] = {
        REALISTIC: curves,
        "the same, from float32 (`loss.item()`)": _each(curves, _through_float32),
        "the same, to 4 decimals": _each(curves, lambda value: round(value, 4)),
        "whole numbers": _each(curves, lambda value: float(int(value * 100))),
    }
    count = len(curves) * len(NAMES)
    figures = [
        Figure("float64 in binary, without names or steps", [8.0], "floor"),
        Figure("the digits of loss curves, float64", [_digits(curves)], "floor"),
    ]
    for kind, rows in kinds.items():
        place = context.place("journal-size")
        length = _append(calls_of(rows), place)
        figures.append(Figure(kind, [length / count], "ours", complete=_compare(place, rows)))
    alone = context.place("journal-size")
    length = _append(single_calls_of(curves, apart=True), alone)
    apart = [{name: row[name]} for row in curves for name in NAMES]
    figures.append(
        Figure(
            f"{REALISTIC}, one a step", [length / count], "ours", complete=_compare(alone, apart)
        )
    )
    result = Result(
        id="journal-size",
        title="Bytes a scalar in the journal",
        text=(
            "Twenty scalars a step, names like `train/m12`. A number is written in as many digits "
            "as give the same float64 back, so the bytes depend on the values: a float32 has as "
            "many digits as any, once it is a float64."
        ),
        unit="bytes",
        figures=figures,
        beside=REALISTIC,
    )
    seen = result.figure(REALISTIC).median
    target = Target("bytes a scalar, 20 a step, full float64", seen, BYTES, "bytes")
    return msgspec.structs.replace(result, targets=[target])


def _writing(context: Context, curves: Rows) -> Result:
    calls, singles = calls_of(curves), single_calls_of(curves)
    chunks = [list(join_calls(chunk)) for chunk in _chunks(calls)]
    encoder = msgspec.json.Encoder()
    pieces = [encoder.encode_lines(chunk) for chunk in chunks]
    lines = [[msgspec.to_builtins(row) for row in chunk] for chunk in chunks]
    places: dict[str, Path] = {}
    single_calls = f"{WRITING}, of single calls"

    def place(name: str) -> Path:
        places[name] = context.place("journal-writing")
        return places[name]

    arms: dict[str, tuple[Role, Arm]] = {
        "os.write of the bytes, ready": ("floor", lambda: _write(pieces, place("bytes"))),
        "msgspec encodes the rows, no file": (
            "floor",
            lambda: [encoder.encode_lines(chunk) for chunk in chunks],
        ),
        WRITING: ("ours", lambda: _append(calls, place(WRITING))),
        single_calls: ("ours", lambda: _append(singles, place(single_calls))),
        "json.dumps of each row, file.write": ("peer", lambda: _dump(lines, place("json"))),
    }
    figures = _rates(context, arms, len(singles))
    size = sum(map(len, pieces))
    for name in ("bytes", "json"):
        found = (places[name] / "0001.jsonl").read_bytes()
        rows = [json.loads(line)["values"] for line in found.splitlines()]
        if rows != list(curves) or (name == "bytes" and len(found) != size):
            raise RuntimeError(f"{name}: what was written is not what was to be written")
    whole = {name: _compare(places[name], curves) for name in (WRITING, single_calls)}
    result = Result(
        id="journal-writing",
        title="Writing the journal",
        text=(
            "From calls as they lie in the queue to bytes in the page cache: "
            f"{len(curves):,} steps of 20, as mappings or as single calls that are joined into "
            "rows; in chunks of 256 calls, one write each. The floors do a part of it each."
        ),
        unit="values/s",
        figures=_completed(figures, whole),
        beside=WRITING,
        better="more",
    )
    return _with_targets(result, {WRITING: WRITE, single_calls: WRITE})


def _reading(context: Context, curves: Rows) -> Result:
    folder = context.place("journal-reading")
    with MetricBus(id="run", sinks="", dir=folder) as bus:
        for step, row in enumerate(curves):
            bus.log(row, step=step)
    run = folder / "run"
    file = run / "journal" / "0001.jsonl"
    lines = file.read_bytes().splitlines()[1:-1]  # without the header and the end mark
    decoder = msgspec.json.Decoder(Scalars)
    arms: dict[str, tuple[Role, Arm]] = {
        "the file read, and split into lines": ("floor", lambda: file.read_bytes().split(b"\n")),
        "msgspec decodes the lines, ready": ("floor", lambda: list(map(decoder.decode, lines))),
        READING: ("ours", lambda: list(JournalReader(run / "journal").read())),
        WHOLE: ("ours", lambda: _series(run)),
        "json.loads of each line, ready": ("peer", lambda: list(map(json.loads, lines))),
    }
    figures = _rates(context, arms, len(curves) * len(NAMES))
    found = _compare(run / "journal", curves)
    series = _series(run)
    if any(series[name] != [row[name] for row in curves] for name in NAMES):
        raise RuntimeError("the series are not what was logged")
    whole = {figure.name: found for figure in figures if figure.role == "ours"}
    result = Result(
        id="journal-reading",
        title="Reading the journal",
        text=(
            f"{len(curves):,} rows of 20 from the page cache. `JournalReader` is what feeds the "
            "sinks; `metricbus.read` gives a whole run as columns of numpy."
        ),
        unit="values/s",
        figures=_completed(figures, whole),
        beside=READING,
        better="more",
    )
    return _with_targets(result, {READING: READ, WHOLE: READ})


def _rates(context: Context, arms: Mapping[str, tuple[Role, Arm]], values: int) -> list[Figure]:
    context.tell(f"journal: {len(arms)} ways")

    def timed(run: Arm) -> Callable[[int], float]:
        def measure(_: int) -> float:
            gc.collect()
            start = time.perf_counter()
            kept = run()
            seconds = time.perf_counter() - start
            del kept  # what it made is let go untimed
            return values / seconds

        return measure

    measured = {name: timed(run) for name, (_, run) in arms.items()}
    seen = interleaved(measured, context.pick(9, 2), warm_up=True)
    return [Figure(name, seen[name], role) for name, (role, _) in arms.items()]


def _with_targets(result: Result, limits: Mapping[str, float]) -> Result:
    targets = [
        Target(name, result.figure(name).median, limit, "values/s", at_most=False)
        for name, limit in limits.items()
    ]
    return msgspec.structs.replace(result, targets=targets)


def _completed(figures: Sequence[Figure], whole: Mapping[str, str]) -> list[Figure]:
    return [
        msgspec.structs.replace(figure, complete=whole.get(figure.name, "")) for figure in figures
    ]


# What is written and read.


def calls_of(rows: Rows) -> list[Call]:
    """The entries of the queue for one mapping a step."""
    return [(row, 1.0, step, 0, START + step * STEP_NS) for step, row in enumerate(rows)]


def single_calls_of(rows: Rows, *, apart: bool = False) -> list[Call]:
    """Those for one value a call; `apart`: each at a step of its own, so that no row is joined."""
    flat = [(step, name, value) for step, row in enumerate(rows) for name, value in row.items()]
    return [
        (name, value, at if apart else step, 0, START + step * STEP_NS)
        for at, (step, name, value) in enumerate(flat)
    ]


def _chunks(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    return (calls[at : at + CHUNK] for at in range(0, len(calls), CHUNK))


def _append(calls: Sequence[Call], place: Path) -> int:
    """What the collector does with calls; the number of bytes of rows."""
    writer = SegmentWriter(place, run="bench")
    before = writer.length
    for chunk in _chunks(calls):
        writer.append(list(join_calls(chunk)))
    length = writer.length - before
    writer.close()
    return length


def _write(pieces: Sequence[bytes], place: Path) -> None:
    file = os.open(place / "0001.jsonl", os.O_WRONLY | os.O_CREAT)
    for piece in pieces:
        os.write(file, piece)
    os.close(file)


def _dump(chunks: Sequence[Sequence[Any]], place: Path) -> None:
    with open(place / "0001.jsonl", "w") as file:
        for chunk in chunks:
            file.write("".join([json.dumps(row) + "\n" for row in chunk]))
            file.flush()


def _series(run: Path) -> dict[str, list[float]]:
    history = read(run)
    return {name: history.series(name).value.tolist() for name in NAMES}


def _compare(journal: Path, rows: Rows) -> str:
    """Reads a journal, and raises unless it has these values, joined or not, bit by bit."""
    records = [row.record for row in JournalReader(journal).read()]
    found = [record.values for record in records if isinstance(record, Scalars)]
    flat = [item for row in found for item in row.items()]
    if flat != [item for row in rows for item in row.items()]:
        raise RuntimeError("the journal does not have the values that were written")
    return complete("the journal", len(flat), sum(map(len, rows)))


def _each(rows: Rows, change: Callable[[float], float]) -> Rows:
    return [{name: change(value) for name, value in row.items()} for row in rows]


def _through_float32(value: float) -> float:
    (rounded,) = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


def _digits(rows: Rows) -> float:
    return statistics.fmean(len(repr(value)) for row in rows for value in row.values())
