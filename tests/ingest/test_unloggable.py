"""Values that cannot be logged: an error by default, or left out with or without a warning."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metricbus import Image, MetricBus
from metricbus.testing import MemorySink

MIXED: dict[str, Any] = {
    "loss": 0.5,
    "stage": "warmup",
    "best": None,
    "bleu": [1, 2],
    "eval": {"acc": 0.9, "note": "ok"},
    "sample": Image(np.zeros((2, 2, 7))),
}
LEFT_OUT = ("stage", "best", "bleu", "eval/note", "sample")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "metricbus.values"]


def test_raises_by_default_and_logs_nothing(bus: MetricBus) -> None:
    with pytest.raises(TypeError, match="metric 'stage' was given str"):
        bus.log(MIXED)
    assert bus.flush().logged == 0


def test_warn_logs_the_numbers_and_reports_each_other_name_once(
    bus: MetricBus, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(3):
        bus.log(MIXED, step=step, unloggable="warn")
    bus.flush()
    assert sink.names() == ["loss", "eval/acc"]
    assert len(sink.series("loss")) == 3
    messages = warnings(caplog)
    assert len(messages) == len(LEFT_OUT)
    for name, message in zip(LEFT_OUT, messages, strict=True):
        assert message.startswith(f"metric {name!r}")
        assert message.endswith(f"The values of {name!r} are left out")


def test_ignore_reports_nothing(
    bus: MetricBus, sink: MemorySink, caplog: pytest.LogCaptureFixture
) -> None:
    bus.log(MIXED, unloggable="ignore")
    bus.log("x", None, unloggable="ignore")
    bus.scope("s").log("x", "text", unloggable="ignore")
    bus.flush()
    assert sink.names() == ["loss", "eval/acc"]
    assert warnings(caplog) == []


@pytest.mark.parametrize("by_environment", [False, True])
def test_setting_applies_to_all_calls_and_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    options: dict[str, Any] = {}
    if by_environment:
        monkeypatch.setenv("METRICBUS_UNLOGGABLE", "ignore")
    else:
        options["unloggable"] = "ignore"
    sink = MemorySink()
    bus = MetricBus(sinks=[sink], dir=tmp_path, **options)
    pickled = pickle.dumps(bus)
    bus.log(MIXED)
    with pytest.raises(TypeError, match="metric 'stage' was given str"):
        bus.log(MIXED, unloggable="raise")
    bus.close()
    assert sink.names() == ["loss", "eval/acc"]
    assert pickle.loads(pickled)._core.settings.unloggable == "ignore"


def test_invalid_names_and_steps_raise_in_any_case(bus: MetricBus) -> None:
    wrong: Any = {1: 2.0}
    with pytest.raises(TypeError, match="metric name must be a string"):
        bus.log(wrong, unloggable="ignore")
    with pytest.raises(TypeError, match="step= must be an int"):
        bus.log("x", None, step="3", unloggable="ignore")  # type: ignore[call-overload]


def test_unknown_choice_raises(bus: MetricBus) -> None:
    with pytest.raises(ValueError, match='unloggable= must be "raise", "warn" or "ignore"'):
        bus.log("x", None, unloggable="skip")  # type: ignore[call-overload]


def test_error_for_a_mapping_and_a_step_shows_how_to_pass_the_step(bus: MetricBus) -> None:
    with pytest.raises(TypeError, match=r"not a mapping and 10; to pass a step, .* step=10\)"):
        bus.log({"x": 1.0}, 10)  # type: ignore[call-overload]
