"""All settings, each declared once: name, type, default and meaning.

The fields of `Settings` define the environment variables `METRICBUS_<NAME>`, the arguments of
`MetricBus`, docs/environment.md and the output of `metricbus doctor`. Arguments override
environment variables, which override defaults.
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
Unloggable: TypeAlias = Literal["raise", "warn", "ignore"]
Overflow: TypeAlias = Literal["block", "drop_newest", "drop_oldest"]
Fsync: TypeAlias = Literal["never", "flush", "always"]
ProgressMode: TypeAlias = Literal["auto", "on", "off"]
Positive = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(ge=0)]


def _doc(text: str) -> Meta:
    return Meta(description=text)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one bus."""

    sinks: Annotated[
        str, _doc("Sink URLs, separated by commas. Empty: only the journal is written.")
    ] = "logging,csv"
    dir: Annotated[str, _doc("The folder in which run folders are created.")] = "runs"
    project: Annotated[str | None, _doc("The project under which backends group the run.")] = None
    run: Annotated[
        str | None, _doc("The name of the run: a label that several runs may share.")
    ] = None
    run_id: Annotated[
        str | None,
        _doc(
            "The id of the run, which is unique and names its folder. By default it "
            "is made of the name and the time."
        ),
    ] = None
    resume: Annotated[
        Literal["never", "allow", "must"],
        _doc(
            "Whether to resume the run with this id or name: never (create a new "
            "run), if it exists, or always (it is an error if it does not exist). As an argument: "
            '`False`, `True`, `"must"`.'
        ),
    ] = "never"
    flush_secs: Annotated[
        Seconds,
        _doc("How long a logged value may wait before it is written to the journal, in seconds."),
    ] = 0.2
    batch_size: Annotated[
        Positive, _doc("The number of queued calls at which the journal is written early.")
    ] = 1024
    flush_bytes: Annotated[
        Positive,
        _doc(
            "The estimated size of queued mappings, in bytes, at which the journal is "
            "written early."
        ),
    ] = 1 << 20
    flush_steps: Annotated[
        Positive | None, _doc("The number of steps after which the journal is written early.")
    ] = None
    queue_size: Annotated[
        Positive, _doc("The maximum number of queued calls; `overflow` applies beyond it.")
    ] = 65_536
    queue_bytes: Annotated[
        Positive,
        _doc("The maximum estimated size of the queue, in bytes; `overflow` applies beyond it."),
    ] = 64 << 20
    overflow: Annotated[
        Overflow,
        _doc(
            "What a full queue does: wait for room (up to `block_secs` once, then "
            "drop the newest call), or drop a call at once. Dropped values are counted."
        ),
    ] = "block"
    unloggable: Annotated[
        Unloggable,
        _doc(
            "What `log()` does with a value that cannot be logged, such as a text or None in a "
            "mapping: raise an error, leave it out with one warning per name, or leave it out."
        ),
    ] = "raise"
    block_secs: Annotated[
        Seconds, _doc("How long `overflow=block` waits for room in a full queue, in seconds.")
    ] = 5.0
    close_timeout: Annotated[
        Seconds, _doc("How long `close()`, or the end of the script, may take, in seconds.")
    ] = 30.0
    delivery: Annotated[
        Hosting,
        _doc(
            "Where sinks run: in a separate process if a sink prefers it "
            "(TensorBoard, W&B, MLflow), always there, always in a thread, or nowhere (only the "
            "journal is written)."
        ),
    ] = "auto"
    linger_secs: Annotated[
        Seconds, _doc("How long the delivery process may run after the run has ended, in seconds.")
    ] = 3600.0
    fsync: Annotated[
        Fsync,
        _doc(
            "When the journal is forced to disk, to survive a power cut: never, at "
            "`flush()` and `close()`, or at every write."
        ),
    ] = "never"
    sigterm: Annotated[
        Literal["default", "flush"],
        _doc(
            "`flush`: on SIGTERM, write all queued values to the journal (within 2 s) "
            "before the previous handling of the signal."
        ),
    ] = "default"
    ranks: Annotated[
        str,
        Meta(
            pattern=r"^(all|local0|\d+)$",
            title="rank number | all | local0",
            description="Which ranks write, if there are several: the rank with this number, "
            "`all` (each writes its own segment of one run), or `local0` (one per machine).",
        ),
    ] = "0"
    sync_secs: Annotated[
        Seconds, _doc("How long ranks wait for each other when they synchronize, in seconds.")
    ] = 300.0
    progress: Annotated[
        ProgressMode,
        _doc(
            "Whether `steps()` and `epochs()` show progress bars unless `progress=` "
            "says so: in a terminal or notebook if tqdm is installed, always, or never. `off` "
            "also overrides `progress=True`."
        ),
    ] = "auto"
    strict: Annotated[
        bool,
        _doc(
            "Whether `flush()` and `close()` raise an error if values were dropped, "
            "rejected or not delivered."
        ),
    ] = False
    disabled: Annotated[bool, _doc("Disables every bus: nothing is logged or written.")] = False
    run_dir: Annotated[
        str | None,
        _doc(
            "The folder of a run to join. A run sets it for its child processes; you "
            "rarely need to set it."
        ),
    ] = None


class SettingInfo(NamedTuple):
    """The declaration of one setting, for display."""

    name: str
    variable: str
    type: str
    default: object
    doc: str


class EffectiveSetting(NamedTuple):
    """The value of a setting, with secrets masked, and where it comes from."""

    setting: SettingInfo
    value: object
    source: Literal["argument", "environment", "default"]


def env_variable(name: str) -> str:
    """Return the name of the environment variable for a setting."""
    return f"METRICBUS_{name.upper()}"


def list_settings() -> list[SettingInfo]:
    """Return all settings in the order of their declaration."""
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
    """Return the settings in effect, and for each where its value comes from.

    An argument that is None counts as not given. Raises `ConfigError` for an invalid value, naming
    the argument or the variable.
    """
    hints = get_type_hints(Settings, include_extras=True)
    values: dict[str, Any] = {}
    effective: list[EffectiveSetting] = []
    for setting in list_settings():
        name, value = setting.name, setting.default
        source: Literal["argument", "environment", "default"] = "default"
        if arguments.get(name) is not None:
            argument = "name" if name == "run" else name
            source, value = "argument", _convert(arguments[name], hints[name], f"{argument}=")
        elif environ.get(setting.variable) or (name == "sinks" and setting.variable in environ):
            source = "environment"
            value = _convert(environ[setting.variable], hints[name], f"{setting.variable}=")
        values[name] = value
        shown = redact(value) if isinstance(value, str) else value
        effective.append(EffectiveSetting(setting, shown, source))
    return Settings(**values), effective


def read_env_setting(name: str, environ: Mapping[str, str] = os.environ) -> Any:
    """Return the value of one setting without any arguments; raise `ConfigError` if invalid."""
    hint = get_type_hints(Settings, include_extras=True)[name]
    text = environ.get(env_variable(name))
    return _convert(text, hint, f"{env_variable(name)}=") if text else getattr(Settings(), name)


def _convert(value: object, hint: Any, label: str) -> Any:
    try:
        return msgspec.convert(value, hint, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        reason = "" if "matching regex" in str(error) else f"{error}; "
        raise ConfigError(
            f"{redact(f'{label}{value!r}')}: {reason}expected {describe_type(hint)}"
        ) from None


def describe_type(hint: Any) -> str:
    """Return a short description of a type, such as `auto | on | off`, for docs and messages."""
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
