"""The reference of all settings in Markdown: docs/environment.md, `metricbus doctor --markdown`."""

from __future__ import annotations

from metricbus._common.settings import list_settings

_INTRODUCTION = """\
# Environment

Every setting is an argument of `MetricBus(...)` and `metricbus.configure(...)`, and an environment
variable. Arguments override environment variables, which override defaults. `metricbus doctor`
prints the settings in effect and where each comes from. (The argument for `run` is `name`,
and that for `run_id` is `id`; `run_dir` has no argument.)

`make docs` generates this page from the declarations in `src/metricbus/_common/settings.py`.

| variable | type | default | meaning |
|---|---|---|---|
"""
_CONCLUSION = """
An empty variable counts as not set, except `METRICBUS_SINKS`: if it is empty, only the journal is
written. [sinks.md](sinks.md) describes the URLs of sinks.
"""


def settings_page() -> str:
    """Return the page, with one table row per setting."""
    rows = []
    for setting in list_settings():
        default = "" if setting.default is None else f"`{setting.default}`"
        kind = setting.type.replace("|", "\\|")
        rows.append(f"| `{setting.variable}` | {kind} | {default} | {setting.doc} |\n")
    return _INTRODUCTION + "".join(rows) + _CONCLUSION
