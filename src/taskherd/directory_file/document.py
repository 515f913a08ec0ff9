"""The YAML of a directory file as values that know their lines: bounded, and stricter than YAML where YAML guesses.

Repeated keys, of which YAML libraries keep the last, keys that are not text, merge keys, tags, and values that the
database cannot store are mistakes. Aliases work, and count as what they stand for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import yaml

MAX_BYTES: Final = 10_000_000
MAX_VALUES: Final = 1_000_000
"""Maximum number of values in a file, where an alias counts as everything that it stands for."""
MAX_DEPTH: Final = 50
"""Maximum number of lists and mappings within each other."""

Location: TypeAlias = tuple[int | str, ...]
"""The keys and indexes that lead to a value."""

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, and ten times as fast
_RESOLVER: Final[Any] = yaml.SafeLoader("")
_TAG: Final = "tag:yaml.org,2002:"
_MERGE: Final = f"{_TAG}merge"
_STORABLE: Final = range(-(2**63), 2**64)
"""Integers that the database's JSON encoder accepts."""
_SCALARS: Final = frozenset(f"{_TAG}{name}" for name in ("null", "bool", "int", "float", "str", "timestamp"))


class UnreadableFile(Exception):  # noqa: N818 - described, like an error of ``errors``, by what it is about
    """The content is not text, not YAML, or too large: its values are unknown."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        self.problem = problem
        self.line = line
        super().__init__(problem)


@dataclass(frozen=True, slots=True)
class YamlNode:
    """A value with its parts, the line (from 1) of its key or list item, and its number of values, aliases expanded."""

    value: Any
    line: int
    parts: dict[int | str, YamlNode] = field(default_factory=dict)
    size: int = 1


@dataclass(frozen=True, slots=True)
class Document:
    """A file's values, and the mistakes in it that no value shows: lines and what is wrong there."""

    root: YamlNode
    mistakes: tuple[tuple[int, str], ...]

    def line(self, location: Location) -> int:
        """Return the line of a value, or of the innermost value around it that is written."""
        node = self.root
        for step in location:
            part = node.parts.get(step)
            if part is None:
                break
            node = part
        return node.line


def read(content: bytes) -> Document:
    """Read the YAML of a directory file.

    Raises:
        UnreadableFile: it is not UTF-8 or not YAML, or exceeds a limit.
    """
    if len(content) > MAX_BYTES:
        raise UnreadableFile(f"larger than {MAX_BYTES // 1_000_000} MB")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableFile(f"not UTF-8: the byte {content[error.start]:#04x}", line) from None
    try:
        return _Composer(yaml.parse(text, Loader=_LOADER)).compose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise UnreadableFile(f"not valid YAML: {problem}", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise UnreadableFile(f"not valid YAML: {' '.join(str(error).split())}") from None


class _Composer:
    """Builds nodes from the parser's events, so that limits apply before memory is used."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchors: dict[str, YamlNode] = {}
        self._mistakes: list[tuple[int, str]] = []
        self._values = 0

    def compose(self) -> Document:
        next(self._events)  # the start of the stream
        root = YamlNode(None, 1)
        if isinstance(next(self._events), yaml.DocumentStartEvent):
            root = self._node(next(self._events), None, 0)
            next(self._events)  # the end of the document
            following = next(self._events)
            if not isinstance(following, yaml.StreamEndEvent):
                raise UnreadableFile("a second document begins here", following.start_mark.line + 1)
        return Document(root, tuple(self._mistakes))

    def _node(self, event: Any, key_line: int | None, depth: int) -> YamlNode:
        line = event.start_mark.line + 1
        if depth > MAX_DEPTH:
            raise UnreadableFile(f"more than {MAX_DEPTH} lists and mappings within each other", line)
        if isinstance(event, yaml.AliasEvent):
            node = self._alias(event, line)
        elif isinstance(event, yaml.ScalarEvent):
            node = YamlNode(self._scalar(event, line), line)
        else:
            is_list = isinstance(event, yaml.SequenceStartEvent)
            if event.tag not in {None, "!", f"{_TAG}{'seq' if is_list else 'map'}"}:
                self._mistakes.append((line, f"the tag {event.tag} is not supported"))
            node = self._list(line, depth) if is_list else self._mapping(line, depth)
        self._values += 1
        if max(self._values, node.size) > MAX_VALUES:
            raise UnreadableFile(f"more than {MAX_VALUES:,} values", line)
        anchor = getattr(event, "anchor", None)
        if anchor and not isinstance(event, yaml.AliasEvent):
            self._anchors[anchor] = node
        return YamlNode(node.value, key_line or line, node.parts, node.size)

    def _alias(self, event: Any, line: int) -> YamlNode:
        if event.anchor not in self._anchors:
            raise UnreadableFile(f"the alias *{event.anchor} stands for nothing that is complete before it", line)
        return self._anchors[event.anchor]

    def _list(self, line: int, depth: int) -> YamlNode:
        items: list[YamlNode] = []
        for event in iter(self._events.__next__, None):
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._node(event, None, depth + 1))
        return YamlNode(
            [item.value for item in items], line, dict(enumerate(items)), 1 + sum(item.size for item in items)
        )

    def _mapping(self, line: int, depth: int) -> YamlNode:
        parts: dict[int | str, YamlNode] = {}
        for event in iter(self._events.__next__, None):
            if isinstance(event, yaml.MappingEndEvent):
                break
            key_line = event.start_mark.line + 1
            key = self._key(event, key_line, depth)
            value = self._node(next(self._events), key_line, depth + 1)
            if key is None:
                continue
            if key in parts:
                self._mistakes.append((key_line, f"{key!r} is already given in line {parts[key].line}"))
            parts.setdefault(key, value)
        size = 1 + sum(part.size for part in parts.values())
        return YamlNode({key: part.value for key, part in parts.items()}, line, parts, size)

    def _key(self, event: Any, line: int, depth: int) -> str | None:
        if isinstance(event, yaml.ScalarEvent) and self._tag(event) == _MERGE:
            self._mistakes.append((line, "merge keys (<<) are not supported"))
            return None
        key = self._node(event, None, depth + 1).value
        if isinstance(key, str):
            return key
        written = f"the key {event.value[:80]!r}" if isinstance(event, yaml.ScalarEvent) else "this key"
        self._mistakes.append((line, f"{written} is not a text; a key such as 1 or yes needs quotes"))
        return None

    def _scalar(self, event: Any, line: int) -> object:
        tag = self._tag(event)
        if tag not in _SCALARS:
            self._mistakes.append((line, f"the tag {tag} is not supported"))
            return event.value
        try:
            value: object = _RESOLVER.yaml_constructors[tag](_RESOLVER, yaml.ScalarNode(tag, event.value))
        except (ValueError, LookupError, AttributeError, yaml.YAMLError):
            self._mistakes.append((line, f"{event.value[:80]!r} is no {tag.removeprefix(_TAG)}; a text needs quotes"))
            return event.value
        if isinstance(value, float) and not math.isfinite(value):
            self._mistakes.append((line, f"{event.value} is not a finite number"))
        elif isinstance(value, int) and value not in _STORABLE:
            self._mistakes.append((line, f"{event.value[:80]} does not fit into 64 bits"))
        elif isinstance(value, str) and ("\0" in value or not _is_encodable(value)):
            self._mistakes.append((line, "the text has a NUL or a character that is not valid Unicode"))
        return value

    @staticmethod
    def _tag(event: Any) -> str:
        if event.tag not in {None, "!"}:
            return str(event.tag)
        return str(_RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit))


def _is_encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
