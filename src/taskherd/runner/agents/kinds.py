"""The follower class of each kind of agent: the only place that decides by the kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, assert_never

from taskherd.runner.agents.agentapi import AgentApiFollower
from taskherd.runner.agents.event_stream.follower import EventStreamFollower
from taskherd.runner.agents.self_reporting import SelfReportingFollower
from taskherd.runner.agents.stdio import StdioFollower

if TYPE_CHECKING:
    from taskherd.directory_file.run import RunConfig
    from taskherd.runner.agents.acp.follower import AcpFollower

FollowerClass: TypeAlias = (
    "type[StdioFollower | EventStreamFollower | AgentApiFollower | SelfReportingFollower | AcpFollower]"
)


def follower_class(run: RunConfig) -> FollowerClass:
    """Return the class that follows agents of a template."""
    match run.agent:
        case "stdio":
            return StdioFollower if run.output == "text" else EventStreamFollower
        case "agentapi":
            return AgentApiFollower
        case "self":
            return SelfReportingFollower
        case "acp":
            # The schema takes half a second to import, and 12 MiB, which runners without such agents do without.
            from taskherd.runner.agents.acp.follower import AcpFollower  # noqa: PLC0415

            return AcpFollower
        case _:
            assert_never(run.agent)
