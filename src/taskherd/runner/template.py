"""The template's ``run`` as a runner finds it in a work request: valid, or the reason why the build fails."""

from __future__ import annotations

from pydantic import ValidationError

from taskherd.directory_file.run import RunConfig
from taskherd.errors import Malformed

_MAX_ERRORS = 3


def parse(run: object) -> RunConfig:
    """Return the parsed ``run`` of a template. Raise ``Malformed`` with a detail for its author if it is invalid."""
    try:
        return RunConfig.model_validate(run)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        fields = [
            ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, "))))
            for each in errors
        ]
        raise invalid_run("; ".join(fields[:_MAX_ERRORS])) from None


def invalid_run(problem: str) -> Malformed:
    """Return the error for an invalid ``run``; its detail fails the build and is shown in the task."""
    return Malformed("invalid_run", f"The template's `run` is invalid: {problem}")
