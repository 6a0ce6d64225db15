"""Progress bars in terminals and notebooks."""

from __future__ import annotations

import errno
import io
import itertools
import logging
import math
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest
import torch
import tqdm
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.logging import RichHandler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from metricbus import MetricBus
from metricbus._bus.default_bus import DefaultBus
from metricbus._bus.progress import _active_bars
from metricbus._bus.progress_postfix import format_value
from metricbus._common.device_values import ACCELERATORS
from metricbus._common.tqdm_logging import ConsoleHandlers
from metricbus.errors import ConfigError, MissingPackageError
from tests.helpers.fake_accelerator import FakeAccelerator
from tests.helpers.interrupts import interrupt_at
from tests.helpers.limits import HANG_SECS
from tests.helpers.scripts import run_script
from tests.helpers.terminals import Terminal, render_screen, start_in_terminal
from tests.ingest.test_hot_path import count_calls

WaitFor = Callable[[Callable[[], bool]], None]


ReplaceStderr = Callable[[TextIO], None]


@pytest.fixture
def replace_stderr(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> ReplaceStderr:
    """Replaces stderr when the test itself starts, because pytest sets its own after fixtures."""

    def replace(stream: TextIO) -> None:
        test = request.node.obj

        def run_test(**arguments: Any) -> None:
            monkeypatch.setattr(sys, "stderr", stream)
            test(**arguments)

        request.node.obj = run_test

    return replace


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, replace_stderr: ReplaceStderr) -> Iterator[Terminal]:
    """The terminal that is stderr during the test."""
    terminal = Terminal()
    replace_stderr(terminal.stream)
    monkeypatch.setattr(tqdm.std.tqdm, "monitor_interval", 0)  # starts no thread
    yield terminal
    terminal.hang_up()


@pytest.fixture
def stderr(replace_stderr: ReplaceStderr) -> io.StringIO:
    """The text stream that is stderr during the test; it is no terminal."""
    stream = io.StringIO()
    replace_stderr(stream)
    return stream


@pytest.fixture
def no_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)


# Whether a bar is shown


def test_terminal_has_a_bar(bus: MetricBus, terminal: Terminal) -> None:
    list(bus.steps(range(3)))
    (line,) = terminal.screen()
    assert line.startswith("100%|███")
    assert "| 3/3 [00:00<00:00" in line


def test_stream_that_is_not_a_terminal_has_no_bar(bus: MetricBus, stderr: io.StringIO) -> None:
    for _ in bus.epochs(2):
        list(bus.steps(range(3)))
    assert not stderr.getvalue()


def test_progress_true_shows_a_bar_anywhere(bus: MetricBus, stderr: io.StringIO) -> None:
    list(bus.steps(range(3), progress=True))
    assert "3/3" in stderr.getvalue()


def test_progress_false_shows_no_bar(bus: MetricBus, terminal: Terminal) -> None:
    for _ in bus.epochs(2, progress=False):
        list(bus.steps(range(3), progress=False))
    assert terminal.screen() == []


def test_setting_off_overrides_progress_true(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICBUS_PROGRESS", "off")
    with MetricBus(sinks="", dir=tmp_path) as bus:
        list(bus.steps(range(3), progress=True))
    list(DefaultBus().steps(range(3), progress=True))
    assert terminal.screen() == []


def test_setting_on_shows_a_bar_anywhere(tmp_path: Path, stderr: io.StringIO) -> None:
    with MetricBus(sinks="", dir=tmp_path, progress="on") as bus:
        list(bus.steps(range(3)))
        assert "3/3" in stderr.getvalue()
        list(bus.steps(range(4), progress=False))
        assert "4/4" not in stderr.getvalue()


def test_error_for_a_wrong_setting_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"progress='text'.*expected auto \| on \| off"):
        MetricBus(sinks="", dir=tmp_path, progress="text")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["text", 1])
def test_wrong_progress_argument_raises_at_the_call(bus: MetricBus, given: Any) -> None:
    with pytest.raises(TypeError, match="progress= must be True, False or None"):
        bus.steps("abc", progress=given)
    with pytest.raises(TypeError, match="progress= must be True, False or None"):
        bus.epochs(1, progress=given)


@pytest.mark.usefixtures("no_tqdm")
def test_without_tqdm_nothing_is_shown(bus: MetricBus, terminal: Terminal) -> None:
    for _ in bus.epochs(2):
        list(bus.steps(range(3)))
    assert terminal.screen() == []


@pytest.mark.usefixtures("no_tqdm")
def test_error_without_tqdm_shows_the_pip_command(bus: MetricBus, tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match=r"progress=True needs tqdm: pip install 'metr"):
        bus.steps(range(3), progress=True)
    with (
        MetricBus(sinks="", dir=tmp_path, progress="on") as bus_with_bars,
        pytest.raises(MissingPackageError, match="METRICBUS_PROGRESS=on needs tqdm"),
    ):
        bus_with_bars.epochs(3)


def test_only_rank_0_has_a_bar(
    bus: MetricBus, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    list(bus.steps(range(3), progress=True))
    assert terminal.screen() == []


@pytest.mark.parametrize("make", [lambda: MetricBus(disabled=True), DefaultBus])
def test_bus_that_is_off_has_a_bar_only_on_request(
    make: Callable[[], MetricBus], terminal: Terminal
) -> None:
    bus = make()
    for _ in bus.epochs(2):
        list(bus.steps(range(3)))
    assert not terminal.text
    list(bus.steps(range(3), progress=True))
    assert len(terminal.screen()) == 1


def test_process_wide_bus_has_a_bar_before_its_first_log(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICBUS_SINKS", "")
    bus = DefaultBus()
    bus.define("loss", progress=True)
    for _ in bus.steps(range(3)):
        bus.log("loss", 0.5)
    bus.close()
    (line,) = terminal.screen()
    assert line.endswith("loss=0.5]")


@pytest.mark.parametrize("position", ["around", "inside"])
def test_loop_with_a_user_defined_tqdm_bar_has_no_second_bar(
    bus: MetricBus, terminal: Terminal, position: str
) -> None:
    loop: Any = bus.steps(range(3))
    if position == "around":
        loop = tqdm.tqdm(loop, desc="own")
    else:
        loop = bus.steps(tqdm.tqdm(range(3), desc="own"))
    for _ in loop:
        assert _active_bars == []
    (line,) = terminal.screen()
    assert line.startswith("own: 100%")


# Loops


def test_bars_are_nested_and_only_the_outermost_stays(bus: MetricBus, terminal: Terminal) -> None:
    seen = []
    for _ in bus.epochs(2):
        for _ in bus.steps(range(3)):
            for _ in bus.steps("ab", advance=False):
                seen.append(len(_active_bars))
    assert seen == [3] * 12
    (line,) = terminal.screen()
    assert line.startswith("epochs: 100%")
    assert "2/2" in line


def test_each_bar_has_its_own_line(bus: MetricBus, terminal: Terminal, wait_for: WaitFor) -> None:
    val = bus.phase("val")
    for _ in bus.epochs(2):
        for _ in bus.steps(range(3)):
            for _ in val.steps("ab", advance=False):
                wait_for(lambda: "val:" in terminal.text)
                epochs, steps, validation = render_screen(terminal.text)
                assert epochs.startswith("epochs:   0%|")
                assert steps.startswith("epoch 0:   0%|")
                assert validation.startswith("val:   0%|")
                return


def test_each_loop_outside_epochs_leaves_a_line(bus: MetricBus, terminal: Terminal) -> None:
    for _ in range(2):
        list(bus.steps(range(3)))
    assert len(terminal.screen()) == 2


def test_loop_can_be_iterated_twice(bus: MetricBus, terminal: Terminal) -> None:
    loop = bus.steps(range(3))
    assert [list(loop), list(loop)] == [[0, 1, 2], [0, 1, 2]]
    assert bus.step == 5
    assert [line[:4] for line in terminal.screen()] == ["100%", "100%"]


class BrokenLength:
    """An iterable whose `len()` raises an unusual error."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        raise NotImplementedError


@pytest.mark.parametrize(
    "items",
    [
        (number for number in range(3)),
        itertools.islice(range(10**30), 3),
        BrokenLength(),
        map(int, "123"),
    ],
)
def test_items_of_unknown_length_are_counted(
    bus: MetricBus, terminal: Terminal, items: Iterable[int]
) -> None:
    assert sum(1 for _ in bus.steps(items)) == 3
    (line,) = terminal.screen()
    assert line.startswith("3step [00:00")


def test_wrong_length_does_not_matter(bus: MetricBus, terminal: Terminal) -> None:
    class WrongLength(BrokenLength):
        def __len__(self) -> int:
            return 2

    assert len(list(bus.steps(WrongLength()))) == 3
    assert len(terminal.screen()) == 1


def test_break_closes_the_bars_and_keeps_the_step(bus: MetricBus, terminal: Terminal) -> None:
    for _ in bus.epochs(2):
        for _ in bus.steps(range(100)):
            if bus.step == 4:
                break
        break
    assert _active_bars == []
    list(bus.steps(range(2), progress=False))
    assert bus.step == 6
    assert len(terminal.screen()) == 1


def test_exception_closes_the_bars_before_the_traceback(tmp_path: Path, wait_for: WaitFor) -> None:
    code = """
        from metricbus import MetricBus
        with MetricBus(sinks="", id="r") as bus:
            for epoch in bus.epochs(2):
                for step in bus.steps(range(10)):
                    if step == 4:
                        raise ValueError("the loss is NaN")
    """
    terminal = Terminal()
    process = start_in_terminal(terminal, tmp_path, code)
    assert process.wait(HANG_SECS) == 1
    first, second, *_, last = terminal.screen()
    assert first.startswith("epochs:   0%|")
    assert second == "Traceback (most recent call last):"
    assert last == "ValueError: the loss is NaN"


def test_ctrl_c_closes_the_bars_before_the_traceback(tmp_path: Path, wait_for: WaitFor) -> None:
    code = """
        import signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from metricbus import MetricBus
        with MetricBus(sinks="", id="r") as bus:
            for epoch in bus.epochs(2):
                for step in bus.steps(range(10**6)):
                    time.sleep(0.01)
    """
    terminal = Terminal()
    process = start_in_terminal(terminal, tmp_path, code)
    wait_for(lambda: "epoch 0:" in terminal.text)
    process.send_signal(signal.SIGINT)
    process.wait(HANG_SECS)
    first, second, *_, last = terminal.screen()
    assert first.startswith("epochs:   0%|")
    assert second == "Traceback (most recent call last):"
    assert last == "KeyboardInterrupt"


class Stream(IterableDataset[int]):
    """A dataset of unknown length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


def test_data_loader_starts_its_workers_once(
    bus: MetricBus, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_iterators = 0
    get_iterator = DataLoader._get_iterator

    def count(loader: DataLoader[Any]) -> Any:
        nonlocal n_iterators
        n_iterators += 1
        return get_iterator(loader)

    monkeypatch.setattr(DataLoader, "_get_iterator", count)
    loader = DataLoader(TensorDataset(torch.zeros(8, 1)), batch_size=2, num_workers=1)
    for _ in bus.epochs(1):
        assert len(list(bus.steps(loader))) == 4
    assert n_iterators == 1
    assert len(terminal.screen()) == 1


def test_items_of_an_iterable_dataset_are_counted(bus: MetricBus, terminal: Terminal) -> None:
    assert len(list(bus.steps(DataLoader(Stream(), batch_size=2)))) == 4
    (line,) = terminal.screen()
    assert line.startswith("4step")


def test_forked_child_leaves_the_bars_to_its_parent(tmp_path: Path) -> None:
    code = """
        import gc, os
        os.environ["TQDM_MININTERVAL"] = "3600"  # so that the bar's end is drawn only once
        from metricbus import MetricBus
        with MetricBus(sinks="", id="r") as bus:
            for step in bus.steps(range(3)):
                if (child := os.fork()) == 0:
                    import logging
                    logging.warning("from the child")
                    gc.collect()
                    break
                os.waitpid(child, 0)
        if child == 0:
            os._exit(0)
    """
    terminal = Terminal()
    assert start_in_terminal(terminal, tmp_path, code).wait(HANG_SECS) == 0
    *_, last = terminal.screen()
    assert last.startswith("100%")
    assert terminal.text.count("3/3") == 1


def test_bars_do_not_fix_the_multiprocessing_start_method(tmp_path: Path) -> None:
    code = """
        import logging, multiprocessing
        from metricbus import MetricBus
        logging.basicConfig()
        with MetricBus(sinks="logging", id="r", progress="on") as bus:
            for step in bus.steps(range(3)):
                logging.warning("a line")
                bus.flush()
        multiprocessing.set_start_method("spawn")
    """
    done = run_script(tmp_path, code, METRICBUS_DELIVERY="thread")
    assert done.returncode == 0, done.stderr


def test_without_stderr_no_bar_is_shown(bus: MetricBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert list(bus.steps(range(3), progress=True)) == [0, 1, 2]


def test_closed_stderr_has_no_bar(bus: MetricBus, terminal: Terminal) -> None:
    for step in bus.steps(range(3), progress=True):
        if step == 1:
            terminal.stream.close()
    assert sum(1 for _ in bus.steps(range(3))) == 3
    assert sum(1 for _ in bus.steps(range(3), progress=True)) == 3


def test_training_continues_if_the_terminal_is_gone(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert list(bus.steps(range(3), progress=True)) == [0, 1, 2]


# Cost of a step


def test_bar_costs_one_clock_reading_per_step(bus: MetricBus, stderr: io.StringIO) -> None:
    bus.define("loss", progress=True)

    def calls(loop: Iterable[int]) -> Counter[str]:
        steps = iter(loop)
        next(steps)
        next(steps)
        return count_calls(lambda: next(steps))

    without_bar = calls(bus.steps(range(10), progress=False))
    with_bar = calls(bus.steps(range(10), progress=True))
    assert without_bar == {"next": 1, "__iter__": 1, "enter_step": 1}
    assert with_bar - without_bar == {"__iter__": 1, "time": 1}


def test_log_does_no_work_for_the_bars(bus: MetricBus) -> None:
    bus.log("loss", 0.5, step=0)
    bus.define("loss", progress=True)
    calls = count_calls(lambda: bus.log("loss", 0.5, step=1))
    assert calls == {"log": 1, "time_ns": 1, "append": 1, "len": 1}


def test_definition_with_only_progress_is_not_sent_to_the_collector(bus: MetricBus) -> None:
    bus.define("loss", progress=True)
    bus.flush()
    assert bus._core.session is not None
    assert not bus._core.session._collector.aggregator.definitions


# Metrics


def last_line(bus: MetricBus, terminal: Terminal, **values: Any) -> str:
    """Return the bar of a loop that has logged these values."""
    for _ in bus.steps(range(1)):
        bus.log(values)
    (line,) = terminal.screen()
    return line


def test_bar_shows_the_selected_metrics(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("train/*", progress=True)
    bus.define("train/secret", progress=False)
    values = {"train/loss": 0.123456, "train/n": 1234567, "train/secret": 1, "other": 2}
    line = last_line(bus, terminal, **values)
    assert line.endswith(", train/loss=0.1235, train/n=1234567]")


def test_bar_shows_nan(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("loss", progress=True)
    assert last_line(bus, terminal, loss=math.nan).endswith(", loss=nan]")


def test_special_characters_in_a_name_are_escaped(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("*", progress=True)
    assert last_line(bus, terminal, **{"a\nb\x1b[2J": 1}).endswith(r', "a\nb\x1b[2J"=1]')


def test_many_metrics_are_truncated(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("*", progress=True)
    line = last_line(bus, terminal, **{f"name{i}": i for i in range(2000)})
    assert line.startswith("100% 1/1, name0=0, name1=1,")


def test_bar_shows_the_reduced_value_of_a_reduced_name(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("loss", every=2, reduce="mean", progress=True)
    for step in bus.steps(range(5)):
        bus.log("loss", float(step))
    bus.flush()
    for _ in bus.steps(range(1)):
        bus.log("loss", 100.0)
    _, second = terminal.screen()
    assert "loss=100" not in second
    assert second.endswith("loss=2.5]")


def test_values_of_epochs_are_shown_at_the_bar_of_epochs(
    bus: MetricBus, terminal: Terminal, wait_for: WaitFor
) -> None:
    bus.define("loss", progress=True)
    bus.define("acc", on_step=False, on_epoch=True, progress=True)
    for epoch in bus.epochs(2):
        for _ in bus.steps(range(2)):
            bus.log({"loss": 0.5, "acc": 0.25 * epoch})
            time.sleep(0.11)  # longer than tqdm's interval between updates
            if epoch:
                wait_for(lambda: "loss=0.5" in render_screen(terminal.text)[-1])
                epochs, steps = render_screen(terminal.text)
                assert epochs.endswith("epoch/s, acc=0]")
                assert steps.endswith("step/s, loss=0.5]")
    (last,) = terminal.screen()
    assert last.endswith("loss=0.5, acc=0.25]")


def test_without_a_bar_of_epochs_the_bar_of_steps_shows_all_metrics(
    bus: MetricBus, terminal: Terminal
) -> None:
    bus.define("*", progress=True)
    bus.define("acc", on_step=False, on_epoch=True)
    bus.log("acc", 0.5)
    bus.end_epoch()
    for _ in bus.steps(range(1)):
        bus.log("loss", 1)
    (line,) = terminal.screen()
    assert line.endswith("acc=0.5, loss=1]")


def test_validation_loop_shows_the_metrics_of_its_scope(bus: MetricBus, terminal: Terminal) -> None:
    val = bus.scope("val")
    bus.define("*", progress=True)
    bus.log("loss", 1)
    for batch in val.steps(range(3), advance=False):
        val.log("seen", batch)
    (line,) = terminal.screen()
    assert line.startswith("val: 100%")
    assert line.endswith("it/s, val/seen=2]")


def test_bar_shows_the_epoch_series_under_its_name(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("loss*", progress=True)
    bus.define("loss", on_step=True, on_epoch=True)
    for epoch in bus.epochs(1):
        for _ in bus.steps(range(2)):
            bus.log("loss", epoch + 1)
    (line,) = terminal.screen()
    assert line.endswith("loss=1, loss_epoch=1]")


def test_bar_does_not_wait_for_a_value_on_a_device(
    bus: MetricBus, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeAccelerator(blocked=True)
    monkeypatch.setitem(ACCELERATORS, "cpu", device)
    bus.define("loss", progress=True)
    for _ in bus.steps(range(2)):
        bus.log("loss", torch.tensor(0.25))
    device.released.set()
    bus.flush()
    device.released.clear()
    for _ in bus.steps(range(2)):
        bus.log("loss", torch.tensor(0.5))
    device.released.set()
    first, second = terminal.screen()
    assert "loss" not in first
    assert second.endswith("loss=0.25]")


@given(st.one_of(st.integers(), st.floats(-1e308, 1e308)))
def test_format_value_keeps_integers_and_rounds_others_to_four_digits(value: float) -> None:
    text = format_value(value)
    if isinstance(value, int):
        assert int(text) == value
    else:
        assert float(text) == pytest.approx(value, rel=5e-4, abs=0)
        assert len(text) <= len("-1.234e-308")


# Narrow terminals, and log lines


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (100, r"epochs: 100%\|.*\| 2/2 \[.*, .*epoch/s, train/loss=0.5\]"),
        (64, r"epochs: 100%\|█+\| 2/2 \[00:00<00:00, train/loss=0.5\]"),
        (40, r"epochs: 100% 2/2, train/loss=0.5"),
    ],
)
def test_narrow_terminal_keeps_the_metrics(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch, columns: int, expected: str
) -> None:
    terminal = Terminal(columns)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    bus.define("train/loss", progress=True)
    for _ in bus.epochs(2):
        bus.log("train/loss", 0.5)
    (line,) = terminal.screen()
    assert re.fullmatch(expected, line)


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("training")
    yield logger
    logger.handlers.clear()


def test_log_lines_appear_above_the_bars(
    bus: MetricBus, terminal: Terminal, logger: logging.Logger
) -> None:
    handler = logging.StreamHandler(terminal.stream)
    logger.addHandler(handler)
    for epoch in bus.epochs(2):
        for step in bus.steps(range(2)):
            logger.warning("a line in epoch %d step %d", epoch, step)
    logger.warning("after")
    assert not is_wrapped(handler)
    expected = [f"a line in epoch {epoch} step {step}" for epoch in (0, 1) for step in (0, 1)]
    *lines, bar, after = terminal.screen()
    assert lines == expected
    assert bar.startswith("epochs: 100%")
    assert after == "after"


class OwnHandler(logging.StreamHandler[Any]):
    """A handler with its own `emit`."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)


EMIT = logging.StreamHandler.emit


def is_wrapped(handler: logging.Handler) -> bool:
    return "emit" in vars(handler) or logging.StreamHandler.emit is not EMIT


def test_handlers_can_be_unwrapped_after_ctrl_c_at_any_point(
    terminal: Terminal, logger: logging.Logger
) -> None:
    handler = OwnHandler(terminal.stream)
    logger.addHandler(handler)
    point = 0
    while interrupt_at((handlers := ConsoleHandlers()).wrap, point):
        interrupt_at(handlers.unwrap, point)
        handlers.unwrap()
        assert not is_wrapped(handler)
        point += 1
    assert is_wrapped(handler)
    handlers.unwrap()


@pytest.mark.parametrize("rows", [0, 1, 2])  # a terminal without a size has 0
def test_loops_in_a_terminal_of_few_rows_restore_the_handlers(
    bus: MetricBus, logger: logging.Logger, rows: int
) -> None:
    terminal = Terminal(rows=rows)
    handler = logging.StreamHandler(terminal.stream)
    logger.addHandler(handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal.stream)
        for _ in bus.epochs(2):
            for _ in bus.steps(range(2)):
                assert is_wrapped(handler)
    terminal.hang_up()
    assert not is_wrapped(handler)


def test_rich_log_lines_appear_above_the_bars(
    bus: MetricBus, terminal: Terminal, logger: logging.Logger
) -> None:
    console = Console(stderr=True, width=60)
    logger.addHandler(RichHandler(console=console, show_path=False, show_time=False))
    for step in bus.steps(range(2)):
        logger.warning("a line in step %d", step)
    first, second, bar = terminal.screen()
    assert first.endswith("a line in step 0")
    assert second.endswith("a line in step 1")
    assert bar.startswith("100%")


def test_log_lines_of_many_threads_stay_intact(
    bus: MetricBus, terminal: Terminal, logger: logging.Logger
) -> None:
    logger.addHandler(logging.StreamHandler(terminal.stream))

    def log_lines() -> None:
        for _ in range(50):
            logger.warning("a line of another thread")

    bus.define("loss", progress=True)
    threads = [threading.Thread(target=log_lines) for _ in range(4)]
    for _ in bus.epochs(1):
        for step in bus.steps(range(100)):
            bus.log("loss", step)
            if step == 1:
                for thread in threads:
                    thread.start()
            if step == 50:
                for thread in threads:
                    thread.join()
    *lines, bar = terminal.screen()
    assert lines == ["a line of another thread"] * 200
    assert bar.startswith("epochs: 100%")
    assert bar.endswith("loss=99]")


def test_handler_added_in_a_loop_stays(
    bus: MetricBus, terminal: Terminal, logger: logging.Logger
) -> None:
    for _ in bus.epochs(1):
        handler = logging.StreamHandler(terminal.stream)
        logger.addHandler(handler)
        for _ in bus.steps(range(1)):
            logger.warning("a line")
    assert logger.handlers == [handler]
    first, bar = terminal.screen()
    assert first == "a line"
    assert bar.startswith("epochs: 100%")


def test_handler_created_by_the_first_log_line_is_wrapped_too(
    bus: MetricBus, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    for step in bus.steps(range(2)):
        logging.warning("a line in step %d", step)
    assert terminal.screen()[:2] == [
        "WARNING:root:a line in step 0",
        "WARNING:root:a line in step 1",
    ]
    assert logging.StreamHandler.emit is EMIT


def test_lines_of_the_logging_sink_do_not_break_the_bars(
    tmp_path: Path, terminal: Terminal
) -> None:
    logger = logging.getLogger("metricbus")
    logger.propagate = False  # pytest's handlers write to no terminal
    try:
        with MetricBus(sinks="logging", dir=tmp_path, id="r") as bus:
            for step in bus.steps(range(3)):
                bus.log("loss", step)
                bus.flush()
    finally:
        logger.propagate = True
    lines = [line for line in terminal.screen() if "loss=" in line]
    assert len(lines) == 3
    assert all("metricbus: step" in line for line in lines)


# Notebooks


def test_notebook_without_widgets_shows_text_and_no_warning(tmp_path: Path) -> None:
    cell = """
import warnings
warnings.filterwarnings("error", module="tqdm|metricbus")
import sys
sys.modules["ipywidgets"] = None
from metricbus import MetricBus
with MetricBus(sinks="", id="r") as bus:
    bus.define("loss", progress=True)
    for epoch in bus.epochs(2):
        for step in bus.steps(range(3)):
            bus.log("loss", 0.5)
"""
    code = f"""
        import nbformat
        from nbclient import NotebookClient
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell({cell!r})])
        NotebookClient(notebook, timeout=60).execute()
        for output in notebook.cells[0].outputs:
            assert output.name == "stderr"
            print(output.text)
    """
    done = run_script(tmp_path, code, PYTHONWARNINGS="ignore")
    assert done.returncode == 0, done.stderr
    assert "epochs: 100%" in done.stdout
    assert "loss=0.5" in done.stdout
    assert "Warning" not in done.stdout
