"""`from metricbus import bus`: off until it is configured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import metricbus
from metricbus import ConfigError
from metricbus._bus.default_bus import DefaultBus
from metricbus.testing import MemorySink


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> Iterator[DefaultBus]:
    new_bus = DefaultBus()
    monkeypatch.setattr("metricbus._bus.default_bus.bus", new_bus)
    yield new_bus
    new_bus.close()


def test_unconfigured_bus_does_nothing(bus: DefaultBus, tmp_path: Path) -> None:
    for epoch in bus.epochs(2):
        for _ in bus.steps(range(3)):
            bus.log("x", 1.0)
            bus.scope("y").log("z", float(epoch))
    assert bus.step == 5
    assert bus.flush().logged == bus.close().logged == 0
    assert list(tmp_path.iterdir()) == []


def test_configure_opens_the_bus(bus: DefaultBus, tmp_path: Path) -> None:
    sink = MemorySink()
    assert metricbus._bus.default_bus.configure(name="r", sinks=[sink], dir=tmp_path) is bus
    bus.log("x", 1.0)
    assert bus.close().complete
    assert len(sink.series("x")) == 1


@pytest.mark.parametrize("arguments", [{"name": "digits"}, {"run": "digits"}])
def test_configure_accepts_the_name_under_both_names(
    bus: DefaultBus, tmp_path: Path, arguments: dict[str, Any]
) -> None:
    metricbus._bus.default_bus.configure(dir=tmp_path, sinks="", **arguments)
    assert bus.run is not None
    assert bus.run.name == "digits"


def test_before_close_can_log_while_another_run_is_configured(
    bus: DefaultBus, tmp_path: Path
) -> None:
    sink = MemorySink()
    bus._open(sinks=[sink], dir=tmp_path)
    bus.before_close(lambda: bus.log("last", 1.0))
    bus._open(sinks="", dir=tmp_path)
    assert sink.names() == ["last"]


def test_scopes_log_to_the_newest_run(bus: DefaultBus, tmp_path: Path) -> None:
    scope = bus.scope("val")
    sinks = [MemorySink(), MemorySink()]
    for sink in sinks:
        bus._open(sinks=[sink], dir=tmp_path)
        scope.log("x", 1.0)
    bus.close()
    assert [len(sink.series("val/x")) for sink in sinks] == [1, 1]


def test_running_loop_continues_when_the_bus_is_opened(bus: DefaultBus, tmp_path: Path) -> None:
    sink = MemorySink()
    for step in bus.steps(range(4)):
        if step == 2:
            bus._open(sinks=[sink], dir=tmp_path)
        bus.log("x", float(step))
    bus.close()
    assert [(point.step, point.value) for point in sink.series("x")] == [(2, 2.0), (3, 3.0)]


def test_environment_opens_the_bus_at_the_first_log(
    bus: DefaultBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "csv")
    bus.log("x", 1.0)
    bus.log("x", 2.0)
    assert bus.close().sinks["csv"].delivered == 2


def test_configuring_again_ends_the_first_run(bus: DefaultBus, tmp_path: Path) -> None:
    first, second = MemorySink(), MemorySink()
    bus._open(sinks=[first], dir=tmp_path)
    bus.log("x", 1.0)
    bus._open(sinks=[second], dir=tmp_path)
    bus.log("x", 2.0)
    bus.close()
    assert first.status == "finished"
    assert [sink.series("x")[0].value for sink in (first, second)] == [1.0, 2.0]
    assert second.series("x")[0].step == 0


def test_failed_configuration_leaves_the_bus_off(bus: DefaultBus) -> None:
    with pytest.raises(ConfigError):
        bus._open(sinks="nosuch")
    bus.log("x", 1.0)
    assert bus.stats().logged == 0


def test_unconfigured_bus_obeys_the_environment_on_progress_bars(
    bus: DefaultBus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METRICBUS_PROGRESS", "off")
    bus.log("x", 1.0)
    list(bus.steps(range(3), progress=True))
    assert capsys.readouterr().err == ""


def test_disabled_overrides_sinks(bus: DefaultBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "csv")
    monkeypatch.setenv("METRICBUS_DISABLED", "1")
    bus.log("x", 1.0)
    assert not Path("runs").exists()


def test_wrong_variable_does_not_break_the_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "csv")
    monkeypatch.setenv("METRICBUS_OVERFLOW", "explode")
    bus = DefaultBus()
    with pytest.raises(ConfigError, match="METRICBUS_OVERFLOW"):
        bus.log("x", 1.0)


def test_definitions_made_before_configuration_apply(
    bus: DefaultBus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus.define("x", every=2, reduce="mean")
    bus.define("y", sinks=["nope"])
    val = bus.phase("val")
    sink = MemorySink()
    bus._open(sinks=[sink], dir=tmp_path)
    for value in (1.0, 3.0):
        bus.log("x", value)
        val.log("loss", value)
    assert bus.end_epoch() == {"val/loss": 2.0}
    bus.flush()
    assert [point.value for point in sink.series("x")] == [2.0]
    assert "no sink 'nope'" in caplog.text


def test_definitions_apply_to_the_next_run_too(bus: DefaultBus, tmp_path: Path) -> None:
    bus._open(sinks="", dir=tmp_path)
    bus.define("x", every=2, reduce="mean")
    sink = MemorySink()
    bus._open(sinks=[sink], dir=tmp_path)
    for value in (1.0, 3.0):
        bus.log("x", value)
    bus.flush()
    assert [point.value for point in sink.series("x")] == [2.0]
