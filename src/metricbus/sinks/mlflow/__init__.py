"""MLflow sink: one MLflow run for each metricbus run, on a tracking server or in an SQLite file.

`sink` connects and sends metrics, `run_start` maps the run to tags and params, and `metric_names`
maps rows to MLflow keys and timestamps. `media` uploads the artifacts that `artifacts` lays out;
`tags` lists them for MLflow's UI. `store` wraps the client: timeouts, errors, batch limits, SQLite
files.
"""
