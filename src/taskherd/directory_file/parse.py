"""Parse a directory file: all of its mistakes at once, each with its line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from pydantic import ValidationError

from taskherd.directory_file import document
from taskherd.directory_file.document import Document, Location
from taskherd.directory_file.model import (
    Contradiction,
    Directory,
    TemplateFile,
    TemplatePart,
    broken_references,
    contradictions,
    path,
)
from taskherd.errors import TaskherdError

MAX_PROBLEMS: Final = 100


class InvalidDirectory(TaskherdError):  # noqa: N818 - named as the errors in ``errors``
    """The file cannot be applied; each line of ``problems`` says what is wrong, and where."""

    def __init__(self, problems: Iterable[str]) -> None:
        found = list(problems)
        more = [f"… and {len(found) - MAX_PROBLEMS} more"] if len(found) > MAX_PROBLEMS else []
        self.problems = (*found[:MAX_PROBLEMS], *more)
        super().__init__("\n".join(self.problems))


def parse(content: bytes) -> Directory:
    """Parse and validate a directory file, as UTF-8. The directory knows the lines of its entries.

    Raises:
        InvalidDirectory: not valid YAML, a field is missing, unknown or invalid, or entries contradict each other.
    """
    try:
        written = document.read(content)
    except document.UnreadableFile as error:
        raise InvalidDirectory([problem_at(error.line, error.problem)]) from None
    if written.root.value is None:
        raise InvalidDirectory(["the file is empty; expected at least `organizations:` with one organization"])
    directory, found = _validate(written.root.value)
    mistakes = [*written.mistakes, *_located(written, found)]
    if directory is None or mistakes:
        raise InvalidDirectory(problem_at(line, problem) for line, problem in sorted(mistakes))
    directory.remember_lines(written.line)
    return directory


def parse_templates(content: bytes) -> Sequence[TemplatePart]:
    """Return the templates of a directory file, or of a file with nothing but ``templates:``, such as a shipped one.

    Raise ``InvalidDirectory``.
    """
    try:
        written = document.read(content)
    except document.UnreadableFile as error:
        raise InvalidDirectory([problem_at(error.line, error.problem)]) from None
    values = written.root.value
    if not isinstance(values, dict) or values.keys() != {"templates"}:
        return parse(content).templates
    try:
        return TemplateFile.model_validate(values).templates
    except ValidationError as error:
        errors = [(each["loc"], _message(each)) for each in error.errors(include_url=False, include_input=False)]
        mistakes = sorted([*written.mistakes, *_located(written, errors)])
        raise InvalidDirectory(problem_at(line, problem) for line, problem in mistakes) from None


def _validate(values: object) -> tuple[Directory | None, list[Contradiction]]:
    """Return the directory, or None if an entry is invalid, and all mistakes."""
    try:
        directory = Directory.model_validate(values)
    except ValidationError as error:
        errors = [(each["loc"], _message(each)) for each in error.errors(include_url=False, include_input=False)]
        return None, [*errors, *_contradictions_elsewhere(values, {location[:2] for location, _ in errors})]
    return directory, [*contradictions(directory), *broken_references(directory)]


def _message(error: Any) -> str:
    if (error["type"], error["loc"]) in {("missing", ("organizations",)), ("too_short", ("organizations",))}:
        return "expected at least one organization; without any, everybody would be signed out"
    return str(error["msg"]).removeprefix("Value error, ")


def _contradictions_elsewhere(values: object, invalid: set[Location]) -> Iterator[Contradiction]:
    """Yield the contradictions among the entries that are valid, and references unless organizations are unknown."""
    if not isinstance(values, dict):
        return
    kept: dict[str, list[tuple[int, Any]]] = {
        kind: [
            (index, entry)
            for index, entry in enumerate(values[kind] if isinstance(values.get(kind), list) else [])
            if not {(kind,), (kind, index)} & invalid
        ]
        for kind in Directory.model_fields
    }
    if not kept["organizations"]:
        return
    directory = Directory.model_validate({kind: [entry for _, entry in entries] for kind, entries in kept.items()})
    complete = not any(location[0] == "organizations" for location in invalid if location)
    found = [*contradictions(directory), *(broken_references(directory) if complete else ())]
    for (kind, index, *steps), problem in found:
        yield (kind, kept[str(kind)][int(index)][0], *steps), problem


def _located(written: Document, found: Iterable[Contradiction]) -> Iterator[tuple[int, str]]:
    for location, problem in found:
        yield written.line(location), f"{path(location)}: {problem}"


def problem_at(line: int | None, problem: str) -> str:
    """Return a problem with its line, if that is known."""
    return problem if line is None else f"line {line}: {problem}"
