"""From ``initialize`` to an open session: what is requested of the agent, and what follows from its answers; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from acp import schema
from pydantic import ValidationError

from taskherd import __version__
from taskherd.runner.agents.acp.sizes import MAX_PARTS, has_few_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.directory_file.run import RunConfig

PROTOCOL_VERSION: Final = 1
Continuation: TypeAlias = Literal["session/resume", "session/load", "session/new"]


def initialize_params(run: RunConfig) -> dict[str, Any]:
    """Return the parameters of ``initialize``: what the runner offers as a client, as far as the template allows it."""
    capabilities = {
        "fs": {"readTextFile": run.client_files != "none", "writeTextFile": run.client_files == "write"},
        "terminal": run.client_terminals,
        "elicitation": {"form": {}},
    }
    return {
        "protocolVersion": PROTOCOL_VERSION,
        "clientCapabilities": capabilities,
        "clientInfo": {"name": "taskherd", "title": "taskherd", "version": __version__},
    }


def parse_initialized(result: dict[str, Any]) -> schema.InitializeResponse | str:
    """Return what the agent can do, or why it cannot be used."""
    if not has_few_parts(result):
        return f"Its answer to `initialize` is invalid: it has more than {MAX_PARTS} parts"
    try:
        response = schema.InitializeResponse.model_validate(result)
    except ValidationError as error:
        return f"Its answer to `initialize` is invalid: {_first(error)}"
    if response.protocol_version != PROTOCOL_VERSION:
        return (
            f"It speaks version {response.protocol_version} of the Agent Client Protocol, taskherd version"
            f" {PROTOCOL_VERSION}. Install a version of the agent that speaks it."
        )
    return response


def continuation(agent: schema.InitializeResponse, session_id: str | None) -> Continuation:
    """Return the method that opens the session: it continues an earlier one if there is one and the agent can."""
    capabilities = agent.agent_capabilities
    if session_id is None or capabilities is None:
        return "session/new"
    if capabilities.session_capabilities is not None and capabilities.session_capabilities.resume is not None:
        return "session/resume"
    return "session/load" if capabilities.load_session else "session/new"


def session_params(cwd: str, mcp_servers: Sequence[dict[str, Any]], session_id: str | None) -> dict[str, Any]:
    """Return the parameters of a method that opens a session, with ``session_id`` if it continues one."""
    params: dict[str, Any] = {"cwd": cwd, "mcpServers": list(mcp_servers)}
    return params if session_id is None else {**params, "sessionId": session_id}


def authentication_needed(initialized: dict[str, Any]) -> str:
    """Say what to do about an agent that wants its user to sign in, from its answer to ``initialize``."""
    info = initialized.get("agentInfo")
    info = info if isinstance(info, dict) else {}
    name = str(info.get("title") or info.get("name") or "The agent")[:64]
    methods = _objects(initialized.get("authMethods"))
    offers = []
    for method in methods[:10]:
        names = [str(each.get("name")) for each in _objects(method.get("vars"))]
        label = str(method.get("name") or method.get("id"))
        offers.append(f"{label} ({', '.join(names)})" if names else label)
    offered = f" It offers: {'; '.join(offers)}." if offers else ""
    return (
        f"{name} wants its user to sign in, which taskherd cannot do for it.{offered} Give it its key in a variable"
        " that the template names in `env.inherit` or sets in `env.set`, or sign in once as the user and with the HOME"
        " that its agents have on the runner's machine."
    )


def describe_error(error: dict[str, Any]) -> str:
    """Return an error of the agent in words."""
    words = str(error.get("message") or "unknown error")
    data = error.get("data")
    detail = data.get("details") or data.get("message") if isinstance(data, dict) else data
    return f"{words} ({detail})" if isinstance(detail, str) and detail else words


def _objects(value: object) -> list[dict[str, Any]]:
    """Return the objects in a list, none if the value is no list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
