"""What a directory file may contain, and how its entries may contradict each other."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Annotated, Final, Literal, TypeAlias
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, PrivateAttr

from taskherd.directory_file.document import Location
from taskherd.directory_file.run import RunConfig

MAX_POOL: Final = 64
_ID: Final = re.compile(r"(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.IGNORECASE)
_MARKS: Final = frozenset("\u061c\u200e\u200f")
_DIRECTIONS: Final = frozenset({"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"})
"""The classes of characters that, with ``_MARKS``, control the direction of text (Unicode Standard Annex 9)."""


def _not_nil(value: UUID) -> UUID:
    if value.int == 0:
        raise ValueError("the nil UUID means no id; expected another UUID")
    return value


def _not_an_id(name: str) -> str:
    """Return a name as it is; raise ``ValueError`` if requests to the API would take it for an id."""
    if _ID.fullmatch(name):
        raise ValueError("is a UUID, which the API takes for an id; expected another name")
    return name


def _not_me(username: str) -> str:
    if username.lower() == "me":
        raise ValueError("is the caller in requests to the API; expected another username")
    return username


def _no_control_characters(text: str) -> str:
    """Return a text as it is; raise ``ValueError`` if a character in it can make it look like another."""
    for character in text:
        is_control = unicodedata.category(character) == "Cc" and character not in "\n\t"
        if is_control or character in _MARKS or unicodedata.bidirectional(character) in _DIRECTIONS:
            raise ValueError(f"has the control character U+{ord(character):04X}; expected a text without")
    return text


def _valid_run(run: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Return ``run`` as it is written; raise ``ValidationError`` if no runner would accept it."""
    RunConfig.model_validate(run)
    return run


Id: TypeAlias = Annotated[UUID, AfterValidator(_not_nil)]
Slug: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*$", max_length=64)]
Name: TypeAlias = Annotated[Slug, AfterValidator(_not_an_id)]
"""A slug that names an entry in requests that may also name it by its id."""
Title: TypeAlias = Annotated[str, Field(max_length=64), AfterValidator(_no_control_characters)]
TargetName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=MAX_POOL)]
Link: TypeAlias = Annotated[str, Field(max_length=2048)]


class DirectoryPart(BaseModel):
    """Base of all parts of the file; rejects unknown fields, which are probably misspelled."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OrganizationPart(DirectoryPart):
    """An organization in the file."""

    id: Id
    name: Name
    display_name: Title = ""


class UserPart(DirectoryPart):
    """A user, with the organizations that the user is a member of."""

    id: Id
    username: Annotated[Name, AfterValidator(_not_me)]
    name: Title = ""
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$", max_length=254)]
    avatar_url: Link = ""
    github_com_user_id: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    organizations: dict[Slug, Literal["member", "admin"]] = {}


class PresetPart(DirectoryPart):
    """A preset: a named set of parameters."""

    id: Id
    name: Annotated[Title, Field(min_length=1)]
    default: bool = False
    parameters: dict[str, JsonValue] = {}


class VersionPart(DirectoryPart):
    """A version of a template; ``run`` stays as it is written, for the runner to read."""

    id: Id
    name: Slug
    presets: list[PresetPart] = []
    run: Annotated[dict[str, JsonValue], AfterValidator(_valid_run)]


class TemplatePart(DirectoryPart):
    """A template of an organization; new tasks use its active version."""

    id: Id
    organization: Slug
    name: Name
    display_name: Title = ""
    icon: Link = ""
    description: Annotated[str, Field(max_length=2000), AfterValidator(_no_control_characters)] = ""
    active_version: Id
    versions: Annotated[list[VersionPart], Field(min_length=1)]


class RunnerPart(DirectoryPart):
    """A runner whose queue is declared before it first says hello."""

    name: TargetName
    pool: TargetName = "default"


class Directory(DirectoryPart):
    """The complete file."""

    organizations: Annotated[list[OrganizationPart], Field(min_length=1)]
    users: list[UserPart] = []
    templates: list[TemplatePart] = []
    runners: list[RunnerPart] = []
    _lines: dict[tuple[object, ...], int] = PrivateAttr(default_factory=dict)

    def remember_lines(self, line_of: Callable[[Location], int]) -> None:
        """Remember the line of each entry in its file, from the line of a location."""
        self._lines = {key: line_of(location) for key, _, location in _unique_values(self)}

    def line_of(self, kind: str, entry_id: object) -> int | None:
        """Return the line of the id of an organization, user, template, version or preset, None if it is not known."""
        return self._lines.get((kind, entry_id))

    @property
    def pools(self) -> set[str]:
        """The pools that a template or a runner names."""
        versions = [version for template in self.templates for version in template.versions]
        return {str(version.run.get("pool", "default")) for version in versions} | {each.pool for each in self.runners}


class TemplateFile(DirectoryPart):
    """A file with templates only, to be put into a directory file."""

    templates: Annotated[list[TemplatePart], Field(min_length=1)]


Contradiction: TypeAlias = tuple[Location, str]
"""Where an entry contradicts another one, and what is wrong there."""


def contradictions(directory: Directory) -> Iterator[Contradiction]:
    """Yield what no entry shows by itself: values given twice, and names that clash."""
    yield from _duplicates(directory)
    yield from _runners_named_as_pools(directory)


def broken_references(directory: Directory) -> Iterator[Contradiction]:
    """Yield each reference to an organization or version that the file does not contain."""
    organization_names = {organization.name.lower() for organization in directory.organizations}
    for index, user in enumerate(directory.users):
        names = [name.lower() for name in user.organizations]
        for name in user.organizations:
            location = ("users", index, "organizations", name)
            if name.lower() not in organization_names:
                yield location, "the file has no organization of that name"
            elif names.count(name.lower()) > 1:
                yield location, "the organization is given twice"
    for index, template in enumerate(directory.templates):
        if template.organization.lower() not in organization_names:
            yield (
                ("templates", index, "organization"),
                f"the file has no organization {template.organization!r}",
            )
        if template.active_version not in {version.id for version in template.versions}:
            yield ("templates", index, "active_version"), f"{template.active_version} is not a version of the template"


def path(location: Location) -> str:
    """Return a location as people write it, such as ``users[0].email``."""
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return steps.lstrip(".") or "the file"


def _duplicates(directory: Directory) -> Iterator[Contradiction]:
    """Yield each id, and each name within its scope, that occurs twice."""
    first: dict[tuple[object, ...], Location] = {}
    for key, value, location in _unique_values(directory):
        first_location = first.setdefault(key, location)
        if first_location != location:
            yield location, f"{value} is already at {path(first_location)}"


def _unique_values(directory: Directory) -> Iterator[tuple[tuple[object, ...], object, Location]]:
    """Yield everything that must be unique: a key with its scope, the value as written, and its location."""
    for index, organization in enumerate(directory.organizations):
        at: Location = ("organizations", index)
        yield ("organization", organization.id), organization.id, (*at, "id")
        yield ("organization name", organization.name.lower()), organization.name, (*at, "name")
    for index, user in enumerate(directory.users):
        at = ("users", index)
        yield ("user", user.id), user.id, (*at, "id")
        yield ("username", user.username.lower()), user.username, (*at, "username")
        if user.github_com_user_id is not None:
            yield ("github", user.github_com_user_id), user.github_com_user_id, (*at, "github_com_user_id")
    for index, template in enumerate(directory.templates):
        at = ("templates", index)
        yield ("template", template.id), template.id, (*at, "id")
        yield ("template name", template.organization.lower(), template.name.lower()), template.name, (*at, "name")
        yield from _unique_version_values(template, at)
    for index, runner in enumerate(directory.runners):
        yield ("runner", runner.name), runner.name, ("runners", index, "name")


def _unique_version_values(
    template: TemplatePart, template_at: Location
) -> Iterator[tuple[tuple[object, ...], object, Location]]:
    for index, version in enumerate(template.versions):
        at: Location = (*template_at, "versions", index)
        yield ("version", version.id), version.id, (*at, "id")
        yield ("version name", template.id, version.name.lower()), version.name, (*at, "name")
        for preset_index, preset in enumerate(version.presets):
            preset_at: Location = (*at, "presets", preset_index)
            yield ("preset", preset.id), preset.id, (*preset_at, "id")
            yield ("preset name", version.id, preset.name.lower()), preset.name, (*preset_at, "name")
            if preset.default:
                yield ("default", version.id), "the default preset", (*preset_at, "default")


def _runners_named_as_pools(directory: Directory) -> Iterator[Contradiction]:
    """Yield each runner with the name of a pool: both name a queue of work requests."""
    pools = directory.pools
    for index, runner in enumerate(directory.runners):
        if runner.name in pools:
            yield ("runners", index, "name"), f"{runner.name} is also the name of a pool; expected another name"
