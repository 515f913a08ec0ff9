"""The schemas with which real clients validate responses: the GitHub Action's zod schemas, and Go's decoder."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Rule: TypeAlias = Callable[[Any], bool]

EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
STATUSES = ("pending", "initializing", "active", "paused", "unknown", "error")
STATES = ("working", "idle", "complete", "failed")


def text(value: Any) -> bool:
    """Return whether the value is a string (zod: ``z.string()``)."""
    return isinstance(value, str)


def identifier(value: Any) -> bool:
    """Return whether the value is an id (zod: ``z.string().uuid()``) that Go's ``uuid.UUID`` accepts too."""
    return text(value) and str(uuid.UUID(value)) == value


def identifiers(value: Any) -> bool:
    """Return whether the value is a list of ids (zod: ``z.array(z.string().uuid())``)."""
    return isinstance(value, list) and all(map(identifier, value))


def email(value: Any) -> bool:
    """Return whether the value is an email address (zod: ``z.string().email()``)."""
    return text(value) and EMAIL.fullmatch(value) is not None


def boolean(value: Any) -> bool:
    """Return whether the value is a boolean (zod: ``z.boolean()``)."""
    return isinstance(value, bool)


def time(value: Any) -> bool:
    """Return whether the value is a time that Go's decoder accepts, in the form of the API contract."""
    return text(value) and TIME.fullmatch(value) is not None


def one_of(*values: str) -> Rule:
    """Return a rule that accepts only these values (zod: ``z.enum()``)."""
    return lambda value: value in values


def state(value: Any) -> bool:
    """Return whether the value is the Action's ``current_state``: null, or one of four states with a message."""
    return value is None or (value["state"] in STATES and text(value["message"]))


USER: Mapping[str, Rule] = {
    "id": identifier,
    "username": text,
    "email": email,
    "organization_ids": identifiers,
    "github_com_user_id?": lambda value: isinstance(value, int),
}
TEMPLATE: Mapping[str, Rule] = {
    "id": identifier,
    "name": text,
    "description?": text,
    "organization_id": identifier,
    "active_version_id": identifier,
}
PRESET: Mapping[str, Rule] = {"ID": identifier, "Name": text, "Default": boolean}
TASK: Mapping[str, Rule] = {
    "id": identifier,
    "name": text,
    "owner_id": identifier,
    "template_id": identifier,
    "created_at": text,
    "updated_at": text,
    "status": one_of(*STATUSES),
    "current_state": state,
}
BUILD: Mapping[str, Rule] = {
    "id": identifier,
    "build_number": lambda value: isinstance(value, int),
    "transition": one_of("start", "stop", "delete"),
    "created_at": time,
    "updated_at": time,
    "job": lambda value: value["status"] in {"pending", "running", "succeeded", "canceling", "canceled", "failed"},
}


def parse(value: Any, schema: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the value if it matches the schema; a field with ``?`` may be absent, but not null."""
    assert isinstance(value, dict), value
    for name, rule in schema.items():
        key = name.removesuffix("?")
        if key not in value:
            assert name.endswith("?"), f"{key} is missing in {value}"
            continue
        assert rule(value[key]), f"{key} is {value[key]!r}"
    return value


def parse_all(value: Any, schema: Mapping[str, Rule]) -> list[dict[str, Any]]:
    """Return the list if all elements match the schema, as in zod."""
    assert isinstance(value, list), value
    return [parse(each, schema) for each in value]
