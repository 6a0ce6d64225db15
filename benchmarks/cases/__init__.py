"""The cases, in the order of the report: each module's `measure` is one."""
