"""The cost of media for the caller and in total, compared with SummaryWriter: `make bench-media`.

Each case logs the same image, values or audio samples to TensorBoard, with `MetricBus.log` and with
SummaryWriter. They alternate in one process. Two times are measured:

* the duration of single calls on the caller's thread, while the background is idle;
* the processor time of the whole process per call, over a series of calls, until everything is in
  the event file. It includes copying, encoding, the journal and delivery.

The floor of a call is a copy of the data. The floor of the total is the encoding alone: the PNG,
the counts of the histogram, or the 16-bit samples.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from torch.utils.tensorboard import SummaryWriter

from metricbus import Audio, Histogram, Image, MetricBus

ROUNDS = 15
CALLS = 10
SAMPLE_RATE = 16_000


class Case(NamedTuple):
    """One medium, logged with the bus and with SummaryWriter, and both floors."""

    name: str
    ours: Callable[[int], object]
    theirs: Callable[[int], object]
    copy: Callable[[], object]
    encode: Callable[[], object]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bus = MetricBus(sinks="tensorboard", dir=folder, delivery="thread")
        writer = SummaryWriter(Path(folder) / "writer")
        for case in cases(bus, writer):
            measure(case, bus, writer)
        assert bus.close().complete, str(bus.stats())


def cases(bus: MetricBus, writer: SummaryWriter) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(3, 224, 224, generator=generator)
    values = torch.randn(1_000_000, generator=generator)
    sound = torch.rand(SAMPLE_RATE * 5, generator=generator) * 2 - 1
    add: Any = writer
    return [
        Case(
            "image, 3 x 224 x 224 float32",
            lambda step: bus.log("picture", Image(picture), step=step),
            lambda step: add.add_image("picture", picture, step),
            picture.numpy().copy,
            lambda: _png(picture),
        ),
        Case(
            "histogram of 10^6 float32",
            lambda step: bus.log("values", Histogram(values), step=step),
            lambda step: add.add_histogram("values", values, step),
            values.numpy().copy,
            lambda: np.histogram(values.numpy(), 64),
        ),
        Case(
            "audio, 5 s at 16 kHz",
            lambda step: bus.log("sound", Audio(sound, SAMPLE_RATE), step=step),
            lambda step: add.add_audio("sound", sound, step, SAMPLE_RATE),
            sound.numpy().copy,
            lambda: (sound.numpy() * 32767).astype(np.int16).tobytes(),
        ),
    ]


def measure(case: Case, bus: MetricBus, writer: SummaryWriter) -> None:
    """Measure one case and print both comparisons."""
    flush: Callable[[], object] = writer.flush
    flushes: dict[str, Callable[[], object]] = {
        "metricbus": lambda: bus.flush(60),
        "SummaryWriter": flush,
        "floor": lambda: None,
    }
    calls: dict[str, Callable[[int], object]] = {
        "metricbus": case.ours,
        "SummaryWriter": case.theirs,
        "floor": lambda _: case.copy(),
    }
    total_calls: dict[str, Callable[[int], object]] = {**calls, "floor": lambda _: case.encode()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    totals: dict[str, list[float]] = {name: [] for name in calls}
    step = 0
    for _ in range(ROUNDS):
        for name, call in calls.items():
            step += 1
            times[name].append(timed(time.perf_counter, lambda: call(step)))  # noqa: B023
            flushes[name]()
        for name, call in total_calls.items():
            steps = range(step + 1, step + 1 + CALLS)
            step += CALLS
            totals[name].append(
                timed(time.process_time, lambda: ([call(s) for s in steps], flushes[name]()))  # noqa: B023
                / CALLS
            )
    print(f"\n{case.name:34} {'call, ms':>13} {'relative':>12} {'total, ms':>11}")
    ours = statistics.median(times["metricbus"])
    for name in calls:
        seconds, total = statistics.median(times[name]), statistics.median(totals[name])
        print(f"  {name:32} {seconds * 1e3:13.3f} {seconds / ours:11.1f}x {total * 1e3:11.2f}")


def timed(clock: Callable[[], float], function: Callable[[], object]) -> float:
    start = clock()
    function()
    return clock() - start


def _png(picture: torch.Tensor) -> bytes:
    pixels = (picture * 255).byte().permute(1, 2, 0).numpy()
    content = io.BytesIO()
    PIL.Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


if __name__ == "__main__":
    main()
