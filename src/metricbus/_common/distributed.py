"""Which of several training processes this is, and how they meet.

The rank is looked for when it is needed: torch.distributed knows it once it is initialised, before
that the launcher's variables do. Nothing here is called by `log()` or `close()`: ranks meet only
where every rank calls for it, in `bus.sync()`, `bus.end_epoch()` and `agree()`.

Before a collective, each rank leaves word in torch.distributed's own store that it has come. So a
rank that never comes is an error that names it, and not a collective that hangs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from metricbus.errors import ConfigError, RankError

T = TypeVar("T")

SYNC_SECS = 300.0
"""How long the others are waited for, if nothing else is said."""

_LAUNCHERS = (  # the rank among all; how many there are; the rank on this machine
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK"),
)
_RUN_IDS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")
_LAUNCH = (
    *_RUN_IDS,
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_NOBODY = ("", "none")  # what torchrun calls a run without an id

_OPEN = "open"
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05  # seconds between looks at the door

_meetings: dict[str, int] = {}  # of each group so far


class Rank(NamedTuple):
    """The number of this process among `size`; `local` is the one on this machine."""

    number: int = 0
    size: int = 1
    local: int = 0


def find_rank(environ: Mapping[str, str] = os.environ) -> Rank:
    """Which rank this process is, as far as can be known now."""
    known = _of_launcher(environ)
    if (distributed := _distributed()) is not None:
        number = distributed.get_rank()
        local = known.local if known.number == number else _whole(environ, "LOCAL_RANK", number)
        return Rank(number, distributed.get_world_size(), local)
    return known


def writes(ranks: str, rank: Rank) -> bool:
    """Whether this rank writes under the setting `ranks`: a number, `all` or `local0`."""
    if ranks == "all":
        return True
    if ranks == "local0":
        return rank.local == 0
    return rank.number == int(ranks)


def launchers_id(environ: Mapping[str, str] = os.environ) -> str:
    """The id that all ranks of this launch have from who launched them.

    torchrun makes up another one for each launch, unless it was given one. Raises `ConfigError`
    where there is none.
    """
    for variable in _RUN_IDS:
        if environ.get(variable, "") not in _NOBODY:
            return environ[variable]
    raise ConfigError(
        "several ranks are to write one run, and have no id in common; give one by id= or "
        "METRICBUS_RUN_ID, or launch with torchrun --rdzv-id=NAME or --standalone"
    )


def launch(environ: Mapping[str, str] = os.environ) -> str:
    """What tells this launch from others that may have had the same id."""
    return "/".join(environ[name] for name in _LAUNCH if name in environ)


def agree(value: T, *, group: Any = None, timeout: float = SYNC_SECS) -> T:
    """What the first rank of the group says, on every rank; all of them call this.

    The value itself where there is one rank. Raises `RankError` if one does not come in time.
    """
    first: T = next(iter(gather(value, "agree()", group=group, timeout=timeout).values()))
    return first


def gather(
    brought: Any, what: str, *, group: Any = None, timeout: float = SYNC_SECS
) -> dict[int, Any]:
    """What every rank of the group brings, by rank; all of them call this, with the same `what`.

    It is made of dicts, lists, texts and numbers, and travels as JSON: a stranger's words run no
    code. Raises `RankError` that names the ranks that did not come within `timeout` seconds.
    """
    payload = json.dumps([what, brought])  # msgspec's integers end at 64 bits, those of sums do not
    distributed = _distributed()
    if distributed is None:
        rank = find_rank()
        if rank.size > 1:
            raise RankError(
                f"{what} has {rank.size} ranks meet, by the launcher's word, but torch.distributed "
                "is not initialised; call torch.distributed.init_process_group() first"
            )
        return {rank.number: json.loads(payload)[1]}
    members = distributed.get_process_group_ranks(group or distributed.group.WORLD)
    own = distributed.get_rank()
    if own not in members:
        raise RankError(f"{what}: rank {own} is not in the group of {_in_words(members)}")
    if len(members) == 1:
        return {own: json.loads(payload)[1]}
    _come_together(distributed, members, own, what, timeout)
    found: list[Any] = [None] * len(members)
    try:
        distributed.all_gather_object(found, payload, group=group)
    except RuntimeError as error:  # torch's word for whatever goes wrong on the way
        raise RankError(f"{what}: a rank died while the ranks met: {error}") from error
    said = {rank: json.loads(one) for rank, one in zip(members, found, strict=True)}
    for rank, (other, _) in said.items():
        if other != what:
            raise RankError(f"rank {own} met the others by {what}, rank {rank} by {other}")
    return {rank: one for rank, (_, one) in said.items()}


def _come_together(
    distributed: Any, members: list[int], own: int, what: str, timeout: float
) -> None:
    """Waits until all have left word in the store; the last one to come opens the door.

    Who has waited in vain shuts it, so that who comes late does not go on to meet nobody.
    """
    from torch.distributed.distributed_c10d import _get_default_store

    store = _get_default_store()
    group = ",".join(map(str, members))
    number = _meetings[group] = _meetings.get(group, 0) + 1
    place = f"metricbus/{group}/{number}"
    try:
        store.set(f"{place}/{own}", what)
        if store.add(f"{place}/come", 1) == len(members):
            store.compare_set(f"{place}/door", "", _OPEN)
        missing = _missing_at(store, place, members, timeout)
    except RuntimeError as error:
        raise RankError(
            f"{what}: the process that keeps torch.distributed's store, rank 0, has died"
        ) from error
    if own in missing:
        raise RankError(f"{what}: the other ranks had given up waiting when rank {own} came")
    if missing:
        raise RankError(
            f"{what}: {_in_words(missing)} did not come within {timeout:g} s, of "
            f"{_in_words(members)}. Every rank calls it, as many times as the others (the end of "
            "each turn of bus.epochs() is a call, too); to wait longer, give timeout= or "
            "METRICBUS_SYNC_SECS"
        )
    if own == members[0]:
        _sweep(store, f"metricbus/{group}/{number - 1}", members)


def _missing_at(store: Any, place: str, members: list[int], timeout: float) -> list[int]:
    """Waits at the door; those that had not come when it was shut, none if it was opened."""
    door = f"{place}/door"
    deadline, pause = time.monotonic() + timeout, _SHORTEST_PAUSE
    while not store.check([door]):  # its own wait() would hold up signals all the while
        if time.monotonic() > deadline:
            missing = [str(rank) for rank in members if not store.check([f"{place}/{rank}"])]
            store.compare_set(door, "", ",".join(missing) or _OPEN)
            break
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
    said = store.get(door)
    return [] if said == _OPEN.encode() else [int(rank) for rank in said.split(b",")]


def _sweep(store: Any, place: str, members: list[int]) -> None:
    """A meeting that is over needs no keys: all have come to the next one."""
    for key in (*members, "come", "door"):
        try:
            store.delete_key(f"{place}/{key}")
        except RuntimeError:  # not every store can
            return


def _in_words(ranks: list[int]) -> str:
    numbers = ", ".join(map(str, ranks[:20])) + (", …" if len(ranks) > 20 else "")
    return f"rank {numbers}" if len(ranks) == 1 else f"ranks {numbers}"


def _distributed() -> Any:
    """torch.distributed, if somebody has initialised it; who never imported it has not."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available():
        return None
    return distributed if distributed.is_initialized() else None


def _of_launcher(environ: Mapping[str, str]) -> Rank:
    for number, size, local in _LAUNCHERS:
        if number in environ:
            return Rank(
                _whole(environ, number, 0), _whole(environ, size, 1), _whole(environ, local, 0)
            )
    return Rank()


def _whole(environ: Mapping[str, str], variable: str, otherwise: int) -> int:
    """A variable as a whole number; what cannot be one is not a launcher's."""
    try:
        return int(environ[variable])
    except (KeyError, ValueError):
        return otherwise
