"""What a template version says to the runner: its ``run``, as it stands in the directory file."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from taskherd.errors import Malformed
from taskherd.settings.durations import Seconds

_SIZE = re.compile(r"\s*(\d{1,12})\s*([KMGT]i?)?B?\s*", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_DAY = 86_400.0
_MAX_ERRORS = 3
OURS = ("TASKHERD_", "CODER_")
"""What the names begin with that only the runner gives to an agent."""

Kind: TypeAlias = Literal["stdio", "agentapi", "self"]
"""How the runner learns what the agent is doing: from its output, from its AgentAPI, or not at all."""


def parse_size(written: object) -> object:
    """Return the bytes in `written`, a number or a text like `512Mi` (powers of 1,024; `M` means the same)."""
    if isinstance(written, str) and (match := _SIZE.fullmatch(written)):
        return int(match[1]) * 1024 ** _POWERS[(match[2] or "")[:1]]
    return written


def _not_ours(name: str) -> str:
    if name.upper().startswith(OURS):
        raise ValueError("names that begin with TASKHERD_ or CODER_ are the runner's")
    return name


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1024 * 1024)]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_not_ours)]
Word = Annotated[str, StringConstraints(strict=True, pattern=r"^[^\x00]*$")]


class TemplateModel(BaseModel):
    """A part of what a template says; a field nobody knows is a mistake, and said to be one."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Environment(TemplateModel):
    """The agent's variables: those of the runner's own that are passed on, and those with a fixed value."""

    inherit: tuple[Variable, ...] = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "SHELL")
    set: dict[Variable, Word] = Field(default_factory=dict)


class Limits(TemplateModel):
    """What an agent with all that it starts may use."""

    cpu: float | None = Field(None, gt=0, le=1024, description="Cores.")
    memory: Size | None = None
    timeout: Seconds | None = Field(None, gt=0, le=30 * _DAY, description="From its start, by the clock on the wall.")


class Run(TemplateModel):
    """How the agent of a template version is run."""

    pool: str = Field("default", pattern=r"^[a-z0-9-]{1,64}$")
    command: Annotated[tuple[Word, ...], Field(min_length=1)]
    workdir: Word = Field(".", description="Where the agent is started, from the task's own folder.")
    env: Environment = Field(default_factory=Environment)
    agent: Kind = "stdio"
    limits: Limits = Field(default_factory=Limits)
    idle_after: Seconds = Field(10.0, gt=0, le=_DAY, description="Silence after which the agent counts as idle.")
    grace: Seconds = Field(10.0, ge=0, le=600, description="Between SIGTERM and SIGKILL.")
    start_timeout: Seconds = Field(120.0, gt=0, le=_DAY, description="Until an AgentAPI must have answered.")
    post_prompt: bool = Field(default=True, description="Whether the prompt is an AgentAPI's first message.")


def parse(run: object) -> Run:
    """Return what a template says; raises `Malformed` with what is wrong, for the person who wrote it."""
    try:
        return Run.model_validate(run)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        told = [f"{'.'.join(map(str, each['loc']))}: {each['msg'].removeprefix('Value error, ')}" for each in errors]
        raise Malformed("invalid_run", "; ".join(told[:_MAX_ERRORS])) from None
