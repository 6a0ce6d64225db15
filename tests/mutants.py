"""Mutation testing: which small faults in the core does no test notice?

    python -m tests.mutants [MODULE ...]

cosmic-ray puts one fault at a time into a copy of the repository and runs the module's tests.
`[tool.mutants]` in pyproject.toml has the modules, each with its tests, and the kinds of faults
that are left out. A fault that makes the tests hang counts as noticed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mutants"]
TESTS: dict[str, list[str]] = SETTINGS["tests"]
"""The test files of each module, which is a path below `src/metricbus` without `.py`."""

_IGNORED = shutil.ignore_patterns(".*", "site", "dist", "runs", "data", "__pycache__")


def main(names: Sequence[str]) -> None:
    """Test the modules whose path contains one of the names; all of them if there are none."""
    chosen = [module for module in TESTS if any(name in module for name in names or [""])]
    if not chosen:
        raise SystemExit(f"no module matches {' '.join(names)}; there are: {', '.join(TESTS)}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "repository"
        shutil.copytree(ROOT, copy, ignore=_IGNORED)
        for module in chosen:
            _test_module(module, copy)


def _test_module(module: str, copy: Path) -> None:
    config, session = copy.with_name("config.toml"), copy.with_name("session.sqlite")
    session.unlink(missing_ok=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command = [*pytest, *TESTS[module]]
    started = time.monotonic()
    _run(copy, *command)  # without a fault
    timeout = 30 + 5 * (time.monotonic() - started)
    config.write_text(
        f"""
        [cosmic-ray]
        module-path = {json.dumps(f"src/metricbus/{module}.py")}
        test-command = {json.dumps(" ".join(command))}
        timeout = {timeout:.0f}
        excluded-modules = []
        distributor.name = "local"
        filters.operators-filter.exclude-operators = {json.dumps(SETTINGS["left-out"])}
        """
    )
    tools = Path(sys.executable).parent
    _run(copy, tools / "cosmic-ray", "init", config, session)
    _run(copy, tools / "cr-filter-operators", session, config)
    _run(copy, tools / "cosmic-ray", "exec", config, session)
    faults = unnoticed = 0
    for mutation, result in _results(_run(copy, tools / "cosmic-ray", "dump", session)):
        faults += 1
        if result["test_outcome"] != "killed":
            unnoticed += 1
            lines = [line for line in result["diff"].splitlines() if line[:1] in "+-"][3:]
            place = f"src/metricbus/{module}.py:{mutation['start_pos'][0]}"
            print(f"{place}: {mutation['operator_name']}", *lines, sep="\n    ")
    print(f"{module}: {faults - unnoticed} of {faults} faults were noticed", flush=True)


def _results(dump: str) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Yield each fault that was tried with its result."""
    for line in dump.splitlines():
        item, result = json.loads(line)
        if result and result["worker_outcome"] != "skipped":
            yield item["mutations"][0], result


def _run(copy: Path, *command: str | Path) -> str:
    path = os.pathsep.join([str(copy / "src"), str(copy)])
    result = subprocess.run(
        command,
        cwd=copy,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(f"{result.stdout}\n{' '.join(map(str, command))} failed")
    return result.stdout


if __name__ == "__main__":
    main(sys.argv[1:])
