"""From the environment to `Settings`, or to one error that names everything wrong with it."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from pydantic import ValidationError

from taskherd.errors import Misconfigured
from taskherd.settings import durations, urls
from taskherd.settings.fields import PREFIX, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

NEEDED = ("database_url", "amqp_url", "secret_key")
_SECRET = tuple(name for name, field in Settings.model_fields.items() if field.repr is False)
_FOR_OTHERS = frozenset(
    {
        *(f"TASKHERD_{name}" for name in ("METRICS_URL", "NODE_HOME", "TOKEN", "URL")),
        *(f"TASKHERD_{name}" for name in ("TASK_ID", "TASK_NAME", "BUILD_NUMBER", "OWNER", "PROMPT", "PROMPT_FILE")),
        *(f"TASKHERD_{name}" for name in ("AGENT_TOKEN", "API_URL", "AGENT_PORT", "RUN_FOLDER")),
    }
)
"""Variables under our prefix that `taskherd dev` and the runner set for other programs."""
_PARAMETERS = "TASKHERD_PARAMETER_"
"""What the names begin with by which the runner tells an agent its preset's parameters."""
_MAX_FILE = 65_536


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """A setting for people: secrets and passwords are hidden in `value`."""

    variable: str
    value: str
    default: str
    source: Literal["environment", "file", "default"]
    expected: str
    meaning: str


@dataclass(frozen=True, slots=True)
class UnknownVariable:
    """A variable under our prefix that is no setting, and the setting it was perhaps meant to be."""

    variable: str
    nearest: str | None


def load(*needs: str) -> Settings:
    """Return the settings from the environment, with those named in `needs` given (no names: `NEEDED`).

    `TASKHERD_DATABASE_URL`, `TASKHERD_AMQP_URL` and `TASKHERD_SECRET_KEY` may each be given as a file's path in a
    variable that ends in `_FILE`. Raises Misconfigured, which names every wrong setting at once.
    """
    from_files, wrong = _read_files(os.environ)
    given: dict[str, Any] = dict(from_files)
    try:
        settings = Settings(**given)
    except ValidationError as error:
        wrong += [_explain(one, from_files) for one in error.errors(include_url=False, include_context=False)]
    else:
        named = {variable for variable, _ in wrong}
        wrong += [
            (variable_of(name), f"not set; expected {expected_of(name)}")
            for name in needs or NEEDED
            if not getattr(settings, name) and not named & {variable_of(name), f"{variable_of(name)}_FILE"}
        ]
        if not wrong:
            return settings
    raise Misconfigured.several(wrong) from None


def unknown_variables(environ: Mapping[str, str]) -> tuple[UnknownVariable, ...]:
    """Return the variables in `environ` that look like settings and are none, each with the nearest real name."""
    known = {variable_of(name) for name in Settings.model_fields} | {f"{variable_of(name)}_FILE" for name in _SECRET}
    ours = (name for name in environ if name.startswith(PREFIX) and not name.startswith(_PARAMETERS))
    strangers = sorted(name for name in ours if name not in known | _FOR_OTHERS)
    return tuple(
        UnknownVariable(name, next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)), None))
        for name in strangers
    )


def describe(settings: Settings) -> tuple[SettingInfo, ...]:
    """Return every setting as `taskherd config` shows it, in the order in which they are declared."""
    return tuple(
        SettingInfo(
            variable=variable_of(name),
            value=_show(name, getattr(settings, name)),
            default=_show(name, field.default),
            source=_source(name),
            expected=expected_of(name),
            meaning=field.description or "",
        )
        for name, field in Settings.model_fields.items()
    )


def variable_of(name: str) -> str:
    """Return the environment variable of the setting `name`."""
    return f"{PREFIX}{name.upper()}"


def expected_of(name: str) -> str:
    """Return in words what the setting `name` may be."""
    field = Settings.model_fields[name]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "expected" in extra:
        return str(extra["expected"])
    if get_origin(field.annotation) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(field.annotation))
    lasts = _is_duration(field)
    least, most = (_bound(field, side, lasts=lasts) for side in ("ge", "le"))
    bounds = f", {least} to {most}" if most else f", at least {least}" if least else ""
    kind = durations.HOW_TO_WRITE if lasts else "a whole number" if field.annotation is int else "a text"
    return kind + bounds


def _is_duration(field: FieldInfo) -> bool:
    return field.annotation is float


def _bound(field: FieldInfo, side: str, *, lasts: bool) -> str:
    bound = next((getattr(each, side) for each in field.metadata if hasattr(each, side)), None)
    if bound is None:
        return ""
    return durations.render(bound) if lasts else str(bound)


def _show(name: str, value: object) -> str:
    if name == "secret_key":
        return urls.HIDDEN if value else ""
    if name in _SECRET:
        return urls.without_password(str(value)) if value else ""
    return durations.render(float(str(value))) if _is_duration(Settings.model_fields[name]) else str(value)


def _source(name: str) -> Literal["environment", "file", "default"]:
    if os.environ.get(variable_of(name)):
        return "environment"
    return "file" if name in _SECRET and os.environ.get(f"{variable_of(name)}_FILE") else "default"


def _read_files(environ: Mapping[str, str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the secrets that are given as files, and what is wrong with those that can't be read."""
    read: dict[str, str] = {}
    wrong: list[tuple[str, str]] = []
    for name in _SECRET:
        variable = f"{variable_of(name)}_FILE"
        path = environ.get(variable)
        if not path:
            continue
        if environ.get(variable_of(name)):
            wrong.append((variable, f"{variable_of(name)} is set too; expected only one of the two"))
            continue
        try:
            with Path(path).open(encoding="utf-8") as file:
                read[name] = file.read(_MAX_FILE).strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "not text in UTF-8"
            wrong.append((variable, f"can't read {path} ({why}); expected a file that holds {expected_of(name)}"))
            continue
        if not read[name]:
            wrong.append((variable, f"{path} is empty; expected a file that holds {expected_of(name)}"))
    return read, wrong


def _explain(error: ErrorDetails, from_files: Mapping[str, str]) -> tuple[str, str]:
    """Return which variable is wrong, and in words how and what was expected."""
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
