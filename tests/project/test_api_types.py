"""Type checking of the public API: mypy accepts correct uses and rejects incorrect ones."""

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

Errors: TypeAlias = AbstractSet[tuple[str, int, str]]
"""Type errors as tuples of the sample's file name, the line number, and mypy's error code."""

_ERROR = re.compile(r"(?P<path>.+?):(?P<line>\d+): error: .*\[(?P<code>[a-z-]+)\]$")


@pytest.fixture(scope="session")
def mypy_errors() -> Errors:
    """The errors of one run of `mypy --strict` over the samples.

    The run shares its cache with `make types`, which has already analyzed numpy.
    """
    cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--strict"]
    samples = [str(path) for path in sorted(SAMPLES.glob("*.py"))]
    format_options = [
        "--no-pretty",
        "--hide-error-context",
        "--no-error-summary",
        "--no-color-output",
    ]
    out, stderr, _ = api.run([*config, *cache, *format_options, *samples])
    assert not stderr
    matches = [_ERROR.match(line) for line in out.splitlines() if ": note: " not in line]
    assert all(matches), out
    return {(Path(m["path"]).name, int(m["line"]), m["code"]) for m in matches if m}


def expected_errors(sample: str) -> Errors:
    """Parse the errors that a sample expects from its comments: `# E: code, other-code`."""
    return {
        (sample, number, code)
        for number, line in enumerate((SAMPLES / sample).read_text().splitlines(), 1)
        for code in line.partition("# E: ")[2].split(", ")
        if code
    }


def test_correct_uses_are_accepted(mypy_errors: Errors) -> None:
    assert {error for error in mypy_errors if error[0] == "accepted.py"} == set()


def test_incorrect_uses_are_rejected_with_the_expected_code(mypy_errors: Errors) -> None:
    expected = expected_errors("rejected.py")
    assert len(expected) >= 40
    assert {error for error in mypy_errors if error[0] == "rejected.py"} == expected


def test_a_scope_declares_the_members_of_its_bus_to_type_checkers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(typing, "TYPE_CHECKING", True)
    declared = dict(_signatures(run_path(scope.__file__)["_BusMembers"]))
    bus_members, own = dict(_signatures(MetricBus)), dict(_signatures(scope.Scope))
    assert {name: signature for name, signature in declared.items() if name not in own} == {
        name: signature for name, signature in bus_members.items() if name not in own
    }


def test_define_has_the_same_arguments_on_a_scope_as_on_a_bus() -> None:
    parameters = list(inspect.signature(MetricBus.define).parameters.values())[2:]
    declared = {
        name: kind.__forward_arg__ for name, kind in scope.DefineArguments.__annotations__.items()
    }
    assert declared == {parameter.name: parameter.annotation for parameter in parameters}


def _signatures(kind: type) -> Iterator[tuple[str, inspect.Signature]]:
    """Yield the name and signature of each public method and property."""
    for name, member in inspect.getmembers_static(kind):
        function: Any = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, inspect.signature(function)
