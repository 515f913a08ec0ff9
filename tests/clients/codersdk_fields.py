"""The fields of codersdk's Go types, and how a value in JSON differs from them.

``python -m tests.clients.codersdk_fields REPOSITORY TAG`` reads the types from a clone of Coder's public repository and
prints them as JSON: the commit of the tag, each struct type with its file and its fields, and the constants of each
string type. ``codersdk_fields.json`` is that output, so that the comparison in ``tests/api/test_codersdk.py`` needs
neither Go nor a network.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

FACTS: Final = Path(__file__).with_name("codersdk_fields.json")
REPOSITORY: Final = "github.com/coder/coder"
PACKAGES: Final = {"codersdk": "", "codersdk/agentsdk": "agentsdk."}
"""Folders that are read, and the prefix of their types' names."""
TYPES: Final = (
    "BuildInfoResponse",
    "CreateTaskRequest",
    "CreateWorkspaceBuildRequest",
    "CreateWorkspaceRequest",
    "GenerateAPIKeyResponse",
    "GetUsersResponse",
    "Organization",
    "PauseTaskResponse",
    "Preset",
    "ProvisionerJobLog",
    "Response",
    "ResumeTaskResponse",
    "ServerSentEvent",
    "Task",
    "TaskLogsResponse",
    "TaskSendRequest",
    "TasksListResponse",
    "Template",
    "TemplateVersion",
    "TemplateVersionParameter",
    "UpdateTaskInputRequest",
    "User",
    "Workspace",
    "WorkspaceAgentLog",
    "WorkspaceBuild",
    "WorkspaceBuildParameter",
    "WorkspacesResponse",
    "agentsdk.PatchAppStatus",
)
"""The types of requests and responses; the types of their fields are read with them."""

_STRUCT: Final = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_FIELD: Final = re.compile(r"^\s*(?:(\w+)\s+)?([^\s`]+)\s*(?:`(.*)`)?\s*$")
_TAG: Final = re.compile(r'json:"([^",]*)((?:,\w+)*)"')
_GROUP: Final = re.compile(r"^type \(\n(.*?)^\)", re.MULTILINE | re.DOTALL)
_UNDERLYING: Final = r"(\w+) +(string|bool|int\d*|\[\]\S+|map\[\w+\]\S+)$"
_NAMED: Final = re.compile(rf"^type {_UNDERLYING}", re.MULTILINE)
_IN_GROUP: Final = re.compile(rf"^\t{_UNDERLYING}", re.MULTILINE)
_CONSTANT: Final = re.compile(r'^\s*\w+\s+(\w+)\s*=\s*"([^"]*)"', re.MULTILINE)
_COMMENT: Final = re.compile(r"^[ \t]*//.*$|[ \t]+//[^`\"\n]*$", re.MULTILINE)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_INTEGERS: Final = {"int": 63, "int32": 31, "int64": 63, "time.Duration": 63}
_NULLABLE: Final = frozenset({"uuid.NullUUID", "NullTime"})
_ANYTHING: Final = frozenset({"interface{}", "any", "json.RawMessage"})


@dataclass(frozen=True, slots=True)
class Sources:
    """The Go files of a tag: the struct types' bodies and files, the named types, and the constants of string types."""

    structs: Mapping[str, tuple[str, str]]
    named: Mapping[str, str]
    constants: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Facts:
    """Go types: their fields by name in JSON, and the constants of string types."""

    types: Mapping[str, Mapping[str, Any]]
    enums: Mapping[str, Sequence[str]]

    def fields(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the fields of a struct type: each field's Go type, and whether Go leaves it out when it is empty."""
        fields: Mapping[str, Mapping[str, Any]] = self.types[name]["fields"]
        return fields


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between a value and a Go type.

    ``names`` are the names of the field, the shortest first: by its own type, then by the types that contain it.
    """

    names: tuple[str, ...]
    problem: str

    def __str__(self) -> str:
        """Return the field's longest name and the problem."""
        return f"{self.names[-1]}: {self.problem}"


def load() -> Facts:
    """Return the committed facts."""
    stored = json.loads(FACTS.read_text())
    return Facts(stored["types"], stored["enums"])


def read(files: Mapping[str, str]) -> Sources:
    """Parse Go files, by path."""
    structs, named, constants = dict[str, tuple[str, str]](), dict[str, str](), dict[str, list[str]]()
    for path, text in files.items():
        source = _COMMENT.sub("", text).replace("codersdk.", "")
        prefix = PACKAGES[str(Path(path).parent)]
        for name, body in _STRUCT.findall(source):
            structs[prefix + name] = (body, path)
        named.update(_NAMED.findall(source))
        for group in _GROUP.findall(source):
            named.update(_IN_GROUP.findall(group))
        for name, value in _CONSTANT.findall(source):
            constants.setdefault(name, []).append(value)
    return Sources(structs, named, constants)


def extract(sources: Sources, names: Sequence[str]) -> dict[str, Any]:
    """Return these struct types and those of their fields, and the constants of their string types."""
    types, enums, left = dict[str, Any](), dict[str, list[str]](), list(names)
    while left:
        name = left.pop()
        if name in types:
            continue
        fields = {
            field: {"type": _resolve(sources, kind), "optional": optional}
            for field, kind, optional in _fields(sources, name)
        }
        types[name] = {"file": sources.structs[name][1], "fields": fields}
        for kind in re.findall(r"[\w.]+", " ".join(str(each["type"]) for each in fields.values())):
            if kind in sources.structs and kind not in _NULLABLE:
                left.append(kind)
            elif kind in sources.constants and kind in sources.named:
                enums[kind] = sorted(sources.constants[kind])
    return {"types": dict(sorted(types.items())), "enums": dict(sorted(enums.items()))}


def _fields(sources: Sources, name: str) -> Iterator[tuple[str, str, bool]]:
    """Yield name in JSON, Go type, and whether it may be left out, of each field; embedded structs' fields included."""
    for line in filter(str.strip, sources.structs[name][0].splitlines()):
        matched = _FIELD.match(line)
        assert matched, line
        field, kind, tags = matched.groups()
        if field is None:
            yield from _fields(sources, kind)
            continue
        tag = _TAG.search(tags or "")
        json_name, options = tag.groups() if tag else ("", "")
        if json_name != "-":
            yield json_name or field, kind, "omitempty" in options


def _resolve(sources: Sources, kind: str) -> str:
    """Replace named types by what they are, except those whose values are constants."""

    def underlying(match: re.Match[str]) -> str:
        name = match[0]
        return name if name in sources.constants else sources.named.get(name, name)

    resolved = re.sub(r"\w+(?:\.\w+)?", underlying, kind)
    return resolved if resolved == kind else _resolve(sources, resolved)


def differences(facts: Facts, kind: str, value: Any, names: tuple[str, ...] = ()) -> Iterator[Difference]:
    """Yield how a value differs from a Go type: missing and unknown fields, other kinds, nulls, unknown constants."""
    if value is None:
        if not kind.startswith("*") and kind not in _NULLABLE | _ANYTHING:
            yield Difference(names or (kind,), "null")
        return
    kind = kind.removeprefix("*")
    if kind.startswith(("[]", "map[")):
        yield from _items(facts, kind, value, names)
    elif kind in facts.types:
        yield from _struct(facts, kind, value, names)
    elif kind in facts.enums:
        if value not in facts.enums[kind]:
            yield Difference(names or (kind,), f"{value!r} is no {kind}")
    elif not _matches(kind, value):
        yield Difference(names or (kind,), f"{value!r} is no {kind}")


def _items(facts: Facts, kind: str, value: Any, names: tuple[str, ...]) -> Iterator[Difference]:
    if kind.startswith("[]") and isinstance(value, list):
        items: Iterable[Any] = value
    elif kind.startswith("map[") and isinstance(value, dict):
        items = value.values()
    else:
        yield Difference(names or (kind,), f"{value!r} is no {kind}")
        return
    for each in items:
        yield from differences(facts, kind[kind.index("]") + 1 :], each, names)


def _struct(facts: Facts, name: str, value: Any, names: tuple[str, ...]) -> Iterator[Difference]:
    if not isinstance(value, dict):
        yield Difference(names or (name,), f"{value!r} is no {name}")
        return
    fields = facts.fields(name)
    for field, fact in fields.items():
        inner = (f"{name}.{field}", *(f"{outer}.{field}" for outer in names))
        if field in value:
            yield from differences(facts, fact["type"], value[field], inner)
        elif not fact["optional"]:
            yield Difference(inner, "missing")
    for field in sorted(value.keys() - fields.keys()):
        yield Difference((f"{name}.{field}", *(f"{outer}.{field}" for outer in names)), "unknown")


def _matches(kind: str, value: Any) -> bool:
    """Return whether Go decodes the value, which is not null, into a type that is no struct of codersdk's."""
    if kind in _ANYTHING:
        return True
    if kind in _INTEGERS:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2 ** _INTEGERS[kind]
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "float64":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str) and _STRINGS[kind](value)


def _is_id(text: str) -> bool:
    with suppress(ValueError):
        return str(uuid.UUID(text)) == text
    return False


def _is_time(text: str) -> bool:
    """Return whether the text is a time of RFC 3339, which is all that Go decodes."""
    with suppress(ValueError):
        return _TIME.fullmatch(text) is not None and datetime.fromisoformat(text).tzinfo is not None
    return False


_STRINGS: Final[Mapping[str, Callable[[str], bool]]] = {
    "string": lambda _: True,
    "uuid.UUID": _is_id,
    "uuid.NullUUID": _is_id,
    "time.Time": _is_time,
    "NullTime": _is_time,
}


def main(repository: str, tag: str) -> dict[str, Any]:
    """Return the facts of a tag of a clone."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", repository, *arguments], check=True, capture_output=True, text=True).stdout

    paths = [
        path
        for package in PACKAGES
        for path in git("ls-tree", "--name-only", tag, f"{package}/").splitlines()
        if path.endswith(".go") and not path.endswith("_test.go")
    ]
    sources = read({path: git("show", f"{tag}:{path}") for path in paths})
    commit = git("rev-parse", f"{tag}^{{commit}}").strip()
    return {"repository": REPOSITORY, "tag": tag, "commit": commit, **extract(sources, TYPES)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:3]), indent=1) + "\n")
