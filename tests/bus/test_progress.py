"""Progress bars, on terminals and in notebooks."""

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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from metricbus._bus.progress import _shown
from metricbus._bus.progress_postfix import in_short
from metricbus._common.device_values import ACCELERATORS, as_64_bits
from metricbus._common.tqdm_logging import ConsoleHandlers
from metricbus.errors import ConfigError, MissingPackageError
from tests.helpers.interrupts import interrupted
from tests.helpers.scripts import run_script
from tests.helpers.terminals import Terminal, screen_of, start_in_terminal
from tests.ingest.test_hot_path import calls_of

WaitFor = Callable[[Callable[[], bool]], None]


StandsIn = Callable[[TextIO], None]


@pytest.fixture
def stands_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandsIn:
    """Has a stream be stderr while the test runs; pytest sets its own after the fixtures."""

    def stand_in(stream: TextIO) -> None:
        test = request.node.obj

        def begin(**arguments: Any) -> None:
            monkeypatch.setattr(sys, "stderr", stream)
            test(**arguments)

        request.node.obj = begin

    return stand_in


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, stands_in: StandsIn) -> Iterator[Terminal]:
    """The terminal that stderr is."""
    terminal = Terminal()
    stands_in(terminal.stream)
    monkeypatch.setattr(tqdm.std.tqdm, "monitor_interval", 0)  # no thread of tqdm's stays
    yield terminal
    terminal.hang_up()


@pytest.fixture
def written(stands_in: StandsIn) -> io.StringIO:
    """What stderr gets, which is no terminal."""
    stream = io.StringIO()
    stands_in(stream)
    return stream


@pytest.fixture
def no_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)


# Whether there is a bar


def test_on_a_terminal_there_is_a_bar(bus: MetricBus, terminal: Terminal) -> None:
    for _ in bus.steps(range(3)):
        pass
    (line,) = terminal.screen()
    assert line.startswith("100%|███")
    assert "| 3/3 [00:00<00:00" in line


def test_elsewhere_there_is_none(bus: MetricBus, written: io.StringIO) -> None:
    for _ in bus.epochs(2):
        for _ in bus.steps(range(3)):
            pass
    assert not written.getvalue()


def test_it_can_be_asked_for_anywhere(bus: MetricBus, written: io.StringIO) -> None:
    for _ in bus.steps(range(3), progress=True):
        pass
    assert "3/3" in written.getvalue()


def test_it_can_be_declined(bus: MetricBus, terminal: Terminal) -> None:
    for _ in bus.epochs(2, progress=False):
        for _ in bus.steps(range(3), progress=False):
            pass
    assert terminal.screen() == []


def test_the_setting_off_wins_over_a_wish(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METRICBUS_PROGRESS", "off")
    with MetricBus(sinks="", dir=tmp_path) as bus:
        for _ in bus.steps(range(3), progress=True):
            pass
    for _ in DefaultBus().steps(range(3), progress=True):
        pass
    assert terminal.screen() == []


def test_the_setting_on_shows_it_anywhere(tmp_path: Path, written: io.StringIO) -> None:
    with MetricBus(sinks="", dir=tmp_path, progress="on") as bus:
        for _ in bus.steps(range(3)):
            pass
        assert "3/3" in written.getvalue()
        for _ in bus.steps(range(4), progress=False):
            pass
        assert "4/4" not in written.getvalue()


def test_a_setting_that_is_none_is_an_error_that_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"progress='text'.*expected auto \| on \| off"):
        MetricBus(sinks="", dir=tmp_path, progress="text")  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["text", 1])
def test_an_argument_that_is_none_raises_at_the_call(bus: MetricBus, given: Any) -> None:
    with pytest.raises(TypeError, match="progress= takes True, False or None"):
        bus.steps("abc", progress=given)
    with pytest.raises(TypeError, match="progress= takes True, False or None"):
        bus.epochs(1, progress=given)


@pytest.mark.usefixtures("no_tqdm")
def test_without_tqdm_there_is_no_bar_and_no_word(bus: MetricBus, terminal: Terminal) -> None:
    for _ in bus.epochs(2):
        for _ in bus.steps(range(3)):
            pass
    assert terminal.screen() == []


@pytest.mark.usefixtures("no_tqdm")
def test_without_tqdm_a_wish_says_what_to_install(bus: MetricBus, tmp_path: Path) -> None:
    with pytest.raises(MissingPackageError, match=r"progress=True needs tqdm: pip install 'metr"):
        bus.steps(range(3), progress=True)
    with (
        MetricBus(sinks="", dir=tmp_path, progress="on") as wishes,
        pytest.raises(MissingPackageError, match="METRICBUS_PROGRESS=on needs tqdm"),
    ):
        wishes.epochs(3)


def test_a_rank_other_than_the_first_has_none(
    bus: MetricBus, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for _ in bus.steps(range(3), progress=True):
        pass
    assert terminal.screen() == []


@pytest.mark.parametrize("make", [lambda: MetricBus(disabled=True), DefaultBus])
def test_a_bus_that_does_nothing_has_one_if_it_is_asked_for(
    make: Callable[[], MetricBus], terminal: Terminal
) -> None:
    bus = make()
    for _ in bus.epochs(2):
        for _ in bus.steps(range(3)):
            pass
    assert not terminal.text
    for _ in bus.steps(range(3), progress=True):
        pass
    assert len(terminal.screen()) == 1


def test_the_process_wide_bus_has_one_before_it_is_first_logged_to(
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


@pytest.mark.parametrize("where", ["around", "inside"])
def test_who_has_a_bar_of_tqdm_gets_no_second_one(
    bus: MetricBus, terminal: Terminal, where: str
) -> None:
    loop: Any = bus.steps(range(3))
    if where == "around":
        loop = tqdm.tqdm(loop, desc="own")
    else:
        loop = bus.steps(tqdm.tqdm(range(3), desc="own"))
    for _ in loop:
        assert _shown == []
    (line,) = terminal.screen()
    assert line.startswith("own: 100%")


# Loops


def test_bars_are_nested_and_only_the_outermost_stays(bus: MetricBus, terminal: Terminal) -> None:
    seen = []
    for _ in bus.epochs(2):
        for _ in bus.steps(range(3)):
            for _ in bus.steps("ab", advance=False):
                seen.append(len(_shown))
    assert seen == [3] * 12
    (line,) = terminal.screen()
    assert line.startswith("epochs: 100%")
    assert "2/2" in line


def test_each_bar_has_its_line(bus: MetricBus, terminal: Terminal, wait_for: WaitFor) -> None:
    val = bus.phase("val")
    for _ in bus.epochs(2):
        for _ in bus.steps(range(3)):
            for _ in val.steps("ab", advance=False):
                wait_for(lambda: "val:" in terminal.text)
                epochs, steps, validation = screen_of(terminal.text)
                assert epochs.startswith("epochs:   0%|")
                assert steps.startswith("epoch 0:   0%|")
                assert validation.startswith("val:   0%|")
                return


def test_outside_of_epochs_each_loop_leaves_a_line(bus: MetricBus, terminal: Terminal) -> None:
    for _ in range(2):
        for _ in bus.steps(range(3)):
            pass
    assert len(terminal.screen()) == 2


def test_a_loop_can_be_used_again(bus: MetricBus, terminal: Terminal) -> None:
    loop = bus.steps(range(3))
    assert [list(loop), list(loop)] == [[0, 1, 2], [0, 1, 2]]
    assert bus.step == 5
    assert [line[:4] for line in terminal.screen()] == ["100%", "100%"]


class Unhelpful:
    """Its length cannot be had, in an unusual way."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        raise NotImplementedError


@pytest.mark.parametrize(
    "items",
    [
        (number for number in range(3)),
        itertools.islice(range(10**30), 3),
        Unhelpful(),
        map(int, "123"),
    ],
)
def test_an_unknown_length_is_counted(
    bus: MetricBus, terminal: Terminal, items: Iterable[int]
) -> None:
    assert sum(1 for _ in bus.steps(items)) == 3
    (line,) = terminal.screen()
    assert line.startswith("3step [00:00")


def test_a_length_that_is_wrong_does_not_matter(bus: MetricBus, terminal: Terminal) -> None:
    class Wrong(Unhelpful):
        def __len__(self) -> int:
            return 2

    assert len(list(bus.steps(Wrong()))) == 3
    assert len(terminal.screen()) == 1


def test_break_closes_the_bars_and_leaves_the_clock_right(
    bus: MetricBus, terminal: Terminal
) -> None:
    for _ in bus.epochs(2):
        for _ in bus.steps(range(100)):
            if bus.step == 4:
                break
        break
    assert _shown == []
    for _ in bus.steps(range(2), progress=False):
        pass
    assert bus.step == 6
    assert len(terminal.screen()) == 1


def test_an_exception_closes_the_bars_before_it_is_told(tmp_path: Path, wait_for: WaitFor) -> None:
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
    assert process.wait(60) == 1
    first, second, *_, last = terminal.screen()
    assert first.startswith("epochs:   0%|")
    assert second == "Traceback (most recent call last):"
    assert last == "ValueError: the loss is NaN"


def test_an_interrupt_closes_the_bars_before_it_is_told(tmp_path: Path, wait_for: WaitFor) -> None:
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
    process.wait(60)
    first, second, *_, last = terminal.screen()
    assert first.startswith("epochs:   0%|")
    assert second == "Traceback (most recent call last):"
    assert last == "KeyboardInterrupt"


class Stream(IterableDataset[int]):
    """Nobody knows how long it is."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(8))


def test_a_data_loader_starts_its_workers_once(
    bus: MetricBus, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    iterators = Counter[str]()
    make = DataLoader._get_iterator

    def count(loader: DataLoader[Any]) -> Any:
        iterators["made"] += 1
        return make(loader)

    monkeypatch.setattr(DataLoader, "_get_iterator", count)
    loader = DataLoader(TensorDataset(torch.zeros(8, 1)), batch_size=2, num_workers=1)
    for _ in bus.epochs(1):
        assert len(list(bus.steps(loader))) == 4
    assert iterators["made"] == 1
    assert len(terminal.screen()) == 1


def test_a_stream_of_data_is_counted(bus: MetricBus, terminal: Terminal) -> None:
    assert len(list(bus.steps(DataLoader(Stream(), batch_size=2)))) == 4
    (line,) = terminal.screen()
    assert line.startswith("4step")


def test_a_forked_child_leaves_the_bars_to_its_parent(tmp_path: Path) -> None:
    code = """
        import gc, os
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
    assert start_in_terminal(terminal, tmp_path, code).wait(60) == 0
    *_, last = terminal.screen()
    assert last.startswith("100%")
    assert terminal.text.count("3/3") == 1


def test_bars_settle_nothing_for_multiprocessing(tmp_path: Path) -> None:
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


def test_without_a_stderr_there_is_no_bar(bus: MetricBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert list(bus.steps(range(3), progress=True)) == [0, 1, 2]


def test_a_stderr_that_was_closed_gets_no_bar(bus: MetricBus, terminal: Terminal) -> None:
    for step in bus.steps(range(3), progress=True):
        if step == 1:
            terminal.stream.close()
    assert sum(1 for _ in bus.steps(range(3))) == 3
    assert sum(1 for _ in bus.steps(range(3), progress=True)) == 3


def test_a_terminal_that_is_gone_does_not_end_the_training(
    bus: MetricBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert list(bus.steps(range(3), progress=True)) == [0, 1, 2]


# What a step costs


def test_a_step_with_a_bar_costs_a_look_at_the_clock(bus: MetricBus, written: io.StringIO) -> None:
    bus.define("loss", progress=True)

    def calls(loop: Iterable[int]) -> Counter[str]:
        steps = iter(loop)
        next(steps)
        next(steps)
        return calls_of(lambda: next(steps))

    without = calls(bus.steps(range(10), progress=False))
    beside = calls(bus.steps(range(10), progress=True))
    assert without == {"next": 1, "__iter__": 1, "enter_step": 1}
    assert beside - without == {"__iter__": 1, "time": 1}


def test_log_does_nothing_for_the_bars(bus: MetricBus) -> None:
    bus.log("loss", 0.5, step=0)
    bus.define("loss", progress=True)
    calls = calls_of(lambda: bus.log("loss", 0.5, step=1))
    assert calls == {"log": 1, "time_ns": 1, "append": 1, "len": 1}


def test_a_definition_of_progress_alone_does_not_reach_the_collector(bus: MetricBus) -> None:
    bus.define("loss", progress=True)
    bus.flush()
    assert bus._session is not None
    assert not bus._session._collector.reducing.definitions


# Metrics


def last_line(bus: MetricBus, terminal: Terminal, **values: Any) -> str:
    """The bar of a loop that has logged these values."""
    for _ in bus.steps(range(1)):
        bus.log(values)
    (line,) = terminal.screen()
    return line


def test_chosen_metrics_stand_beside_the_bar(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("train/*", progress=True)
    bus.define("train/secret", progress=False)
    values = {"train/loss": 0.123456, "train/n": 1234567, "train/secret": 1, "other": 2}
    line = last_line(bus, terminal, **values)
    assert line.endswith(", train/loss=0.1235, train/n=1234567]")


def test_nan_is_told(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("loss", progress=True)
    assert last_line(bus, terminal, loss=math.nan).endswith(", loss=nan]")


def test_a_name_cannot_break_the_line(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("*", progress=True)
    assert last_line(bus, terminal, **{"a\nb\x1b[2J": 1}).endswith(r', "a\nb\x1b[2J"=1]')


def test_many_metrics_are_cut_off(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("*", progress=True)
    line = last_line(bus, terminal, **{f"name{i}": i for i in range(2000)})
    assert line.startswith("100% 1/1, name0=0, name1=1,")


def test_a_reduced_name_shows_what_the_reduction_gave(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("loss", every=2, reduce="mean", progress=True)
    for step in bus.steps(range(5)):
        bus.log("loss", float(step))
    bus.flush()
    for _ in bus.steps(range(1)):
        bus.log("loss", 100.0)
    _, second = terminal.screen()
    assert "loss=100" not in second
    assert second.endswith("loss=2.5]")


def test_what_epochs_give_stands_beside_their_bar(
    bus: MetricBus, terminal: Terminal, wait_for: WaitFor
) -> None:
    bus.define("loss", progress=True)
    bus.define("acc", on_step=False, on_epoch=True, progress=True)
    for epoch in bus.epochs(2):
        for _ in bus.steps(range(2)):
            bus.log({"loss": 0.5, "acc": 0.25 * epoch})
            time.sleep(0.11)  # longer than tqdm waits before it draws a bar again
            if epoch:
                wait_for(lambda: "loss=0.5" in screen_of(terminal.text)[-1])
                epochs, steps = screen_of(terminal.text)
                assert epochs.endswith("epoch/s, acc=0]")
                assert steps.endswith("step/s, loss=0.5]")
    (last,) = terminal.screen()
    assert last.endswith("loss=0.5, acc=0.25]")


def test_without_a_bar_of_epochs_steps_have_it_all(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("*", progress=True)
    bus.define("acc", on_step=False, on_epoch=True)
    bus.log("acc", 0.5)
    bus.end_epoch()
    for _ in bus.steps(range(1)):
        bus.log("loss", 1)
    (line,) = terminal.screen()
    assert line.endswith("acc=0.5, loss=1]")


def test_a_validation_loop_has_the_metrics_of_its_phase(bus: MetricBus, terminal: Terminal) -> None:
    val = bus.scope("val")
    bus.define("*", progress=True)
    bus.log("loss", 1)
    for batch in val.steps(range(3), advance=False):
        val.log("seen", batch)
    (line,) = terminal.screen()
    assert line.startswith("val: 100%")
    assert line.endswith("it/s, val/seen=2]")


def test_a_closed_epoch_series_has_a_name_of_its_own(bus: MetricBus, terminal: Terminal) -> None:
    bus.define("loss*", progress=True)
    bus.define("loss", on_step=True, on_epoch=True)
    for epoch in bus.epochs(1):
        for _ in bus.steps(range(2)):
            bus.log("loss", epoch + 1)
    (line,) = terminal.screen()
    assert line.endswith("loss=1, loss_epoch=1]")


class LeaseHeld:
    """An accelerator made of CPU tensors, which brings nothing before it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def stream(self, device: Any) -> str:
        return "one"

    def bring(self, device: Any, parts: Sequence[Any], streams: Iterable[Any]) -> Any:
        assert self.let_go.wait(10)
        return torch.cat([as_64_bits(part) for part in parts]).numpy().copy()


def test_a_value_on_a_device_is_not_waited_for(
    bus: MetricBus, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = LeaseHeld()
    monkeypatch.setitem(ACCELERATORS, "cpu", device)
    bus.define("loss", progress=True)
    for _ in bus.steps(range(2)):
        bus.log("loss", torch.tensor(0.25))
    device.let_go.set()
    bus.flush()
    device.let_go.clear()
    for _ in bus.steps(range(2)):
        bus.log("loss", torch.tensor(0.5))
    device.let_go.set()
    first, second = terminal.screen()
    assert "loss" not in first
    assert second.endswith("loss=0.25]")


@given(st.one_of(st.integers(), st.floats(-1e308, 1e308)))
def test_integers_are_whole_and_others_have_four_digits(value: float) -> None:
    text = in_short(value)
    if isinstance(value, int):
        assert int(text) == value
    else:
        assert float(text) == pytest.approx(value, rel=5e-4, abs=0)
        assert len(text) <= len("-1.234e-308")


# Narrow terminals, and lines of log


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (100, r"epochs: 100%\|.*\| 2/2 \[.*, .*epoch/s, train/loss=0.5\]"),
        (64, r"epochs: 100%\|█+\| 2/2 \[00:00<00:00, train/loss=0.5\]"),
        (40, r"epochs: 100% 2/2, train/loss=0.5"),
    ],
)
def test_where_it_is_narrow_the_metrics_stay(
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


def test_lines_of_log_stand_above_the_bars(
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
    """One that writes by a method of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)


EMIT = logging.StreamHandler.emit


def is_wrapped(handler: logging.Handler) -> bool:
    return "emit" in vars(handler) or logging.StreamHandler.emit is not EMIT


def test_ctrl_c_at_any_point_leaves_handlers_that_can_be_unwrapped(
    terminal: Terminal, logger: logging.Logger
) -> None:
    handler = OwnHandler(terminal.stream)
    logger.addHandler(handler)
    point = 0
    while interrupted((handlers := ConsoleHandlers()).wrap, point):
        interrupted(handlers.unwrap, point)
        handlers.unwrap()
        assert not is_wrapped(handler)
        point += 1
    assert is_wrapped(handler)
    handlers.unwrap()


@pytest.mark.parametrize("rows", [0, 1, 2])  # 0 is what a terminal has that nobody has sized
def test_loops_in_a_low_terminal_leave_handlers_as_they_were(
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


def test_richs_lines_stand_above_the_bars(
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


def test_lines_of_many_threads_stay_whole(
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


def test_what_is_configured_in_a_loop_stays(
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


def test_a_handler_that_the_first_line_makes_is_one_of_them(
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


def test_the_logging_sink_does_not_tear_the_bars(tmp_path: Path, terminal: Terminal) -> None:
    logger = logging.getLogger("metricbus")
    logger.propagate = False  # pytest's own handlers, which are no terminal's
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


def test_a_notebook_without_widgets_shows_text_and_no_warning(tmp_path: Path) -> None:
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
