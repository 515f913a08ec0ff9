"""The directory file: who and what tasks refer to, as YAML, read and judged as a whole before anything is applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias
from uuid import UUID

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from taskherd.errors import TaskherdError

MAX_PROBLEMS: Final = 20
MAX_POOL: Final = 64


class InvalidDirectory(TaskherdError):  # noqa: N818 - named for what it says, as in `errors`
    """The file can't be applied; `problems` says where in the file and why, one line each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def _real(identity: UUID) -> UUID:
    if identity.int == 0:
        raise ValueError("the nil UUID stands for none")
    return identity


def _run(run: dict[str, Any]) -> dict[str, Any]:
    pool = run.get("pool", "default")
    allowed = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
    if not isinstance(pool, str) or not 0 < len(pool) <= MAX_POOL or not allowed.issuperset(pool):
        raise ValueError("pool must be 1 to 64 of the characters a-z 0-9 -")
    return run


Id: TypeAlias = Annotated[UUID, AfterValidator(_real)]
Slug: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*$", max_length=64)]
Title: TypeAlias = Annotated[str, Field(max_length=64)]
Link: TypeAlias = Annotated[str, Field(max_length=2048)]


class DirectoryPart(BaseModel):
    """What all parts of the file share: unknown fields are refused, since they are probably misspelt."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OrganizationPart(DirectoryPart):
    """An organization."""

    id: Id
    name: Slug
    display_name: Title = ""


class UserPart(DirectoryPart):
    """A user and the organizations it belongs to."""

    id: Id
    username: Slug
    name: Title = ""
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$", max_length=254)]
    avatar_url: Link = ""
    github_com_user_id: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    organizations: dict[Slug, Literal["member", "admin"]] = {}


class PresetPart(DirectoryPart):
    """A named set of parameters."""

    id: Id
    name: Annotated[str, Field(min_length=1, max_length=64)]
    default: bool = False
    parameters: dict[str, JsonValue] = {}


class VersionPart(DirectoryPart):
    """A version of a template; `run` is for the runner."""

    id: Id
    name: Slug
    presets: list[PresetPart] = []
    run: Annotated[dict[str, JsonValue], AfterValidator(_run)] = {}


class TemplatePart(DirectoryPart):
    """A template of an organization, with the version that new tasks get."""

    id: Id
    organization: Slug
    name: Slug
    display_name: Title = ""
    icon: Link = ""
    description: Annotated[str, Field(max_length=2000)] = ""
    active_version: Id
    versions: Annotated[list[VersionPart], Field(min_length=1)]


class Directory(DirectoryPart):
    """The whole file."""

    organizations: list[OrganizationPart] = []
    users: list[UserPart] = []
    templates: list[TemplatePart] = []


def parse(content: str | bytes) -> Directory:
    """Return the directory that the YAML text describes.

    Raises:
        DirectoryRefused: it is no YAML, misses or misspells something, or contradicts itself.
    """
    try:
        found = yaml.load(content, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that also refuses repeated keys
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidDirectory([f"not valid YAML: {' '.join(str(error).split())}"]) from error
    try:
        directory = Directory.model_validate({} if found is None else found)
    except ValidationError as error:
        problems = [f"{_path(one['loc'])}: {one['msg']}" for one in error.errors(include_url=False)]
        raise InvalidDirectory(problems[:MAX_PROBLEMS]) from error
    contradictions = [*_repeated(directory), *_dangling(directory)]
    if contradictions:
        raise InvalidDirectory(contradictions[:MAX_PROBLEMS])
    return directory


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe types; a key given twice in one mapping is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", node.value[place][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _path(location: tuple[int | str, ...]) -> str:
    steps = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return steps.lstrip(".") or "the file"


def _repeated(directory: Directory) -> Iterator[str]:
    """Ids, and names within their scope, that are there twice."""
    seen: dict[tuple[object, ...], str] = {}
    for key, value, path in _keys(directory):
        first = seen.setdefault(key, path)
        if first != path:
            yield f"{path}: {value} is already at {first}"


def _keys(directory: Directory) -> Iterator[tuple[tuple[object, ...], object, str]]:
    for at, organization in enumerate(directory.organizations):
        path = f"organizations[{at}]"
        yield ("organization", organization.id), organization.id, f"{path}.id"
        yield ("organization name", organization.name.lower()), organization.name, f"{path}.name"
    for at, user in enumerate(directory.users):
        path = f"users[{at}]"
        yield ("user", user.id), user.id, f"{path}.id"
        yield ("username", user.username.lower()), user.username, f"{path}.username"
        if user.github_com_user_id is not None:
            yield ("github", user.github_com_user_id), user.github_com_user_id, f"{path}.github_com_user_id"
    for at, template in enumerate(directory.templates):
        path = f"templates[{at}]"
        yield ("template", template.id), template.id, f"{path}.id"
        yield ("template name", template.organization.lower(), template.name.lower()), template.name, f"{path}.name"
        yield from _version_keys(template, path)


def _version_keys(template: TemplatePart, above: str) -> Iterator[tuple[tuple[object, ...], object, str]]:
    for at, version in enumerate(template.versions):
        path = f"{above}.versions[{at}]"
        yield ("version", version.id), version.id, f"{path}.id"
        yield ("version name", template.id, version.name.lower()), version.name, f"{path}.name"
        for place, preset in enumerate(version.presets):
            yield ("preset", preset.id), preset.id, f"{path}.presets[{place}].id"
            yield ("preset name", version.id, preset.name.lower()), preset.name, f"{path}.presets[{place}].name"
            if preset.default:
                yield ("default", version.id), "the default preset", f"{path}.presets[{place}].default"


def _dangling(directory: Directory) -> Iterator[str]:
    """References to what the file does not have."""
    known = {organization.name.lower() for organization in directory.organizations}
    for at, user in enumerate(directory.users):
        names = [name.lower() for name in user.organizations]
        for name in user.organizations:
            path = f"users[{at}].organizations.{name}"
            if name.lower() not in known:
                yield f"{path}: the file has no organization of that name"
            elif names.count(name.lower()) > 1:
                yield f"{path}: the organization is given twice"
    for at, template in enumerate(directory.templates):
        if template.organization.lower() not in known:
            yield f"templates[{at}].organization: the file has no organization {template.organization!r}"
        if template.active_version not in {version.id for version in template.versions}:
            yield f"templates[{at}].active_version: {template.active_version} is none of the template's versions"
