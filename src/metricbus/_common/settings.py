"""Every setting, declared once: its name, type, default and meaning.

`METRICBUS_<NAME>` in the environment, the argument of `MetricBus(<name>=…)`, docs/environment.md
and `metricbus doctor` are all made from the fields of `Settings`. Arguments win over the
environment, which wins over the defaults.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, get_type_hints

import msgspec
from msgspec import Meta

from metricbus._common.sink_urls import redact
from metricbus.errors import ConfigError

Hosting: TypeAlias = Literal["auto", "process", "thread", "off"]
Fsync: TypeAlias = Literal["never", "flush", "always"]
ProgressMode: TypeAlias = Literal["auto", "on", "off"]
Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force for one bus."""

    sinks: Annotated[
        str,
        Meta(
            description="Where the metrics go: sink URLs, separated by commas. Empty: the journal "
            "alone."
        ),
    ] = "logging,csv"
    dir: Annotated[
        str, Meta(description="The folder under which each run gets a folder of its own.")
    ] = "runs"
    project: Annotated[
        str | None, Meta(description="The project that runs are grouped by in the backends.")
    ] = None
    run: Annotated[
        str | None, Meta(description="The run's name: a label, which may come again.")
    ] = None
    run_id: Annotated[
        str | None,
        Meta(
            description="The run's id, which is unique and names its folder. Made from name and "
            "time if absent."
        ),
    ] = None
    resume: Annotated[
        Literal["never", "allow", "must"],
        Meta(
            description="Whether to go on with the run of this id or name: never (a new one is "
            'made), if there is one, or in any case. As an argument: `False`, `True`, `"must"`.'
        ),
    ] = "never"
    flush_secs: Annotated[
        Seconds,
        Meta(description="How long a logged value may wait before it is written to the journal."),
    ] = 0.2
    batch_size: Annotated[
        Positive, Meta(description="How many waiting calls have the journal written early.")
    ] = 1024
    flush_bytes: Annotated[
        Positive,
        Meta(
            description="How many bytes of waiting mappings (estimated) have the journal written "
            "early."
        ),
    ] = 1 << 20
    flush_steps: Annotated[
        Positive | None,
        Meta(description="The journal is written early whenever the step has moved by as many."),
    ] = None
    queue_size: Annotated[
        Positive, Meta(description="How many calls may wait; beyond it, `overflow` decides.")
    ] = 65_536
    queue_bytes: Annotated[
        Positive,
        Meta(description="How many bytes (estimated) may wait; beyond it, `overflow` decides."),
    ] = 64 << 20
    overflow: Annotated[
        Literal["block", "drop_newest", "drop_oldest"],
        Meta(
            description="What a full queue does: wait (once, up to `block_secs`, then drop the "
            "newest and count), or drop and count at once."
        ),
    ] = "block"
    block_secs: Annotated[
        Seconds, Meta(description="How long `overflow=block` waits for room in a full queue.")
    ] = 5.0
    close_timeout: Annotated[
        Seconds,
        Meta(description="How many seconds `close()` (and the end of the script) may take."),
    ] = 30.0
    delivery: Annotated[
        Hosting,
        Meta(
            description="Where the sinks work: in a process of their own if one of them is heavy "
            "(TensorBoard, W&B, MLflow), always, never, or not at all: the journal alone."
        ),
    ] = "auto"
    linger_secs: Annotated[
        Seconds,
        Meta(description="How long the delivery process may go on after the run has ended."),
    ] = 3600.0
    fsync: Annotated[
        Fsync,
        Meta(
            description="When the journal is forced onto the disk, against power cuts: never, at "
            "`flush()` and `close()`, or at every write."
        ),
    ] = "never"
    sigterm: Annotated[
        Literal["default", "flush"],
        Meta(
            description="`flush`: SIGTERM has everything journalled first (2 s at most), then does "
            "what it did before."
        ),
    ] = "default"
    ranks: Annotated[
        str,
        Meta(
            pattern=r"^(all|local0|\d+)$",
            title="a rank's number | all | local0",
            description="Which of several ranks write: the one of this number, `all` (each a "
            "segment of its own in one run), or `local0` (one on each machine).",
        ),
    ] = "0"
    sync_secs: Annotated[
        Seconds,
        Meta(description="How long ranks that meet wait for one that does not come."),
    ] = 300.0
    progress: Annotated[
        ProgressMode,
        Meta(
            description="Whether `steps()` and `epochs()` show progress bars where their own "
            "`progress=` is left out: in a terminal or a notebook if tqdm is installed, always, or "
            "never. `off` wins over `progress=True`, too."
        ),
    ] = "auto"
    strict: Annotated[
        bool,
        Meta(
            description="Whether `flush()` and `close()` raise when something was dropped, "
            "rejected or left behind."
        ),
    ] = False
    disabled: Annotated[
        bool, Meta(description="Whether every bus is switched off: nothing is logged or written.")
    ] = False
    run_dir: Annotated[
        str | None,
        Meta(
            description="The folder of a run to join. Set by a run for the processes that it "
            "starts; not for you to set, as a rule."
        ),
    ] = None


class SettingInfo(NamedTuple):
    """One field of `Settings` as people see it."""

    name: str
    variable: str
    type: str
    default: object
    doc: str


class EffectiveSetting(NamedTuple):
    """A setting's value and where it came from; secrets are masked."""

    setting: SettingInfo
    value: object
    source: Literal["argument", "environment", "default"]


def env_variable(name: str) -> str:
    """The environment variable for a setting."""
    return f"METRICBUS_{name.upper()}"


def list_settings() -> list[SettingInfo]:
    """All settings in the order of their declaration."""
    hints = get_type_hints(Settings, include_extras=True)
    return [
        SettingInfo(
            name=field.name,
            variable=env_variable(field.name),
            type=describe_type(hints[field.name]),
            default=field.default,
            doc=hints[field.name].__metadata__[-1].description,
        )
        for field in msgspec.structs.fields(Settings)
    ]


def resolve_settings(
    arguments: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> tuple[Settings, list[EffectiveSetting]]:
    """The settings in force, and for each where it comes from.

    An argument of None counts as not given. Raises `ConfigError` for a value that a setting cannot
    have, and names the argument or the variable.
    """
    hints = get_type_hints(Settings, include_extras=True)
    chosen: dict[str, Any] = {}
    told: list[EffectiveSetting] = []
    for setting in list_settings():
        name, value = setting.name, setting.default
        source: Literal["argument", "environment", "default"] = "default"
        if arguments.get(name) is not None:
            source, value = "argument", _convert(arguments[name], hints[name], f"{name}=")
        elif environ.get(setting.variable) or (name == "sinks" and setting.variable in environ):
            source = "environment"
            value = _convert(environ[setting.variable], hints[name], f"{setting.variable}=")
        chosen[name] = value
        told.append(EffectiveSetting(setting, redact(value) if isinstance(value, str) else value, source))
    return Settings(**chosen), told


def read_env_setting(name: str, environ: Mapping[str, str] = os.environ) -> Any:
    """One setting as a bus that is given no arguments would have it; `ConfigError` as there."""
    (setting,) = (one for one in list_settings() if one.name == name)
    text = environ.get(setting.variable)
    if not text:
        return setting.default
    hint = get_type_hints(Settings, include_extras=True)[name]
    return _convert(text, hint, f"{setting.variable}=")


def reference() -> str:
    """The text of docs/environment.md."""
    lines = [
        "# Environment",
        "",
        "Every setting can be given as an argument of `MetricBus(...)` and `metricbus.configure"
        "(...)` or as an",
        "environment variable. Arguments win over the environment, which wins over the defaults.",
        "`metricbus doctor` prints what is in force and where it comes from. (`run_id` is the",
        "argument `id`; `run_dir` has no argument.)",
        "",
        "This page is made from the declarations in `src/metricbus/config.py` by `make docs`.",
        "",
        "| variable | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for setting in list_settings():
        default = "" if setting.default is None else f"`{setting.default}`"
        kind = setting.type.replace("|", "\\|")
        lines.append(f"| `{setting.variable}` | {kind} | {default} | {setting.doc} |")
    lines += [
        "",
        "A variable that is set to the empty text counts as not set, but for `METRICBUS_SINKS`,",
        "where it means that the journal alone is written. How to write a sink's URL is in",
        "[sinks.md](sinks.md).",
        "",
    ]
    return "\n".join(lines)


def _convert(value: object, hint: Any, what: str) -> Any:
    try:
        return msgspec.convert(value, hint, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        why = "" if "matching regex" in str(error) else f"{error}; "
        raise ConfigError(f"{redact(f'{what}{value!r}')}: {why}expected {describe_type(hint)}") from None


def describe_type(hint: Any) -> str:
    """A type as it is told to people."""
    for meta in getattr(hint, "__metadata__", ()):
        if isinstance(meta, Meta) and meta.title:
            return meta.title
    kind = hint.__origin__ if hasattr(hint, "__metadata__") else hint
    if kind is bool:
        return "1 or 0 (true or false)"
    options = [arg for arg in getattr(kind, "__args__", ()) if arg is not type(None)]
    if getattr(kind, "__origin__", None) is Literal:
        return " | ".join(options)
    if options:
        return describe_type(options[0])
    return str(kind.__name__)
