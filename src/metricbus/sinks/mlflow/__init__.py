"""The MLflow sink: metrics, parameters, tags and artifacts, by batches of its REST API."""
