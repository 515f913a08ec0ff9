"""The directory file: organizations, users and templates as YAML, validated in full before anything is applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias
from uuid import UUID

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from taskherd.errors import TaskherdError

MAX_PROBLEMS: Final = 20
MAX_POOL: Final = 64


class InvalidDirectory(TaskherdError):  # noqa: N818 - named as the errors in ``errors``
    """The file cannot be applied; each line of ``problems`` names a path in the file and what is wrong there."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def _not_nil(value: UUID) -> UUID:
    if value.int == 0:
        raise ValueError("the nil UUID means no id; expected another UUID")
    return value


def _valid_run(run: dict[str, Any]) -> dict[str, Any]:
    pool = run.get("pool", "default")
    allowed = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
    if not isinstance(pool, str) or not 0 < len(pool) <= MAX_POOL or not allowed.issuperset(pool):
        raise ValueError("pool must be 1 to 64 of the characters a-z 0-9 -")
    return run


Id: TypeAlias = Annotated[UUID, AfterValidator(_not_nil)]
Slug: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*$", max_length=64)]
Title: TypeAlias = Annotated[str, Field(max_length=64)]
TargetName: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9-]+$", max_length=MAX_POOL)]
Link: TypeAlias = Annotated[str, Field(max_length=2048)]


class DirectoryPart(BaseModel):
    """Base of all parts of the file; rejects unknown fields, which are probably misspelled."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OrganizationPart(DirectoryPart):
    """An organization in the file."""

    id: Id
    name: Slug
    display_name: Title = ""


class UserPart(DirectoryPart):
    """A user, with the organizations that the user is a member of."""

    id: Id
    username: Slug
    name: Title = ""
    email: Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$", max_length=254)]
    avatar_url: Link = ""
    github_com_user_id: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    organizations: dict[Slug, Literal["member", "admin"]] = {}


class PresetPart(DirectoryPart):
    """A preset: a named set of parameters."""

    id: Id
    name: Annotated[str, Field(min_length=1, max_length=64)]
    default: bool = False
    parameters: dict[str, JsonValue] = {}


class VersionPart(DirectoryPart):
    """A version of a template; ``run`` is interpreted by the runner."""

    id: Id
    name: Slug
    presets: list[PresetPart] = []
    run: Annotated[dict[str, JsonValue], AfterValidator(_valid_run)] = {}


class TemplatePart(DirectoryPart):
    """A template of an organization; new tasks use its active version."""

    id: Id
    organization: Slug
    name: Slug
    display_name: Title = ""
    icon: Link = ""
    description: Annotated[str, Field(max_length=2000)] = ""
    active_version: Id
    versions: Annotated[list[VersionPart], Field(min_length=1)]


class RunnerPart(DirectoryPart):
    """A runner whose queue is declared before it first says hello."""

    name: TargetName
    pool: TargetName = "default"


class Directory(DirectoryPart):
    """The complete file."""

    organizations: list[OrganizationPart] = []
    users: list[UserPart] = []
    templates: list[TemplatePart] = []
    runners: list[RunnerPart] = []

    @property
    def pools(self) -> set[str]:
        """The pools that a template or a runner names."""
        versions = [version for template in self.templates for version in template.versions]
        return {str(version.run.get("pool", "default")) for version in versions} | {each.pool for each in self.runners}


def parse(content: str | bytes) -> Directory:
    """Parse and validate the YAML text of a directory file.

    Raises:
        InvalidDirectory: not valid YAML, a field is missing, unknown or invalid, or entries contradict each other.
    """
    try:
        loaded = yaml.load(content, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader that also refuses repeated keys
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidDirectory([f"not valid YAML: {' '.join(str(error).split())}"]) from error
    try:
        directory = Directory.model_validate({} if loaded is None else loaded)
    except ValidationError as error:
        problems = [f"{_path(each['loc'])}: {each['msg']}" for each in error.errors(include_url=False)]
        raise InvalidDirectory(problems[:MAX_PROBLEMS]) from error
    contradictions = [*_duplicates(directory), *_broken_references(directory), *_runners_named_as_pools(directory)]
    if contradictions:
        raise InvalidDirectory(contradictions[:MAX_PROBLEMS])
    return directory


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that rejects a repeated key in a mapping, where PyYAML keeps the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key!r} is given twice", node.value[index][0].start_mark
                )
        return super().construct_mapping(node, deep)


def _path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.lstrip(".") or "the file"


def _duplicates(directory: Directory) -> Iterator[str]:
    """Yield an error message for each id, and each name within its scope, that occurs twice."""
    first_paths: dict[tuple[object, ...], str] = {}
    for key, value, path in _unique_values(directory):
        first_path = first_paths.setdefault(key, path)
        if first_path != path:
            yield f"{path}: {value} is already at {first_path}"


def _unique_values(directory: Directory) -> Iterator[tuple[tuple[object, ...], object, str]]:
    """Yield everything that must be unique: a key with its scope, the value as written, and its path."""
    for index, organization in enumerate(directory.organizations):
        path = f"organizations[{index}]"
        yield ("organization", organization.id), organization.id, f"{path}.id"
        yield ("organization name", organization.name.lower()), organization.name, f"{path}.name"
    for index, user in enumerate(directory.users):
        path = f"users[{index}]"
        yield ("user", user.id), user.id, f"{path}.id"
        yield ("username", user.username.lower()), user.username, f"{path}.username"
        if user.github_com_user_id is not None:
            yield ("github", user.github_com_user_id), user.github_com_user_id, f"{path}.github_com_user_id"
    for index, template in enumerate(directory.templates):
        path = f"templates[{index}]"
        yield ("template", template.id), template.id, f"{path}.id"
        yield ("template name", template.organization.lower(), template.name.lower()), template.name, f"{path}.name"
        yield from _unique_version_values(template, path)
    for index, runner in enumerate(directory.runners):
        yield ("runner", runner.name), runner.name, f"runners[{index}].name"


def _unique_version_values(
    template: TemplatePart, template_path: str
) -> Iterator[tuple[tuple[object, ...], object, str]]:
    for index, version in enumerate(template.versions):
        path = f"{template_path}.versions[{index}]"
        yield ("version", version.id), version.id, f"{path}.id"
        yield ("version name", template.id, version.name.lower()), version.name, f"{path}.name"
        for preset_index, preset in enumerate(version.presets):
            preset_path = f"{path}.presets[{preset_index}]"
            yield ("preset", preset.id), preset.id, f"{preset_path}.id"
            yield ("preset name", version.id, preset.name.lower()), preset.name, f"{preset_path}.name"
            if preset.default:
                yield ("default", version.id), "the default preset", f"{preset_path}.default"


def _runners_named_as_pools(directory: Directory) -> Iterator[str]:
    """Yield an error message for each runner with the name of a pool: both name a queue of work requests."""
    pools = directory.pools
    for index, runner in enumerate(directory.runners):
        if runner.name in pools:
            yield f"runners[{index}].name: {runner.name} is also the name of a pool; expected another name"


def _broken_references(directory: Directory) -> Iterator[str]:
    """Yield an error message for each reference to something that the file does not contain."""
    organization_names = {organization.name.lower() for organization in directory.organizations}
    for index, user in enumerate(directory.users):
        names = [name.lower() for name in user.organizations]
        for name in user.organizations:
            path = f"users[{index}].organizations.{name}"
            if name.lower() not in organization_names:
                yield f"{path}: the file has no organization of that name"
            elif names.count(name.lower()) > 1:
                yield f"{path}: the organization is given twice"
    for index, template in enumerate(directory.templates):
        if template.organization.lower() not in organization_names:
            yield f"templates[{index}].organization: the file has no organization {template.organization!r}"
        if template.active_version not in {version.id for version in template.versions}:
            yield f"templates[{index}].active_version: {template.active_version} is not a version of the template"
