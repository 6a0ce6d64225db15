"""Copies of a bus: forked, pickled or deep-copied, in all kinds of worker processes."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import MeanMetric

import metricbus
from metricbus import MetricBus, Report, ScalarRow
from metricbus._common.settings import Settings
from tests.helpers.scripts import run_script


def values(folder: Path, name: str) -> list[float]:
    return sorted(metricbus.read(folder).series(name).value.tolist())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_worker_that_receives_the_bus_joins_the_run(tmp_path: Path, method: str) -> None:
    """Workers end without `atexit` functions, and must not print anything."""
    code = f"""
        import gc, multiprocessing
        from metricbus import MetricBus

        def work(bus, number):
            bus.log("x", float(number))
            gc.collect()

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            with MetricBus(id="r", dir=".", sinks="csv") as bus:
                bus.log("own", 1.0)
                workers = [context.Process(target=work, args=(bus, n)) for n in range(3)]
                for worker in workers:
                    worker.start()
                for worker in workers:
                    worker.join()
            assert bus.stats().others == 3, bus.stats()
    """
    done = run_script(tmp_path, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert values(tmp_path / "r", "x") == [0, 1, 2]
    assert values(tmp_path / "r", "own") == [1]
    assert len((tmp_path / "r/csv/metrics.csv").read_text().splitlines()) == 1 + 4


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_bus_of_a_dataset_works_in_data_loader_workers(tmp_path: Path, method: str) -> None:
    code = f"""
        import gc
        from torch.utils.data import DataLoader, Dataset
        from metricbus import MetricBus

        class Numbers(Dataset):
            def __init__(self, bus):
                self.bus = bus
            def __len__(self):
                return 20
            def __getitem__(self, index):
                self.bus.log("read", float(index))
                gc.collect()
                return index

        if __name__ == "__main__":
            with MetricBus(id="r", dir=".", sinks="csv") as bus:
                loader = DataLoader(
                    Numbers(bus), batch_size=5, num_workers=2, multiprocessing_context={method!r}
                )
                for batch in bus.steps(loader):
                    bus.log("sum", batch.sum())
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert values(tmp_path / "r", "read") == list(range(20))
    assert len(values(tmp_path / "r", "sum")) == 4


def test_deepcopy_returns_the_same_bus(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        assert copy.deepcopy({"model": bus})["model"] is bus
        assert copy.copy(bus) is bus


def test_unpickling_in_the_same_process_returns_the_same_bus(tmp_path: Path) -> None:
    with MetricBus(sinks="", dir=tmp_path) as bus:
        assert pickle.loads(pickle.dumps(bus)) is bus
        scope: Any = pickle.loads(pickle.dumps(bus.scope("val")))
        scope.log("x", 1.0)
    assert bus.dir is not None
    assert values(bus.dir, "val/x") == [1.0]


def test_process_wide_bus_is_pickled_as_a_reference() -> None:
    assert pickle.loads(pickle.dumps(metricbus.bus)) is metricbus.bus


def test_pickled_copy_of_a_bus_without_a_run_has_its_config() -> None:
    bus = MetricBus(disabled=True, config={"lr": 0.1, "model": {"layers": 3}})
    core = pickle.loads(pickle.dumps(bus._core))
    assert dict(core.config) == {"lr": 0.1, "model": {"layers": 3}}


def test_copy_has_the_definitions_step_and_config(tmp_path: Path) -> None:
    code = """
        import multiprocessing
        from metricbus import MetricBus

        def work(bus):
            assert (bus.step, bus.epoch) == (7, 2)
            assert bus.config == {"lr": 0.1}
            for value in (1.0, 3.0):
                bus.log("x", value)

        if __name__ == "__main__":
            config = {"lr": 0.1}
            with MetricBus(id="r", dir=".", sinks="", config=config, strict=True) as bus:
                bus.define("x", every=2, reduce="mean")
                bus.define("y", reduce=lambda values: 1.0)
                bus.log("a", 1.0, step=7, epoch=2)
                worker = multiprocessing.get_context("spawn").Process(target=work, args=(bus,))
                worker.start()
                worker.join()
                assert worker.exitcode == 0
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    series = metricbus.read(tmp_path / "r").series("x")
    assert (series.value.tolist(), series.step.tolist()) == ([2.0], [8])
    assert "does not have the definition of 'y'" in done.stderr


# A value of every setting that differs from its default, as text in the environment.
OTHER_SETTINGS = {
    "sinks": "csv",
    "dir": "elsewhere",
    "project": "vision",
    "run": "digits",
    "run_id": "digits-1",
    "resume": "allow",
    "flush_secs": "0.5",
    "batch_size": "7",
    "flush_bytes": "70",
    "flush_steps": "3",
    "queue_size": "77",
    "queue_bytes": "7700",
    "overflow": "drop_oldest",
    "unloggable": "ignore",
    "block_secs": "0.7",
    "close_timeout": "17",
    "delivery": "off",
    "linger_secs": "70",
    "fsync": "flush",
    "sigterm": "flush",
    "ranks": "all",
    "sync_secs": "77",
    "progress": "off",
    "strict": "1",
    "disabled": "1",
}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("disabled", [False, True])
def test_copy_keeps_every_setting_definition_and_phase(
    tmp_path: Path, method: str, disabled: bool
) -> None:
    code = f"""
        import multiprocessing
        from metricbus import MetricBus
        from metricbus._common.settings import Settings

        def content(bus):
            core = bus._core
            return core.settings, list(core.definitions), core.phases, core.config, bus.step

        def work(bus, pipe):
            settings, definitions, phases, config, step = content(bus)
            pipe.send((settings, definitions, phases, dict(config), step))

        if __name__ == "__main__":
            bus = MetricBus()
            for field in Settings.__struct_fields__:
                is_default = getattr(bus._core.settings, field) == getattr(Settings(), field)
                assert is_default == (field == "disabled" and not {disabled}), field
            bus.define("a", every=3, reduce="max", sinks=["csv"], axis="tokens", progress=True)
            bus.define("b", on_step=False, on_epoch=True, across_ranks="mean")
            bus.phase("val")
            bus.phase("test", on="step")
            bus.log("x", 1.0, step=7)
            context = multiprocessing.get_context({method!r})
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(bus, theirs))
            worker.start()
            assert ours.recv() == content(bus)
            worker.join()
            bus.close()
    """
    with MetricBus(id="r", dir=tmp_path, sinks="csv", config={"lr": 0.1}):
        variables = OTHER_SETTINGS | {"run_dir": str(tmp_path / "r")}
        if not disabled:
            del variables["disabled"]
        environ = {f"METRICBUS_{name.upper()}": value for name, value in variables.items()}
        done = run_script(tmp_path, code, **environ)
    assert done.returncode == 0, done.stderr
    assert set(OTHER_SETTINGS) == {*Settings.__struct_fields__} - {"run_dir"}


def test_copy_writes_the_journal_every_flush_steps(tmp_path: Path) -> None:
    code = """
        import multiprocessing, time
        from metricbus import MetricBus, read

        def work(bus):
            for step in range(5):
                bus.log("x", 1.0, step=step)
            while "x" not in read("r").names():
                time.sleep(0.01)

        if __name__ == "__main__":
            with MetricBus(id="r", dir=".", sinks="", flush_steps=2, flush_secs=600) as bus:
                worker = multiprocessing.get_context("spawn").Process(target=work, args=(bus,))
                worker.start()
                worker.join()
                assert worker.exitcode == 0
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr


def test_copy_of_the_process_wide_bus_keeps_its_settings(tmp_path: Path) -> None:
    code = """
        import multiprocessing
        import metricbus

        def work(bus):
            assert bus is metricbus.bus
            bus.log({"x": 1.0, "note": "text"})

        if __name__ == "__main__":
            with metricbus.configure(id="r", dir=".", sinks="", unloggable="ignore") as bus:
                worker = multiprocessing.get_context("spawn").Process(target=work, args=(bus,))
                worker.start()
                worker.join()
                assert worker.exitcode == 0
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert values(tmp_path / "r", "x") == [1]


def test_copy_knows_its_run_before_it_joins(tmp_path: Path) -> None:
    bus = MetricBus("digits", sinks="", dir=tmp_path, tags=["a"])
    pickled, run = pickle.dumps(bus), bus.run
    bus.close()
    assert pickle.loads(pickled).run == run


def test_copy_on_a_rank_that_does_not_write_reduces_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with MetricBus(sinks="", dir=tmp_path) as bus:
        bus.define("x", every=2, reduce="mean")
        loaded = pickle.loads(pickle.dumps(bus))
    for value in (1.0, 3.0):
        loaded.log("x", value)
    assert (loaded.is_on, loaded.run) == (True, None)
    wait_for(lambda: loaded.last("x") == 2.0)
    loaded.close()


def test_copy_of_an_ended_run_warns_and_drops_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus = MetricBus(sinks="", dir=tmp_path)
    pickled = pickle.dumps(bus)
    bus.close()
    loaded = pickle.loads(pickled)
    for _ in range(3):
        loaded.log("x", 1.0)
    assert caplog.text.count("cannot join the run") == 1
    assert "has ended" in caplog.text


def test_unpickled_disabled_bus_is_disabled(tmp_path: Path) -> None:
    loaded = pickle.loads(pickle.dumps(MetricBus(disabled=True)))
    loaded.log("x", 1.0)
    assert loaded.close().logged == 0


def test_records_and_reports_can_be_pickled() -> None:
    record = ScalarRow(step=1, epoch=0, time=5, values={"x": 1.0})
    report = Report(journalled=3)
    assert pickle.loads(pickle.dumps((record, report))) == (record, report)


def test_thousand_forks_under_load_neither_lose_values_nor_hang(tmp_path: Path) -> None:
    code = """
        import os, threading
        from metricbus import MetricBus
        bus = MetricBus(id="r", dir=".", sinks="csv")
        is_running = True
        logged = [0] * 4

        def load(thread):
            while is_running:
                for _ in range(100):
                    bus.log(f"load/{thread}", 1.0)
                    logged[thread] += 1
                threading.Event().wait(0.01)

        threads = [threading.Thread(target=load, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1000):
            pid = os.fork()
            if pid == 0:
                bus.log("child", float(number))
                bus.close()
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            assert status == 0
        is_running = False
        for thread in threads:
            thread.join()
        report = bus.close(timeout=60)
        assert report.complete, report
        assert report.others == 1000
        print(sum(logged))
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert values(tmp_path / "r", "child") == list(range(1000))
    loads = sum(len(values(tmp_path / "r", f"load/{thread}")) for thread in range(4))
    assert loads == int(done.stdout)


def test_child_does_not_hang_if_every_lock_was_held_at_the_fork(tmp_path: Path) -> None:
    code = """
        import os, threading
        import metricbus
        from metricbus import MetricBus

        bus = MetricBus(id="r", dir=".", sinks="csv,tensorboard")
        bus.log("x", 0.0)
        bus.flush()
        (process,) = bus._core.session._delivery._hosts
        locks = [
            bus._core.session._close_lock,
            metricbus.bus._open_lock,
            process._commands_lock,
            process._relay_lock,
        ]
        held, release = threading.Event(), threading.Event()

        def hold():
            for lock in locks:
                lock.acquire()
            held.set()
            release.wait()
            for lock in reversed(locks):
                lock.release()

        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        pid = os.fork()
        if pid == 0:
            bus.log("child", 1.0)
            metricbus.bus.log("nowhere", 1.0)
            bus.flush()
            bus.close()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        release.set()
        assert status == 0
        assert bus.close().complete
    """
    done = run_script(tmp_path, code, METRICBUS_DELIVERY="process")
    assert done.returncode == 0, done.stderr
    assert values(tmp_path / "r", "child") == [1]


def test_load_state_dict_makes_a_copy_join_the_run(tmp_path: Path) -> None:
    code = """
        import multiprocessing
        from metricbus import MetricBus

        def work(bus, state):
            bus.load_state_dict(state)
            bus.log("loss", 4.0, step=2)

        if __name__ == "__main__":
            with MetricBus(id="r", dir=".", sinks="") as bus:
                bus.define("loss", every=2, reduce="mean")
                bus.log("loss", 2.0, step=1)
                state = bus.state_dict()
                context = multiprocessing.get_context("fork")
                worker = context.Process(target=work, args=(bus, state))
                worker.start()
                worker.join()
    """
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    assert 3.0 in values(tmp_path / "r", "loss")


def test_values_dropped_by_a_copy_are_counted(tmp_path: Path) -> None:
    bus = MetricBus(sinks="", dir=tmp_path, strict=True)
    pickled = pickle.dumps(bus)
    bus.close()
    loaded = pickle.loads(pickled)
    for _ in range(3):
        loaded.log("x", 1.0)
    assert loaded.stats().dropped == 3
    with pytest.raises(metricbus.DeliveryError):
        loaded.flush()


def test_process_started_by_an_ended_run_creates_its_own_run(tmp_path: Path) -> None:
    bus = MetricBus(id="r", sinks="", dir=tmp_path)
    inherited = {"METRICBUS_RUN_DIR": os.environ["METRICBUS_RUN_DIR"]}
    bus.close()
    code = """
        from metricbus import MetricBus
        with MetricBus(id="own", dir=".", sinks="csv") as bus:
            bus.log("x", 1.0)
        with MetricBus(dir=".", sinks="csv") as bus:
            bus.log("x", 1.0)
        assert bus.stats().sinks["csv"].delivered == 1
    """
    done = run_script(tmp_path, code, **inherited)
    assert done.returncode == 0, done.stderr
    assert "The run r that started this process has ended" in done.stderr


def test_forked_child_leaves_metric_objects_and_close_hooks_to_its_parent(tmp_path: Path) -> None:
    ended: list[int] = []
    metric = MeanMetric()
    metric.update(torch.tensor(3.0))
    with MetricBus(id="r", dir=tmp_path, sinks="") as bus:
        bus.before_close(lambda: ended.append(os.getpid()))
        bus.log("m", metric)
        child = os.fork()
        if child == 0:
            bus.log("own", 1.0)
            bus.close()
            os._exit(len(ended))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ended == [os.getpid()]
    assert values(tmp_path / "r", "m") == [3.0]
    assert values(tmp_path / "r", "own") == [1.0]
