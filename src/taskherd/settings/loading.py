"""Load ``Settings`` from the environment, or raise one error that names every wrong variable."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import BeforeValidator, ValidationError

from taskherd import durations
from taskherd.errors import Misconfigured
from taskherd.settings import urls
from taskherd.settings.fields import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

REQUIRED = ("database_url", "amqp_url", "secret_key")
_SECRET = tuple(name for name, field in Settings.model_fields.items() if field.repr is False)
_NOT_SETTINGS = frozenset(
    {
        *(f"TASKHERD_{name}" for name in ("METRICS_URL", "NODE_HOME", "TOKEN", "URL")),
        *(f"TASKHERD_{name}" for name in ("TASK_ID", "TASK_NAME", "BUILD_NUMBER", "OWNER", "PROMPT", "PROMPT_FILE")),
        *(f"TASKHERD_{name}" for name in ("AGENT_TOKEN", "API_URL", "AGENT_PORT", "RUN_FOLDER")),
    }
)
"""Variables with taskherd's prefix that are set for or read by other programs: clients, agents, `taskherd dev`."""
_PARAMETER_PREFIX = "TASKHERD_PARAMETER_"
"""Prefix of the variables with which the runner passes the parameters of a preset to an agent."""
_MAX_FILE = 65_536
"""Maximum size of a secret that is read from a file, in characters."""


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """A setting as users see it; secrets and passwords in ``value`` are hidden."""

    variable: str
    value: str
    default: str
    source: Literal["environment", "file", "default"]
    expected: str
    description: str


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """An unknown ``TASKHERD_…`` variable, with the most similar setting."""

    variable: str
    nearest: str | None


def load(*required: str) -> Settings:
    """Return the settings from the environment; those named in ``required`` must be set (by default ``REQUIRED``).

    ``TASKHERD_DATABASE_URL``, ``TASKHERD_DATABASE_READ_URL``, ``TASKHERD_AMQP_URL`` and ``TASKHERD_SECRET_KEY`` may
    each be read from a file: its path is the value of the variable with ``_FILE`` appended to its name.

    Raises:
        Misconfigured: a setting is wrong or missing; the error names all of them.
    """
    from_files, problems = _read_files(os.environ)
    values: dict[str, Any] = dict(from_files)
    settings: Settings | None = None
    try:
        settings = Settings(**values)
    except ValidationError as error:
        problems += [_explain(one, from_files) for one in error.errors(include_url=False, include_context=False)]
    given = {name: values.get(name) or os.environ.get(variable_of(name)) for name in required or REQUIRED}
    named = {variable for variable, _ in problems}
    problems += [
        (variable_of(name), f"not set; expected {expected_of(name)}")
        for name, value in given.items()
        if not (getattr(settings, name) if settings else value)
        and not named & {variable_of(name), f"{variable_of(name)}_FILE"}
    ]
    if settings and not problems:
        return settings
    raise Misconfigured.several(problems) from None


def unknown_variables(environ: Mapping[str, str]) -> tuple[UnknownVariable, ...]:
    """Return the variables in ``environ`` that look like settings but are none, each with the most similar setting."""
    known = {variable_of(name) for name in Settings.model_fields} | {f"{variable_of(name)}_FILE" for name in _SECRET}
    prefixed = (name for name in environ if name.startswith(PREFIX) and not name.startswith(_PARAMETER_PREFIX))
    unknown = sorted(name for name in prefixed if name not in known | _NOT_SETTINGS)
    return tuple(
        UnknownVariable(name, next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)), None))
        for name in unknown
    )


def describe(settings: Settings) -> tuple[SettingInfo, ...]:
    """Return every setting as ``taskherd config`` shows it, in declaration order."""
    return tuple(
        SettingInfo(
            variable=variable_of(name),
            value=_show(name, getattr(settings, name)),
            default=_show(name, field.default),
            source=_source(name),
            expected=expected_of(name),
            description=field.description or "",
        )
        for name, field in Settings.model_fields.items()
    )


def variable_of(name: str) -> str:
    """Return the name of the environment variable for the setting ``name``."""
    return f"{PREFIX}{name.upper()}"


def expected_of(name: str) -> str:
    """Describe the values that the setting ``name`` accepts."""
    field = Settings.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "expected" in extra:
        return str(extra["expected"])
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(field.annotation))
    above, minimum, maximum = (_limit(field, side) for side in ("gt", "ge", "le"))
    if above:
        return f"{_kind(field)} above {above}" + (f", up to {maximum}" if maximum else "")
    limits = f", {minimum} to {maximum}" if maximum else f", at least {minimum}" if minimum else ""
    return _kind(field) + limits


def _kind(field: FieldInfo) -> str:
    if _is_duration(field):
        return durations.HOW_TO_WRITE
    if field.annotation is int:
        return "a whole number"
    return "a number" if field.annotation is float else "a string"


def _is_duration(field: FieldInfo) -> bool:
    """Return whether the field is declared as ``durations.Seconds``; a plain float is a number."""
    return any(isinstance(each, BeforeValidator) and each.func is durations.parse for each in field.metadata)


def _limit(field: FieldInfo, side: str) -> str:
    limit = next((getattr(each, side) for each in field.metadata if hasattr(each, side)), None)
    return "" if limit is None else _render(field, limit)


def _render(field: FieldInfo, value: object) -> str:
    if _is_duration(field):
        return durations.render(float(str(value)))
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _show(name: str, value: object) -> str:
    if name == "secret_key":
        return urls.HIDDEN if value else ""
    if name in _SECRET:
        return urls.without_password(str(value)) if value else ""
    return _render(Settings.model_fields[name], value)


def _source(name: str) -> Literal["environment", "file", "default"]:
    if os.environ.get(variable_of(name)):
        return "environment"
    return "file" if name in _SECRET and os.environ.get(f"{variable_of(name)}_FILE") else "default"


def _read_files(environ: Mapping[str, str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Read the secrets whose file is named, and return them and the problems of the others."""
    read: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    for name in _SECRET:
        variable = f"{variable_of(name)}_FILE"
        path = environ.get(variable)
        if not path:
            continue
        if environ.get(variable_of(name)):
            problems.append((variable, f"{variable_of(name)} is set too; expected only one of the two"))
            continue
        try:
            with Path(path).open(encoding="utf-8") as file:
                read[name] = file.read(_MAX_FILE).strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "not text in UTF-8"
            problems.append((variable, f"can't read {path} ({why}); expected a file that holds {expected_of(name)}"))
            continue
        if not read[name]:
            problems.append((variable, f"{path} is empty; expected a file that holds {expected_of(name)}"))
    return read, problems


def _explain(error: ErrorDetails, from_files: Mapping[str, str]) -> tuple[str, str]:
    """Return the name of the wrong variable, and a description of the problem and of what was expected."""
    problem = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        first, _, rest = problem.partition(" ")
        name = first if first in Settings.model_fields else "settings"
        upper = rest.split()[2] if name != "settings" else ""
        return variable_of(name), f"larger than {variable_of(upper)}; expected at most that"
    name = str(error["loc"][0])
    variable = variable_of(name)
    if name in from_files:
        variable += "_FILE"
    if name in _SECRET:
        return variable, f"{problem}; expected {expected_of(name)}"
    shown = os.environ.get(variable, "")
    return variable, f"{shown[:80]!r} is wrong ({problem[:1].lower()}{problem[1:]}); expected {expected_of(name)}"
