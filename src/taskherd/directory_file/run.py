"""The ``run`` of a template version: how a runner runs its agent, and what the worker does when the agent is lost."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeAlias, assert_never, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from taskherd.settings import Seconds

_SIZE = re.compile(r"\s*(\d{1,12})\s*([KMGT]i?)?B?\s*", re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_DAY = 86_400.0
MAX_BACKOFF = 3600.0
"""Maximum wait before a restart, in seconds."""
RESERVED_PREFIXES = ("TASKHERD_", "CODER_")
"""Prefixes of the variables that only the runner sets for an agent."""

AgentKind: TypeAlias = Literal["stdio", "agentapi", "acp", "self"]
"""How the runner follows the agent: its output, its AgentAPI, the Agent Client Protocol over stdin and stdout, or not
at all (the agent reports its own status)."""

OutputKind: TypeAlias = Literal["text", "claude-stream-json", "codex-json"]
"""What an agent writes to its stdout: text for people, or the events of Claude Code or of Codex."""

StdinKind: TypeAlias = Literal["pipe", "none", "prompt"]
"""What an agent reads from its stdin: inputs, nothing (end of file), or the prompt and then end of file."""
ResumeKind: TypeAlias = Literal["prompt", "continue", "nothing"]
"""What an agent gets that is started again after it was given its prompt."""

ToolKind: TypeAlias = Literal["read", "edit", "delete", "move", "search", "execute", "think", "fetch", "other"]
"""What a tool does, in the words of the Agent Client Protocol."""
Approval: TypeAlias = Literal["ask", "allow", "deny"]
"""What happens when an agent asks for permission: a person is asked, or the runner answers."""

SandboxKind: TypeAlias = Literal["none", "bwrap"]
"""What separates an agent from its machine, besides its user: nothing, or bubblewrap."""
Network: TypeAlias = Literal["host", "none"]
"""The network of an agent: its machine's, or none."""


def parse_size(value: object) -> object:
    """Return the number of bytes in a text like ``512Mi`` (powers of 1,024; ``M`` means the same), else ``value``."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        return int(match[1]) * 1024 ** _POWERS[(match[2] or "")[:1]]
    return value


def _not_reserved(name: str) -> str:
    if name.upper().startswith(RESERVED_PREFIXES):
        raise ValueError("names that begin with TASKHERD_ or CODER_ are reserved for the runner")
    return name


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1024 * 1024)]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_not_reserved)]
TextWithoutNul = Annotated[str, StringConstraints(strict=True, pattern=r"^[^\x00]*$")]


class TemplateModel(BaseModel):
    """A part of a template; unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Environment(TemplateModel):
    """The agent's environment variables: those inherited from the runner, and those with fixed values."""

    inherit: tuple[Variable, ...] = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "SHELL")
    set: dict[Variable, TextWithoutNul] = Field(default_factory=dict)


class Limits(TemplateModel):
    """Limits of an agent and its descendants; without a cgroup, ``memory`` limits each process separately."""

    cpu: float | None = Field(None, gt=0, le=1024, description="Cores.")
    memory: Size | None = None
    timeout: Seconds | None = Field(None, gt=0, le=30 * _DAY, description="Seconds from the agent's start.")


class OnLoss(TemplateModel):
    """What to do when an agent is lost: leave the task to people, or start it again."""

    action: Literal["nothing", "restart"] = "nothing"
    most: int = Field(
        3, ge=1, le=100, description="Maximum number of restarts until a user pauses or resumes the task."
    )
    backoff: Seconds = Field(
        10.0, gt=0, le=MAX_BACKOFF, description="Seconds before the first restart; doubled for each further one."
    )


class Approvals(TemplateModel):
    """What the runner answers when an agent asks for permission, by the kind of the tool; the agent names the kind."""

    default: Approval = Field("ask", description="For the kinds that are not listed.")
    read: Approval | None = None
    edit: Approval | None = None
    delete: Approval | None = None
    move: Approval | None = None
    search: Approval | None = None
    execute: Approval | None = None
    think: Approval | None = None
    fetch: Approval | None = None
    other: Approval | None = None
    expire_after: Seconds | None = Field(
        None, gt=0, le=30 * _DAY, description="Seconds after which a question to a person is answered with a rejection."
    )

    def of(self, kind: str) -> Approval:
        """Return the policy for a kind of tools."""
        policy: Approval | None = getattr(self, kind, None) if kind in get_args(ToolKind) else None
        return policy or self.default


def _from_short_form(value: object) -> object:
    return {"action": value} if isinstance(value, str) else value


OnLossField = Annotated[OnLoss, BeforeValidator(_from_short_form)]
"""``on_loss: restart``, or a mapping with ``action``, ``most`` and ``backoff``."""
StalledAfter = Annotated[Seconds, Field(ge=0, le=30 * _DAY)]


_ONLY_ACP = {"approvals", "complete_after_turn", "turn_timeout", "client_files", "client_terminals", "mcp_servers"}


class RunConfig(TemplateModel):
    """The ``run`` section of a template version."""

    pool: str = Field("default", pattern=r"^[a-z0-9-]{1,64}$")
    command: Annotated[tuple[TextWithoutNul, ...], Field(min_length=1)]
    resume_command: Annotated[tuple[TextWithoutNul, ...], Field(min_length=1)] | None = Field(
        None, description="The command of a resume that continues; ``resume: continue`` requires it."
    )
    resume: ResumeKind | None = Field(
        None, description="What a resume gives the agent. Absent: the prompt, unless the agent had finished with it."
    )
    stdin: StdinKind | None = Field(
        None, description="Absent: ``none`` for ``agentapi``, ``prompt`` for ``output: codex-json``, else ``pipe``."
    )
    output: OutputKind = Field(
        "text",
        description="``stdio`` whose stdout carries events. ``claude-stream-json``: Claude Code's; its stdin takes"
        " messages, the prompt first, unless ``stdin`` says otherwise. ``codex-json``: those of ``codex exec``, which"
        " takes one prompt.",
    )
    on_exit: Literal["complete", "idle"] = Field("complete", description="The state after exit status 0.")
    workdir: TextWithoutNul = Field(".", description="The working directory, relative to the task's ``work`` folder.")
    env: Environment = Field(default_factory=Environment)
    agent: AgentKind = "stdio"
    limits: Limits = Field(default_factory=Limits)
    sandbox: SandboxKind = Field(
        "none", description="``bwrap``: in a sandbox that shows it the system and its own files."
    )
    network: Network = Field("host", description="``none``: without a network; requires ``sandbox: bwrap``.")
    idle_after: Seconds = Field(10.0, gt=0, le=_DAY, description="Seconds of silence or stability that count as idle.")
    grace: Seconds = Field(10.0, ge=0, le=600, description="Seconds from SIGTERM to SIGKILL.")
    on_loss: OnLossField = Field(default_factory=OnLoss, description="What the worker does when the agent is lost.")
    stalled_after: StalledAfter | None = Field(
        None, description="Seconds without a word after which a working agent counts as stalled; 0: never."
    )
    start_timeout: Seconds = Field(
        120.0,
        gt=0,
        le=_DAY,
        description="Seconds within which AgentAPI, or an agent at each step of the protocol, must answer.",
    )
    post_prompt: bool = Field(
        default=True, description="Whether the prompt is posted as the first message to AgentAPI."
    )

    approvals: Approvals = Field(
        default_factory=Approvals, description="``acp``: what is answered when the agent asks for permission."
    )
    complete_after_turn: bool = Field(
        default=False, description="``acp``: whether the state after a turn is ``complete`` instead of ``idle``."
    )
    turn_timeout: Seconds = Field(
        _DAY, gt=0, le=30 * _DAY, description="``acp``: seconds within which a turn must end."
    )
    client_files: Literal["none", "read", "write"] = Field(
        "none", description="``acp``: files in ``work`` that the agent may read and write through the runner."
    )
    client_terminals: bool = Field(
        default=False, description="``acp``: whether the agent may run commands in ``work`` through the runner."
    )
    mcp_servers: Literal["none", "taskherd"] = Field(
        "none", description="``acp``: ``taskherd``: the agent is given the MCP server ``taskherd mcp``."
    )

    @model_validator(mode="after")
    def _check_combinations(self) -> RunConfig:
        if (self.resume == "continue") != (self.resume_command is not None):
            raise ValueError("`resume: continue` and `resume_command` require each other")
        if self.agent == "agentapi" and self.stdin == "prompt":
            raise ValueError("`stdin: prompt` does not suit `agentapi`, which gets its prompt as the first message")
        if self.agent == "acp" and self.stdin is not None:
            raise ValueError("`stdin` does not suit `acp`, whose stdin carries the protocol")
        if self.output == "codex-json" and self.stdin == "pipe":
            raise ValueError("`stdin: pipe` does not suit `output: codex-json`: Codex reads it to its end first")
        if self.agent != "stdio" and self.output != "text":
            raise ValueError(f"`output: {self.output}` requires `agent: stdio`")
        if self.agent != "acp" and (fields := self.model_fields_set & _ONLY_ACP):
            raise ValueError(f"`{min(fields)}` requires `agent: acp`")
        return self

    @model_validator(mode="after")
    def _check_sandbox(self) -> RunConfig:
        if self.network == "none" and self.sandbox == "none":
            raise ValueError("`network: none` requires `sandbox: bwrap`")
        if self.network == "none" and self.agent not in {"stdio", "acp"}:
            raise ValueError(f"`network: none` does not suit `{self.agent}`, which the runner or the API must reach")
        if self.sandbox != "none" and (self.workdir.startswith("/") or ".." in self.workdir.split("/")):
            raise ValueError(
                "`workdir` must be inside the task's `work` folder with `sandbox: bwrap`, which hides others"
            )
        return self

    @property
    def speaks(self) -> bool:
        """True if the agent's stdout carries lines of a protocol, of which none may be lost."""
        return self.agent == "acp" or self.output != "text"

    @property
    def takes_prompt_as_input(self) -> bool:
        """True if the prompt is the first of the agent's inputs."""
        match self.agent:
            case "acp":
                return True
            case "agentapi":
                return self.post_prompt
            case "stdio":
                return self.output != "text" and self.stdin_kind == "pipe"
            case "self":
                return False
            case _:
                assert_never(self.agent)

    @property
    def stdin_kind(self) -> StdinKind:
        """What the agent reads from its stdin."""
        if self.stdin is None and self.output == "codex-json":
            return "prompt"
        return self.stdin or ("none" if self.agent == "agentapi" else "pipe")
