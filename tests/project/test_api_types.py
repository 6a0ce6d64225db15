"""What type checkers say of the public API: right uses pass, wrong ones are found."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path
from runpy import run_path
from typing import Any, TypeAlias

import pytest
from mypy import api

from metricbus import MetricBus
from metricbus._bus import scope

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "tests" / "typing"

Found: TypeAlias = AbstractSet[tuple[str, int, str]]
"""Errors by the sample's name, the line, and mypy's code."""

_ERROR = re.compile(r"(?P<path>.+?):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")


@pytest.fixture(scope="session")
def found() -> Found:
    """What `mypy --strict`, run once, has against the samples.

    Its cache is the one of `make types`, which knows numpy already.
    """
    cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--strict"]
    samples = [str(path) for path in sorted(SAMPLES.glob("*.py"))]
    plain = ["--no-pretty", "--hide-error-context", "--no-error-summary", "--no-color-output"]
    out, problems, _ = api.run([*config, *cache, *plain, *samples])
    assert not problems
    matches = [_ERROR.match(line) for line in out.splitlines() if ": note: " not in line]
    assert all(matches), out
    return {(Path(m["path"]).name, int(m["line"]), m["code"]) for m in matches if m}


def expected(sample: str) -> Found:
    """What its comments say: `# E: code`, several with commas between them."""
    return {
        (sample, number, code)
        for number, line in enumerate((SAMPLES / sample).read_text().splitlines(), 1)
        for code in line.partition("# E: ")[2].split(", ")
        if code
    }


def test_right_uses_are_accepted(found: Found) -> None:
    assert {one for one in found if one[0] == "accepted.py"} == set()


def test_wrong_uses_are_rejected_and_for_the_right_reason(found: Found) -> None:
    wanted = expected("rejected.py")
    assert len(wanted) >= 40
    assert {one for one in found if one[0] == "rejected.py"} == wanted


def test_type_checkers_see_the_members_of_the_bus_on_a_scope(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(typing, "TYPE_CHECKING", True)
    seen = dict(_signatures(run_path(scope.__file__)["_BusMembers"]))
    of_bus, own = dict(_signatures(MetricBus)), dict(_signatures(scope.Scope))
    assert {name: signature for name, signature in seen.items() if name not in own} == {
        name: signature for name, signature in of_bus.items() if name not in own
    }


def test_a_scope_defines_by_what_its_bus_takes() -> None:
    taken = list(inspect.signature(MetricBus.define).parameters.values())[2:]
    said = {
        name: kind.__forward_arg__ for name, kind in scope.DefineArguments.__annotations__.items()
    }
    assert said == {parameter.name: parameter.annotation for parameter in taken}


def _signatures(kind: type) -> Iterator[tuple[str, inspect.Signature]]:
    """Those of public methods and properties."""
    for name, member in inspect.getmembers_static(kind):
        function: Any = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, inspect.signature(function)
