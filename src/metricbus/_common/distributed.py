"""The rank of this process, and exchange of values between ranks.

The rank is looked up whenever it is needed: in `torch.distributed` once it is initialized, before
that in the launcher's environment variables. `log()` and `close()` call nothing here. Ranks wait
for each other only in calls that every rank makes: `bus.sync()`, `bus.end_epoch()` and `agree()`.

Before a collective, each rank registers its arrival in the store of `torch.distributed`. If a rank
never arrives, the result is an error that names it instead of a collective that hangs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from metricbus._compat.torch import default_store
from metricbus.errors import ConfigError, RankError

T = TypeVar("T")

SYNC_SECS = 300.0
"""Default time to wait for the other ranks, in seconds."""

# Environment variables of launchers: global rank, number of ranks, rank on this machine.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
)
_RUN_IDS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
_NO_RUN_ID = ("", "none")  # "none" is what torchrun sets without an id
_LAUNCH = (
    *_RUN_IDS,
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "MASTER_ADDR",
    "MASTER_PORT",
)

_ALL_ARRIVED = "all"
_MIN_PAUSE, _MAX_PAUSE = 0.0005, 0.05  # seconds between two checks of the store

_sync_counts: dict[str, int] = {}  # number of synchronizations so far, by group


class Rank(NamedTuple):
    """The rank of this process: its `number` among `size`, and its `local` rank on this machine."""

    number: int = 0
    size: int = 1
    local: int = 0


def current_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """Return the rank of this process, as far as it is known at this point."""
    launched = _launcher_rank(environ)
    if (distributed := _distributed()) is None:
        return launched
    number = distributed.get_rank()
    is_same = launched.number == number
    local = launched.local if is_same else _int_variable(environ, "LOCAL_RANK", number)
    return Rank(number, distributed.get_world_size(), local)


def is_writing_rank(ranks: str, rank: Rank) -> bool:
    """Check whether `rank` writes under the setting `ranks`: a number, `all` or `local0`."""
    if ranks == "all":
        return True
    if ranks == "local0":
        return rank.local == 0
    return rank.number == int(ranks)


def launcher_run_id(environ: Mapping[str, str] = os.environ) -> str:
    """Return the id that the launcher gives to all ranks of a launch.

    torchrun generates a new id for each launch unless it is given one. Raises `ConfigError` if
    there is no id.
    """
    for variable in _RUN_IDS:
        if environ.get(variable, "") not in _NO_RUN_ID:
            return environ[variable]
    raise ConfigError(
        "several ranks write one run, but they have no id in common; pass id=, set "
        "METRICBUS_RUN_ID, or launch with torchrun --rdzv-id=NAME or --standalone"
    )


def launch_key(environ: Mapping[str, str] = os.environ) -> str:
    """Return a text that distinguishes this launch from others, even from ones with the same id."""
    return "/".join(environ[name] for name in _LAUNCH if name in environ)


def agree(value: T, *, group: Any = None, timeout: float = SYNC_SECS) -> T:
    """Return, on every rank of the group, the value that its first rank passed.

    Use it for decisions that all ranks must make alike, such as stopping early. Every rank of the
    group must call it the same number of times. Without other ranks it returns a copy of `value`.

    `value` is made of dicts, lists, strings, numbers, booleans and None. It is sent as JSON, so
    tuples arrive as lists. `group` is a process group of `torch.distributed`, by default all ranks.
    `timeout` limits the wait for the other ranks, in seconds.

    Raises `RankError` if a rank does not call `agree()` in time, has died, or is in another call
    that synchronizes ranks; if this rank is not in `group`; or if a launcher started several ranks
    and `torch.distributed` is not initialized.
    """
    first: T = next(iter(gather(value, "agree()", group=group, timeout=timeout).values()))
    return first


def gather(
    value: Any, call: str, *, group: Any = None, timeout: float = SYNC_SECS
) -> dict[int, Any]:
    """Return the values of all ranks of the group, by rank; every rank of it must call this.

    The values consist of dicts, lists, strings and numbers, and are sent as JSON, so another rank's
    data cannot execute code. `call` names the calling function in errors and must be the same on
    all ranks. Raises `RankError`, naming the ranks that did not arrive within `timeout` seconds.
    """
    # The json module, because msgspec limits integers to 64 bits and exact sums may have more.
    payload = json.dumps([call, value])
    distributed = _distributed()
    if distributed is None:
        rank = current_rank()
        if rank.size > 1:
            raise RankError(
                f"{call} synchronizes {rank.size} ranks according to the launcher, but "
                "torch.distributed is not initialized; call "
                "torch.distributed.init_process_group() first"
            )
        return {rank.number: json.loads(payload)[1]}
    members = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    own = distributed.get_rank()
    if own not in members:
        raise RankError(f"{call}: rank {own} is not in the group of {_describe_ranks(members)}")
    if len(members) == 1:
        return {own: json.loads(payload)[1]}
    _wait_for_all(distributed, members, own, call, timeout)
    gathered: list[Any] = [None] * len(members)
    try:
        distributed.all_gather_object(gathered, payload, group=group)
    except RuntimeError as error:  # torch raises it for every failure of a collective
        raise RankError(f"{call}: a rank died during the synchronization: {error}") from error
    decoded = {rank: json.loads(text) for rank, text in zip(members, gathered, strict=True)}
    for rank, (other_call, _) in decoded.items():
        if other_call != call:
            raise RankError(f"rank {own} called {call} while rank {rank} called {other_call}")
    return {rank: value for rank, (_, value) in decoded.items()}


def _wait_for_all(
    distributed: Any, members: list[int], own: int, call: str, timeout: float
) -> None:
    """Wait until all members have registered in the store.

    The last member to arrive sets the key `result` to `_ALL_ARRIVED`. A member that times out sets
    it to the missing ranks, so that a late one fails too instead of waiting for the others.
    """
    store = default_store()
    if store is None:
        return
    group = ",".join(map(str, members))
    number = _sync_counts[group] = _sync_counts.get(group, 0) + 1
    prefix = f"metricbus/{group}/{number}"
    try:
        store.set(f"{prefix}/{own}", call)
        if store.add(f"{prefix}/arrived", 1) == len(members):
            store.compare_set(f"{prefix}/result", "", _ALL_ARRIVED)
        missing = _missing_ranks(store, prefix, members, timeout)
    except RuntimeError as error:
        raise RankError(f"{call}: rank 0, which hosts torch.distributed's store, died") from error
    if own in missing:
        raise RankError(f"{call}: the other ranks had stopped waiting when rank {own} arrived")
    if missing:
        raise RankError(
            f"{call}: {_describe_ranks(missing)} did not arrive within {timeout:g} s (expected "
            f"{_describe_ranks(members)}). Every rank must make this call equally often; each turn "
            "of bus.epochs() ends with one. To wait longer, pass timeout= or set "
            "METRICBUS_SYNC_SECS"
        )
    if own == members[0]:
        # All members have arrived here, so none needs the previous synchronization's keys.
        _delete_keys(store, f"metricbus/{group}/{number - 1}", members)


def _missing_ranks(store: Any, prefix: str, members: list[int], timeout: float) -> list[int]:
    """Wait for the result; return the ranks that had not arrived when it was set."""
    key = f"{prefix}/result"
    deadline, pause = time.monotonic() + timeout, _MIN_PAUSE
    while not store.check([key]):  # store.wait() would block signal handlers
        if time.monotonic() > deadline:
            missing = [str(rank) for rank in members if not store.check([f"{prefix}/{rank}"])]
            store.compare_set(key, "", ",".join(missing) or _ALL_ARRIVED)
            break
        time.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE)
    result = store.get(key)
    return [] if result == _ALL_ARRIVED.encode() else [int(rank) for rank in result.split(b",")]


def _delete_keys(store: Any, prefix: str, members: list[int]) -> None:
    for key in (*members, "arrived", "result"):
        try:
            store.delete_key(f"{prefix}/{key}")
        except RuntimeError:  # not every store supports it
            return


def _describe_ranks(ranks: list[int]) -> str:
    numbers = ", ".join(map(str, ranks[:20])) + (", …" if len(ranks) > 20 else "")
    return f"rank {numbers}" if len(ranks) == 1 else f"ranks {numbers}"


def _distributed() -> Any:
    """Return torch.distributed if it is imported and initialized, else None."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available():
        return None
    return distributed if distributed.is_initialized() else None


def _launcher_rank(environ: Mapping[str, str]) -> Rank:
    for number, size, local in _LAUNCHERS:
        if number in environ:
            return Rank(
                _int_variable(environ, number, 0),
                _int_variable(environ, size, 1),
                _int_variable(environ, local, 0),
            )
    return Rank()


def _int_variable(environ: Mapping[str, str], variable: str, default: int) -> int:
    """Return an environment variable as an int; `default` if it is absent or not an integer."""
    try:
        return int(environ[variable])
    except (KeyError, ValueError):
        return default
