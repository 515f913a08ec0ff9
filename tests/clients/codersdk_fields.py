"""The fields of codersdk's Go types, and what a response lacks of them.

``python -m tests.clients.codersdk_fields FOLDER REVISION`` reads the struct types from the ``codersdk`` folder of
Coder's public repository and prints their fields as JSON: for each type, each field's name in JSON, its Go type, and
whether Go may leave it out. ``codersdk_fields.json`` is that output, so that the comparison in
``tests/api/test_codersdk.py`` needs neither Go nor a network.
"""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

Fields: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Any]]]

FACTS = Path(__file__).with_name("codersdk_fields.json")
TYPES = [
    "Task",
    "TaskStateEntry",
    "TasksListResponse",
    "TaskLogEntry",
    "TaskLogsResponse",
    "Workspace",
    "WorkspaceHealth",
    "WorkspacesResponse",
    "WorkspaceBuild",
    "WorkspaceResource",
    "WorkspaceBuildParameter",
    "WorkspaceAgent",
    "WorkspaceAgentHealth",
    "WorkspaceApp",
    "Healthcheck",
    "WorkspaceAppStatus",
]
_STRUCT = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"^\s*\w+\s+(\S+)\s+`[^`]*json:\"([^\",]+)(,omitempty)?[^`]*`", re.MULTILINE)
_NAMED = re.compile(r"^type (\w+) (string|int32|int64|bool)\b", re.MULTILINE)


def read(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the fields of ``TYPES`` by type. A named type that is a string or a number is replaced by what it is."""
    source = "\n".join(path.read_text() for path in sorted(folder.glob("*.go")) if not path.name.endswith("_test.go"))
    named = dict(_NAMED.findall(source))
    return {
        name: {
            field: {
                "type": re.sub(r"\w+$", lambda match: named.get(match[0], match[0]), kind),
                "optional": bool(omitted),
            }
            for kind, field, omitted in _FIELD.findall(body)
            if field != "-"
        }
        for name, body in _STRUCT.findall(source)
        if name in TYPES
    }


def differences(facts: Fields, name: str, value: Any, path: str = "") -> Iterator[str]:
    """Yield how a value differs from this Go type: missing fields, other kinds, and fields that Go does not know."""
    where = path or name
    if not isinstance(value, dict):
        yield f"{where}: {value!r} is no object"
        return
    for field, fact in facts[name].items():
        if field in value:
            yield from _kind(facts, fact["type"], value[field], f"{where}.{field}")
        elif not fact["optional"]:
            yield f"{where}.{field}: missing"
    for field in value.keys() - facts[name].keys():
        yield f"{where}.{field}: unknown"


def _kind(facts: Fields, kind: str, value: Any, where: str) -> Iterator[str]:
    if kind.startswith("[]"):
        if not isinstance(value, list):
            yield f"{where}: {value!r} is no list"
            return
        for each in value:
            yield from _kind(facts, kind[2:], each, f"{where}[]")
    elif value is None:
        if not kind.startswith("*") and kind not in {"uuid.NullUUID", "NullTime", "uuid.UUID"}:
            yield f"{where}: null"
    elif kind.lstrip("*") in facts:
        yield from differences(facts, kind.lstrip("*"), value, where)
    elif not _matches(kind.lstrip("*"), value):
        yield f"{where}: {value!r} is no {kind}"


def _matches(kind: str, value: Any) -> bool:
    """Return whether Go decodes the value into a type; a type that is not compared takes any object."""
    match kind:
        case "string":
            return isinstance(value, str)
        case "bool":
            return isinstance(value, bool)
        case "int" | "int32" | "int64":
            return isinstance(value, int) and not isinstance(value, bool)
        case "uuid.UUID" | "uuid.NullUUID":
            return isinstance(value, str) and str(uuid.UUID(value)) == value
        case "time.Time" | "NullTime":
            return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
        case _:
            return isinstance(value, dict)


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"revision": sys.argv[2], "types": read(Path(sys.argv[1]))}, indent=1) + "\n")
