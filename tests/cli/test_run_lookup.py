"""How the commands are told which run is meant."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner, Result

from metricbus import MetricBus
from metricbus._cli.app import app


def made(name: str, id: str) -> str:
    with MetricBus(run=name, id=id, sinks="") as bus:
        bus.log("loss", 0.5)
    return id


def show(run: str) -> Result:
    return CliRunner().invoke(app, ["show", run, "--json"])


def shown(run: str) -> str:
    done = show(run)
    assert done.exit_code == 0, done.stderr
    return str(json.loads(done.stdout)["run"]["id"])


def test_by_its_folder() -> None:
    made("digits", "one")
    assert shown("runs/one") == "one"


def test_by_its_id() -> None:
    made("digits", "one")
    assert shown("one") == "one"


def test_by_its_name_it_is_the_newest() -> None:
    made("digits", "b-first")
    made("digits", "a-second")
    made("others", "c-third")
    assert shown("digits") == "a-second"


def test_by_how_its_id_begins_if_no_other_begins_so() -> None:
    made("digits", "abc-1")
    made("digits", "abd-1")
    assert shown("abc") == "abc-1"


def test_an_id_comes_before_a_name_and_a_name_before_a_beginning() -> None:
    made("x", "digits")
    made("digits", "other")
    made("dig", "last")
    assert shown("digits") == "digits"
    assert shown("dig") == "last"


def test_a_beginning_of_several_is_not_guessed() -> None:
    for number in range(5):
        made("digits", f"abc-{number}")
    done = show("abc")
    assert done.exit_code == 2
    assert "'abc' is the beginning of 5 runs: abc-0, abc-1, abc-2 and 2 more" in done.stderr


def test_the_folder_of_the_runs_is_that_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_DIR", "elsewhere")
    made("digits", "one")
    assert shown("digits") == "one"


def test_names_like_it_are_told() -> None:
    made("digits-cnn", "one")
    done = show("digits-cmm")
    assert done.exit_code == 2
    assert "there is no run 'digits-cmm'; did you mean digits-cnn?" in done.stderr


def test_a_path_is_no_name() -> None:
    made("digits", "one")
    assert show("elsewhere/digits").exit_code == 2
