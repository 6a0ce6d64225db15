"""What a run gains while it is open: config, tags, and final values."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metricbus
from metricbus import ClosedError, ConfigError, MetricBus, Run
from metricbus._bus.default_bus import DefaultBus
from metricbus._common.records import RunUpdate
from metricbus._ingest import collector
from metricbus._journal.segment_reader import JournalReader
from metricbus.testing import MemorySink
from tests.helpers.limits import HANG_SECS

WaitFor = Callable[[Callable[[], bool]], None]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[MetricBus]:
    with MetricBus(
        id="r", sinks="", dir=tmp_path, config={"lr": 0.1, "seed": 1}, tags=["a"]
    ) as bus:
        yield bus


def stored(folder: Path) -> dict[str, Any]:
    """Return what run.json contains."""
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return run


def read_run(bus: MetricBus) -> Run:
    assert bus.dir is not None
    return metricbus.read(bus.dir).run


def closed_run(bus: MetricBus) -> Run:
    bus.close()
    return read_run(bus)


def updates_in(folder: Path) -> list[RunUpdate]:
    rows = JournalReader(folder / "journal").read()
    return [row.record for row in rows if isinstance(row.record, RunUpdate)]


def run_in_child(code: str, cwd: Path) -> int:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=cwd, timeout=HANG_SECS, check=False).returncode


# The config


def test_updated_config_is_visible_at_once(bus: MetricBus) -> None:
    bus.config.update({"lr": 0.2}, workers=4)
    assert bus.config == {"lr": 0.2, "seed": 1, "workers": 4}
    assert bus.run is not None
    assert bus.run.config == {"lr": 0.2, "seed": 1, "workers": 4}


def test_updated_config_is_in_run_json_before_the_run_ends(bus: MetricBus, tmp_path: Path) -> None:
    bus.config.update(lr=0.2)
    bus.flush()
    assert stored(tmp_path / "r")["config"] == {"lr": 0.2, "seed": 1}


def test_updated_values_are_stored_like_those_of_the_constructor(bus: MetricBus) -> None:
    @dataclasses.dataclass
    class Data:
        path: Path
        sizes: tuple[int, ...]

    bus.config.update({"data": Data(Path("x"), (1, 2)), "bad": math.inf, "n": np.float32(0.5)})
    bus.config.update(Data(Path("y"), ()))
    assert bus.config["data"]["path"] == Path("x")
    with pytest.raises(TypeError):
        bus.config["data"]["path"] = 1
    assert closed_run(bus).config == {
        "lr": 0.1,
        "seed": 1,
        "data": {"path": "x", "sizes": [1, 2]},
        "bad": "inf",
        "n": 0.5,
        "path": "y",
        "sizes": [],
    }


def test_config_cannot_be_set_by_attribute(bus: MetricBus) -> None:
    with pytest.raises(AttributeError):
        bus.config.lr = 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", [5, "lr", [("lr", 1)], int])
def test_config_update_with_anything_but_a_mapping_raises(bus: MetricBus, wrong: object) -> None:
    with pytest.raises(
        TypeError, match=r"bus\.config\.update\(\) must be a mapping of names .* not"
    ):
        bus.config.update(wrong)


@pytest.mark.parametrize("wrong", [{"a": {"b": 1}, "a/b": 2}, {1: "x", "1": "y"}, {"x": "\udc00"}])
def test_config_that_cannot_be_stored_raises_and_changes_nothing(
    bus: MetricBus, wrong: dict[Any, Any]
) -> None:
    with pytest.raises(ConfigError):
        bus.config.update(wrong)
    assert bus.config == read_run(bus).config == {"lr": 0.1, "seed": 1}


def test_name_that_becomes_ambiguous_with_the_config_so_far_raises(bus: MetricBus) -> None:
    bus.config.update({"optimizer": {"name": "sgd"}})
    with pytest.raises(ConfigError, match="'optimizer/name' twice"):
        bus.config.update({"optimizer/name": "adam"})


# Tags


def test_added_tags_keep_their_order_without_duplicates(bus: MetricBus, tmp_path: Path) -> None:
    bus.add_tags("c", "a", "b", "c")
    bus.add_tags("b", "d")
    assert bus.run is not None
    assert bus.run.tags == ["a", "c", "b", "d"]
    bus.flush()
    assert stored(tmp_path / "r")["tags"] == read_run(bus).tags == ["a", "c", "b", "d"]


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (5, TypeError, "not int: 5"),
        (["a", "b"], TypeError, r"not list: \['a', 'b'\]"),
        (None, TypeError, "not NoneType: None"),
        ("", ValueError, "must not be empty"),
        ("\udc00", ConfigError, "cannot be stored"),
    ],
)
def test_wrong_tag_raises_and_adds_none(
    bus: MetricBus, wrong: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bus.add_tags("good", wrong)
    assert bus.run is not None
    assert bus.run.tags == ["a"]


# Final values


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.97, 0.97),
        (True, 1),
        (2**53 + 1, 2**53 + 1),
        (np.array(0.5), 0.5),
        (torch.tensor([0.25], requires_grad=True), 0.25),
        (math.inf, math.inf),
        (-math.inf, -math.inf),
    ],
)
def test_summary_accepts_what_log_accepts(bus: MetricBus, value: object, expected: float) -> None:
    bus.summarize("x", value)
    bus.close()
    assert bus.run is not None
    assert bus.run.summary == read_run(bus).summary == {"x": expected}


def test_nan_in_the_summary_reads_back_from_run_json(bus: MetricBus, tmp_path: Path) -> None:
    bus.summarize("x", math.nan)
    bus.close()
    assert stored(tmp_path / "r")["summary"] == {"x": "NaN"}
    assert math.isnan(read_run(bus).summary["x"])


def test_last_value_of_a_summary_counts(bus: MetricBus) -> None:
    bus.summarize("x", 1.0)
    bus.summarize("y", 2.0)
    bus.summarize("x", 0.5)
    assert closed_run(bus).summary == {"x": 0.5, "y": 2.0}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("x", "text", TypeError),
        ("x", None, TypeError),
        ("x", np.zeros(2), TypeError),
        ("x", 10**400, ValueError),
        ("", 1.0, ValueError),
        ("n" * 1025, 1.0, ValueError),
        (5, 1.0, TypeError),
    ],
)
def test_wrong_summary_raises(
    bus: MetricBus, name: Any, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        bus.summarize(name, value)


def test_scope_adds_its_prefix_to_names_in_the_summary(bus: MetricBus) -> None:
    bus.scope("test").summarize("acc", 0.5)
    bus.scope("test").add_tags("tested")
    run = closed_run(bus)
    assert (run.summary, run.tags) == ({"test/acc": 0.5}, ["a", "tested"])


# The best value


def test_best_values_are_kept_by_name(bus: MetricBus) -> None:
    bus.define("*/acc", best="max")
    bus.define("*/loss", best="min")
    for step, value in enumerate((0.5, 0.75, math.nan, 0.25)):
        bus.log(
            {"val/acc": value, "val/loss": value, "test/acc": -value, "other": value}, step=step
        )
    bus.flush()
    assert read_run(bus).summary == {
        "best/val/acc": 0.75,
        "best/val/loss": 0.25,
        "best/test/acc": -0.25,
    }


def test_best_value_is_that_of_the_emitted_values(bus: MetricBus) -> None:
    bus.define("val/acc", on_step=False, on_epoch=True, best="max")
    bus.define("loss*", on_step=True, on_epoch=True, best="min")
    for _ in bus.epochs(2):
        for value in (0.0, 1.0):
            bus.log({"val/acc": value, "loss": value})
    assert closed_run(bus).summary == {
        "best/val/acc": 0.5,
        "best/loss": 0.0,
        "best/loss_epoch": 0.5,
    }


def test_name_that_is_always_nan_has_no_best_value(bus: MetricBus) -> None:
    bus.define("x", best="max")
    bus.log("x", math.nan)
    assert closed_run(bus).summary == {}


def test_later_definition_of_the_best_value_overrides_an_earlier_one(bus: MetricBus) -> None:
    bus.define("*", best="max")
    bus.define("loss", best="min")
    bus.define("loss", progress=True)
    for value in (2.0, 1.0, 3.0):
        bus.log({"loss": value, "acc": value})
    assert closed_run(bus).summary == {"best/loss": 1.0, "best/acc": 3.0}


def test_wrong_best_raises(bus: MetricBus) -> None:
    with pytest.raises(ConfigError, match='best= must be "max" or "min", not \'largest\''):
        bus.define("x", best="largest")  # type: ignore[arg-type]


def test_best_value_is_in_the_journal_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: WaitFor
) -> None:
    monkeypatch.setattr(collector, "_CHECKPOINT_EVERY", 0.05)
    with MetricBus(id="r", sinks="", dir=tmp_path) as bus:
        bus.define("x", best="max")
        bus.log("x", 1.0)
        wait_for(lambda: stored(tmp_path / "r")["summary"] == {"best/x": 1.0})
        bus.log("x", 2.0)
        wait_for(lambda: stored(tmp_path / "r")["summary"] == {"best/x": 2.0})


def test_many_improvements_are_few_records(bus: MetricBus, tmp_path: Path) -> None:
    bus.define("x", best="max")
    for step in range(1000):
        bus.log("x", float(step), step=step)
    bus.close()
    assert [update.summary for update in updates_in(tmp_path / "r")][-1] == {"best/x": 999.0}
    assert len(updates_in(tmp_path / "r")) < 10


# Rewinds


def test_rewind_drops_a_best_value_that_it_supersedes(bus: MetricBus) -> None:
    bus.define("*", best="max")
    for step, value in enumerate((1.0, 5.0, 2.0, 9.0)):
        bus.log("x", value, step=step)
    bus.log("late", 1.0, step=3)
    bus.rewind(2)
    bus.flush()
    assert read_run(bus).summary == {"best/x": 5.0}
    bus.log("x", 6.0, step=3)
    assert closed_run(bus).summary == {"best/x": 6.0}


def test_rewind_keeps_final_values(bus: MetricBus) -> None:
    bus.log("x", 1.0, step=5)
    bus.summarize("y", 2.0)
    bus.rewind(1)
    assert closed_run(bus).summary == {"y": 2.0}


operations = st.lists(
    st.one_of(
        st.tuples(st.just("log"), st.integers(0, 6), st.floats(-9, 9) | st.just(math.nan)),
        st.tuples(st.just("rewind"), st.integers(0, 6), st.just(0.0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0.0)),
    ),
    max_size=12,
)


@settings(max_examples=30)
@given(operations=operations, best=st.sampled_from(["max", "min"]))
def test_best_value_is_that_of_the_rows_that_no_rewind_supersedes(
    operations: list[tuple[str, int, float]], best: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with MetricBus(sinks="", dir=tmp_path_factory.mktemp("runs")) as bus:
        bus.define("x", best=best)
        for call, step, value in operations:
            if call == "log":
                bus.log("x", value, step=step)
            elif call == "rewind":
                bus.rewind(step)
            else:
                bus.flush()
    assert bus.dir is not None
    history = metricbus.read(bus.dir)
    left = history.series("x").value if "x" in history.names() else np.array([])
    left = left[~np.isnan(left)]
    expected = {"best/x": getattr(left, best)()} if len(left) else {}
    assert history.run.summary == stored(history.folder)["summary"] == expected


def test_loaded_checkpoint_drops_a_best_value_that_was_logged_after_it(tmp_path: Path) -> None:
    def resumed() -> MetricBus:
        bus = MetricBus(id="r", sinks="", dir=tmp_path, resume=True)
        bus.define("x", best="max")
        return bus

    with resumed() as bus:
        bus.log("x", 3.0, step=0)
        state = bus.state_dict()
        bus.log("x", 9.0, step=1)
    assert read_run(bus).summary == {"best/x": 9.0}
    with resumed() as bus:
        bus.load_state_dict(state)
        bus.log("x", 2.0, step=1)
    assert read_run(bus).summary == {"best/x": 3.0}
    with resumed() as bus:
        bus.log("x", 1.0, step=5)
    assert read_run(bus).summary == stored(tmp_path / "r")["summary"] == {"best/x": 3.0}


# Kills, later attempts and other processes


def test_killed_run_has_all_updates_that_are_in_its_journal(tmp_path: Path) -> None:
    code = """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="", config={"lr": 0.1})
        before = open("r/run.json").read()
        bus.define("x", best="max")
        bus.log("x", 1.0)
        bus.config.update(lr=0.2)
        bus.add_tags("a")
        bus.flush()
        open("r/run.json", "w").write(before)  # as if it could not be written
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_in_child(code, tmp_path) == -signal.SIGKILL
    complete = {"lr": 0.2}, ["a"], {"best/x": 1.0}
    run = metricbus.read(tmp_path / "r").run
    assert (run.config, run.tags, run.summary) == complete
    sink = MemorySink()
    metricbus.deliver(tmp_path / "r", [sink])
    assert sink.run is not None
    assert (sink.run.config, sink.run.tags, sink.run.summary) == complete
    dead = stored(tmp_path / "r")
    assert dead["status"] == "killed"
    assert (dead["config"], dead["tags"], dead["summary"]) == complete


def test_resumed_run_goes_on_with_the_updates_of_a_killed_attempt(tmp_path: Path) -> None:
    code = """
        import os, signal
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="", config={"lr": 0.1})
        bus.config.update(lr=0.2, layers=3)
        bus.add_tags("a")
        bus.summarize("x", 1.0)
        bus.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_in_child(code, tmp_path) == -signal.SIGKILL
    with MetricBus(id="r", dir=tmp_path, sinks="", resume=True) as bus:
        assert bus.config == {"lr": 0.2, "layers": 3}
        assert bus.run is not None
        assert (bus.run.tags, bus.run.summary) == (["a"], {"x": 1.0})


def test_config_of_a_later_attempt_overrides_an_earlier_update(tmp_path: Path) -> None:
    with MetricBus(id="r", dir=tmp_path, sinks="", config={"lr": 0.1}) as bus:
        bus.config.update(lr=0.2, layers=3)
        bus.add_tags("a")
    config = {"lr": 0.3}
    with MetricBus(id="r", dir=tmp_path, sinks="", resume=True, config=config, tags=["b"]) as bus:
        pass
    run = read_run(bus)
    assert (run.config, run.tags) == ({"lr": 0.3, "layers": 3}, ["a", "b"])


def _update_in_child(bus: MetricBus) -> None:
    bus.config.update(workers=2)
    bus.add_tags("child")
    bus.define("x", best="max")
    bus.log("x", 1.0)
    bus.summarize("y", 3.0)
    bus.close()


def test_best_value_that_a_kill_kept_from_being_written_counts_after_resuming(
    tmp_path: Path,
) -> None:
    code = """
        import os, pathlib, signal, time
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="")
        bus.define("x", best="max")
        bus.log("x", 9.0, step=0)
        while b"9.0" not in pathlib.Path("r/journal/0001.jsonl").read_bytes():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run_in_child(code, tmp_path) == -signal.SIGKILL
    with MetricBus(id="r", dir=tmp_path, sinks="", resume="must") as bus:
        bus.define("x", best="max")
        bus.log("x", 4.0, step=1)
    assert read_run(bus).summary == stored(tmp_path / "r")["summary"] == {"best/x": 9.0}


def test_config_of_a_resumed_run_has_the_earlier_keys(tmp_path: Path) -> None:
    MetricBus(id="r", dir=tmp_path, sinks="", config={"a": 1, "b": 2}).close()
    with MetricBus(id="r", dir=tmp_path, sinks="", config={"a": 5}, resume=True) as bus:
        assert dict(bus.config) == {"a": 5, "b": 2}


def test_later_of_two_processes_wins_if_their_config_keys_are_the_same_when_joined() -> None:
    nested = RunUpdate(step=0, epoch=0, time=1, config={"x": {"y": 2}})
    flat = RunUpdate(step=0, epoch=0, time=2, config={"x/y": 1})
    run = Run(id="r", name="r", config={"a": 0})
    assert run.updated(nested, flat).config == {"a": 0, "x/y": 1}
    assert run.updated(flat, nested).config == {"a": 0, "x": {"y": 2}}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_updates_of_a_child_process_are_in_run_json_once_the_run_is_closed(
    bus: MetricBus, tmp_path: Path, method: Literal["fork", "spawn"]
) -> None:
    bus.define("x", best="max")
    bus.log("x", 2.0)
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=_update_in_child, args=(bus,))
    child.start()
    child.join(HANG_SECS)
    assert child.exitcode == 0
    bus.flush()
    expected = {"lr": 0.1, "seed": 1, "workers": 2}, ["a", "child"], {"best/x": 2.0, "y": 3.0}
    run = read_run(bus)
    assert (run.config, run.tags, run.summary) == expected
    bus.close()
    run_json = stored(tmp_path / "r")
    assert (run_json["config"], run_json["tags"], run_json["summary"]) == expected


def test_run_json_that_cannot_be_written_does_not_disturb_the_training(
    bus: MetricBus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "r" / "run.json"
    content = file.read_bytes()
    file.unlink()
    file.mkdir()
    bus.config.update(lr=0.2)
    assert bus.flush().complete
    assert "run.json cannot be written" in caplog.text
    file.rmdir()
    file.write_bytes(content)
    assert read_run(bus).config == {"lr": 0.2, "seed": 1}
    bus.summarize("x", 1.0)
    bus.flush()
    assert stored(tmp_path / "r")["config"] == {"lr": 0.2, "seed": 1}


# A bus that is closed or off


def test_updates_after_close_are_dropped_with_one_warning(
    bus: MetricBus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus.close()
    bus.config.update(lr=0.2)
    bus.add_tags("b")
    bus.summarize("x", 1.0)
    assert bus.config["lr"] == 0.1
    assert bus.stats().dropped == 3
    assert caplog.text.count("after close()") == 1
    assert updates_in(tmp_path / "r") == []


def test_update_after_close_raises_under_strict(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path, strict=True) as bus:
        pass
    with pytest.raises(ClosedError):
        bus.config.update(lr=0.2)
    with pytest.raises(ClosedError):
        bus.add_tags("b")
    assert bus.config == {}


def test_disabled_bus_writes_no_updates_but_shows_the_config(tmp_path: Path) -> None:
    bus = MetricBus(dir=tmp_path, config={"lr": 0.1}, disabled=True)
    bus.config.update(seed=1)
    bus.add_tags("a")
    bus.summarize("x", 1.0)
    with pytest.raises(TypeError):
        bus.add_tags(5)  # type: ignore[arg-type]
    assert bus.config == {"lr": 0.1, "seed": 1}
    assert list(tmp_path.iterdir()) == []


def test_update_opens_the_process_wide_bus_that_the_environment_configures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "")
    monkeypatch.setenv("METRICBUS_DIR", str(tmp_path))
    bus = DefaultBus()
    bus.add_tags("a")
    bus.config.update(lr=0.1)
    run = closed_run(bus)
    assert (run.tags, run.config) == (["a"], {"lr": 0.1})


def test_update_of_the_unconfigured_process_wide_bus_has_no_effect(tmp_path: Path) -> None:
    bus = DefaultBus()
    bus.add_tags("a")
    bus.summarize("x", 1.0)
    assert bus.dir is None


# The record


values = st.none() | st.integers(-9, 9) | st.floats(-9, 9)
updates = st.builds(
    RunUpdate,
    step=st.just(0),
    epoch=st.just(0),
    time=st.just(0),
    config=st.dictionaries(st.sampled_from("ab"), st.integers(0, 3)),
    tags=st.lists(st.sampled_from("abc")).map(tuple),
    summary=st.dictionaries(st.sampled_from("xy"), values),
    best=st.sampled_from([None, "max"]),
)


@given(st.lists(updates, max_size=6), st.data())
def test_updates_that_a_run_has_already_change_nothing(
    updates: list[RunUpdate], data: st.DataObject
) -> None:
    """A run.json that is ahead of a reader of the journal does no harm."""
    run = Run(id="r", name="r", tags=["t"])
    ahead = run.updated(*updates[: data.draw(st.integers(0, len(updates)))])
    assert ahead.updated(*updates) == run.updated(*updates)
