"""Ways to refer to a run on the command line."""

from __future__ import annotations

import pytest

from metricbus import MetricBus
from tests.helpers.cli_runs import invoke, invoke_json


def make_named_run(name: str, id: str) -> str:
    with MetricBus(name=name, id=id, sinks="") as bus:
        bus.log("loss", 0.5)
    return id


def found_id(run: str) -> str:
    return str(invoke_json("show", run)["run"]["id"])


def test_finds_a_run_by_its_folder() -> None:
    make_named_run("digits", "one")
    assert found_id("runs/one") == "one"


def test_finds_a_run_by_its_id() -> None:
    make_named_run("digits", "one")
    assert found_id("one") == "one"


def test_finds_the_newest_run_with_a_name() -> None:
    make_named_run("digits", "b-first")
    make_named_run("digits", "a-second")
    make_named_run("others", "c-third")
    assert found_id("digits") == "a-second"


def test_finds_a_run_by_a_unique_prefix_of_its_id() -> None:
    make_named_run("digits", "abc-1")
    make_named_run("digits", "abd-1")
    assert found_id("abc") == "abc-1"


def test_prefers_an_id_to_a_name_and_a_name_to_a_prefix() -> None:
    make_named_run("x", "digits")
    make_named_run("digits", "other")
    make_named_run("dig", "last")
    assert found_id("digits") == "digits"
    assert found_id("dig") == "last"


def test_rejects_an_ambiguous_prefix() -> None:
    for number in range(5):
        make_named_run("digits", f"abc-{number}")
    done = invoke("show", "abc")
    assert done.exit_code == 2
    assert "'abc' is a prefix of 5 runs: abc-0, abc-1, abc-2 and 2 more" in done.stderr


def test_looks_in_the_folder_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_DIR", "elsewhere")
    make_named_run("digits", "one")
    assert found_id("digits") == "one"


def test_an_unknown_name_suggests_a_similar_one() -> None:
    make_named_run("digits-cnn", "one")
    done = invoke("show", "digits-cmm")
    assert done.exit_code == 2
    assert "There is no run 'digits-cmm'. Did you mean digits-cnn?" in done.stderr


def test_does_not_look_up_a_path_as_a_name() -> None:
    make_named_run("digits", "one")
    assert invoke("show", "elsewhere/digits").exit_code == 2
