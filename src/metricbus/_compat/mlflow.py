"""mlflow: the HTTP response that caused an error."""

from __future__ import annotations

from traceback import walk_tb
from typing import Any

from metricbus._compat.degrade import report_change


def response_of(error: BaseException) -> Any:
    """Return the HTTP response that caused an MLflow error; None if there is none.

    MLflow does not attach it to the error. It is a local variable in the frames of MLflow or, if
    MLflow never received it, of urllib3.
    """
    from mlflow.exceptions import RestException

    cause: BaseException | None = error
    while cause is not None:
        for frame, _ in walk_tb(cause.__traceback__):
            response = frame.f_locals.get("response")
            if hasattr(getattr(response, "headers", None), "get"):
                return response
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, RestException):  # the answer of a server
        loss = "retries do not wait for as long as the server asks in Retry-After"
        missing = AttributeError("no frame has it")
        report_change("mlflow", "the variable 'response' of its REST calls", loss, missing)
    return None
