"""Parsing of sink URLs, their canonical form, and masking of secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricbus._common.sink_urls import parse_sink, parse_sinks, redact
from metricbus.errors import ConfigError


def test_a_list_of_sinks_is_parsed() -> None:
    sinks = parse_sinks(
        "logging, csv,tensorboard:tb?flush_secs=5,wandb://team/project?mode=offline,"
        "mlflow+http://host:5000?experiment=x"
    )
    assert [(sink.name, sink.location) for sink in sinks] == [
        ("logging", ""),
        ("csv", ""),
        ("tensorboard", "tb"),
        ("wandb", "team/project"),
        ("mlflow", "http://host:5000"),
    ]
    assert sinks[2].options == {"flush_secs": ["5"]}


def test_repeated_options_are_lists_and_commas_are_unescaped() -> None:
    sink = parse_sink("csv:a%2Cb?include=train/*&include=val/*")
    assert sink.location == "a,b"
    assert sink.options == {"include": ["train/*", "val/*"]}


@pytest.mark.parametrize("text", ["", "  "])
def test_blank_text_means_no_sinks(text: str) -> None:
    assert parse_sinks(text) == []


@pytest.mark.parametrize(
    "text",
    ["CSV", "://x", "csv:", "1csv", "mlflow+http:", "csv?a", "csv ?x=1", "mlflow+"],
)
def test_a_malformed_url_raises(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a sink URL"):
        parse_sinks(text)


@pytest.mark.parametrize("text", ["csv,", ",csv", "csv,,logging"])
def test_an_extra_comma_raises(text: str) -> None:
    with pytest.raises(ConfigError, match="an extra comma"):
        parse_sinks(text)


def test_the_canonical_form_is_independent_of_the_order_of_options() -> None:
    first, second = (
        parse_sink("csv:x?every=2&flush_secs=1"),
        parse_sink("csv:x?flush_secs=1&every=2"),
    )
    assert first.canonical == second.canonical
    assert first.key == second.key
    assert parse_sink("csv:y?every=2&flush_secs=1").key != first.key


def test_the_key_is_independent_of_the_pace_options() -> None:
    assert parse_sink("csv?flush_secs=1&batch_size=5").key == parse_sink("csv").key
    assert parse_sink("csv?every=5").key != parse_sink("csv").key


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1))
def test_secrets_are_masked(secret: str) -> None:
    secret = f"hunter2{secret}"
    for text in (
        f"mlflow+http://me:{secret}@host:5000/x?experiment=e",
        f"mlflow+http://me:a@{secret}@host",
        f"wandb://team/project?api_key={secret}&mode=offline",
        f"csv?password={secret}",
        f"MLFLOW+http://me:{secret}@host",
    ):
        assert secret not in redact(text)
        assert secret not in redact(f"could not reach '{text}': refused")
    sink = parse_sink(f"mlflow+http://me:{secret}@host?token={secret}")
    assert secret not in repr(sink) + sink.canonical + sink.key
    assert "host" in sink.canonical


def test_redaction_preserves_everything_else() -> None:
    assert redact("mlflow+http://a:b@h:1?x=1") == "mlflow+http://***@h:1?x=1"
    assert redact("tensorboard:logs?flush_secs=5") == "tensorboard:logs?flush_secs=5"
