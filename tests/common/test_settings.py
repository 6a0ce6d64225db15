"""Settings from arguments, environment variables and defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from metricbus import MetricBus
from metricbus._cli.settings_page import settings_page
from metricbus._common.settings import Settings, list_settings, resolve_settings
from metricbus.errors import ConfigError


def test_arguments_override_the_environment_which_overrides_defaults() -> None:
    environ = {"METRICBUS_FLUSH_SECS": "1.5", "METRICBUS_BATCH_SIZE": "7"}
    settings, effective = resolve_settings({"flush_secs": 3}, environ)
    assert (settings.flush_secs, settings.batch_size, settings.queue_size) == (3.0, 7, 65_536)
    sources = {entry.setting.name: entry.source for entry in effective}
    assert sources["flush_secs"] == "argument"
    assert sources["batch_size"] == "environment"
    assert sources["queue_size"] == "default"


def test_every_setting_has_a_variable_a_type_and_a_description() -> None:
    settings = list_settings()
    names = (
        "SINKS DIR PROJECT RUN RUN_ID FLUSH_SECS BATCH_SIZE QUEUE_SIZE OVERFLOW CLOSE_TIMEOUT "
        "STRICT DISABLED RUN_DIR"
    )
    expected = {f"METRICBUS_{name}" for name in names.split(" ")}
    assert expected <= {setting.variable for setting in settings}
    for setting in settings:
        assert setting.type
        assert setting.doc.endswith(".")
        assert hasattr(Settings(), setting.name)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("METRICBUS_FLUSH_SECS", "soon"),
        ("METRICBUS_FLUSH_SECS", "-1"),
        ("METRICBUS_BATCH_SIZE", "0"),
        ("METRICBUS_QUEUE_SIZE", "1.5"),
        ("METRICBUS_OVERFLOW", "explode"),
        ("METRICBUS_STRICT", "perhaps"),
    ],
)
def test_the_error_for_an_invalid_variable_contains_its_value(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}='{text}'"):
        resolve_settings({}, {variable: text})


def test_the_error_for_an_invalid_argument_contains_its_value() -> None:
    with pytest.raises(ConfigError, match="queue_size=-3"):
        MetricBus(queue_size=-3)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("0", False)])
def test_booleans_are_parsed(text: str, value: bool) -> None:
    assert resolve_settings({}, {"METRICBUS_STRICT": text})[0].strict is value


def test_an_empty_variable_counts_as_not_set_except_for_sinks() -> None:
    settings, _ = resolve_settings({}, {"METRICBUS_SINKS": "", "METRICBUS_DIR": ""})
    assert (settings.sinks, settings.dir) == ("", "runs")


def test_secrets_are_masked_in_the_effective_settings() -> None:
    settings, effective = resolve_settings({}, {"METRICBUS_SINKS": "mlflow+http://me:hunter2@host"})
    assert "hunter2" in settings.sinks
    assert "hunter2" not in repr(effective)


def test_the_environment_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "environment.md"
    assert page.read_text() == settings_page(), "run `make docs`"
