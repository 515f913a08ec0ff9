"""Check what the agent of a template needs of a runner's machine, in the order in which a runner would fail."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import httpx

from taskherd.cli.diagnostics.findings import Finding, error, note, ok
from taskherd.cli.diagnostics.trial import (
    GRACE,
    POLL_INTERVAL,
    AgentEnded,
    Trial,
    TrialHost,
    find_program,
    prepared,
    temporary_root,
)
from taskherd.errors import Malformed, Misconfigured, Unavailable
from taskherd.runner import template as templates
from taskherd.runner.agents import agentapi_client
from taskherd.runner.app import make_isolation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from taskherd.directory_file.model import TemplatePart
    from taskherd.directory_file.run import RunConfig
    from taskherd.runner.workspaces.isolation import Isolation
    from taskherd.settings import Settings

MAX_SECONDS: Final = 600
"""Maximum time of a check, in seconds."""
_MIN_SECONDS: Final = 30.0
"""Default time limit of a check, in seconds, unless the agent may take longer to start."""
SETTLE: Final = 3.0
"""Seconds for which an agent that says nothing must run."""
_CLEANUP: Final = GRACE + 2
"""Seconds of the total that are left to end the agent."""
_ORDINARY: Final = frozenset({"LANG", "LC_ALL", "TZ"})
"""Variables that are unset on many machines, and that no agent needs."""
_SECRETS: Final = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
"""How the names of variables end that hold a secret."""
_BROKEN: Final = frozenset({78, 126, 127})
"""Exit statuses of what cannot work at all: EX_CONFIG of sysexits.h, a shell's for no executable and no program."""


async def check_template(
    template: TemplatePart, settings: Settings, environ: Mapping[str, str], seconds: float | None
) -> list[Finding]:
    """Return the findings, at most ``seconds`` after the call and a little; the first errors come last.

    Without ``seconds`` the agent has the time for its start that a runner gives it.
    """
    began = asyncio.get_running_loop().time()
    version = next((each for each in template.versions if each.id == template.active_version), template.versions[0])
    run = templates.parse(version.run)
    seconds = default_time_limit(run) if seconds is None else seconds
    deadline = began + max(seconds - _CLEANUP, 1)
    findings = [_pool(template, run, settings), *_variables(run, environ)]
    try:
        isolation = make_isolation(settings)
        await asyncio.to_thread(isolation.check, run)
        async with temporary_root(isolation, settings.runner_root) as root:
            findings.append(ok("isolation", _describe(run, isolation)))
            host = TrialHost(settings.agent_api_url, environ, isolation, root)
            async with prepared(version, run, host, seconds) as trial:
                findings += await _try(trial, deadline)
    except Misconfigured as problem:
        words = "; ".join(f"{setting}: {expected}" for setting, expected in problem.wrong)
        findings.append(error("isolation", words, "run the check as the runner's user, with its settings"))
    except Unavailable as problem:
        advice = "install or allow what is missing on this machine, or change the template"
        findings.append(error("isolation", str(problem), advice))
    except Malformed as problem:
        findings.append(error("template", problem.detail, "correct the template"))
    return findings


def default_time_limit(run: RunConfig) -> float:
    """Return the default time limit of a check, in seconds."""
    return min(max(run.start_timeout, _MIN_SECONDS), MAX_SECONDS)


def _pool(template: TemplatePart, run: RunConfig, settings: Settings) -> Finding:
    what, found = "template", f"{template.organization}/{template.name}, agent: {run.agent}"
    if run.pool == settings.runner_pool:
        return ok(what, f"{found}, pool: {run.pool}")
    advice = "run the check where a runner of that pool runs, or set TASKHERD_RUNNER_POOL"
    return note(what, f"{found}; it is for the pool {run.pool}, this machine's is {settings.runner_pool}", advice)


def _variables(run: RunConfig, environ: Mapping[str, str]) -> list[Finding]:
    """Check the variables that the template names; of several secrets, one is enough."""
    if "inherit" not in run.env.model_fields_set:
        return []
    unset = [name for name in run.env.inherit if not environ.get(name) and name not in _ORDINARY]
    secrets = [name for name in run.env.inherit if name.endswith(_SECRETS)]
    if secrets and all(name in unset for name in secrets):
        advice = "set it in the environment of the runner, and of this check"
        return [error("environment", f"not set: {', '.join(secrets)}", advice)]
    if unset:
        return [note("environment", f"not set: {', '.join(unset)}", "set them for the runner if the agent needs them")]
    return [ok("environment", "all variables that the template inherits are set")]


def _describe(run: RunConfig, isolation: Isolation) -> str:
    parts = ["a user of its own" if isolation.users else "the runner's user", f"sandbox: {run.sandbox}"]
    return ", ".join([*parts, f"network: {run.network}", *(["a cgroup"] if isolation.cgroups else [])])


async def _try(trial: Trial, deadline: float) -> list[Finding]:
    """Start the agent, and probe it until ``deadline``, in seconds of the event loop."""
    program = find_program(trial)
    name = trial.run.command[0]
    if program is None:
        path = trial.spec.env.get("PATH", "")
        advice = f"install it on this machine, in the PATH that the template inherits: {path or 'it inherits none'}"
        return [error("program", f"{name} was not found", advice)]
    if trial.spec.sandboxed and not trial.host.isolation.sandbox.shows(program):
        advice = "install it below /usr, or add its folder to TASKHERD_RUNNER_SANDBOX_PATHS"
        return [error("program", f"{program} is not visible in the sandbox", advice)]
    findings = [ok("program", program)]
    try:
        async with trial.started(deadline), asyncio.timeout_at(deadline):
            findings += await _probe(trial)
    except AgentEnded:
        findings.append(_ended(trial))
    except TimeoutError:
        words = f"it did not answer within the time limit.{_quoted(trial.last_words())}"
        findings.append(error(_QUESTIONS[trial.run.agent], words, "see its last words, or give it more with --timeout"))
    except (OSError, Unavailable) as problem:
        findings.append(error("start", f"it could not be started: {problem}", "make it executable for its user"))
    return findings


_QUESTIONS: Final = {"acp": "protocol", "agentapi": "AgentAPI", "stdio": "start", "self": "start"}
"""What an agent of each kind is probed for."""


async def _probe(trial: Trial) -> list[Finding]:
    """Probe a running agent in the way of its kind. Raise ``AgentEnded`` if it ends before that."""
    match trial.run.agent:
        case "acp":
            # The schema takes half a second to import.
            from taskherd.cli.diagnostics.template_acp import probe_acp  # noqa: PLC0415

            return await probe_acp(trial)
        case "agentapi":
            return [await _probe_agentapi(trial)]
        case _:
            for _ in range(round(SETTLE / POLL_INTERVAL)):
                await asyncio.sleep(POLL_INTERVAL)
                trial.raise_if_ended()
            return [ok("start", f"it runs, {SETTLE:g} s after its start; its output was not judged")]


async def _probe_agentapi(trial: Trial) -> Finding:
    assert trial.port is not None
    async with agentapi_client.open_client(trial.port, trial.identify_peer) as client:
        while True:
            trial.raise_if_ended()
            try:
                answer = await agentapi_client.fetch_status(client)
                if answer.is_success:
                    return ok("AgentAPI", f"it answers on its port: {answer.text[:80]}")
            except httpx.HTTPError:
                pass
            await asyncio.sleep(POLL_INTERVAL)


def _ended(trial: Trial) -> Finding:
    """Return the finding about an agent that ended at once."""
    agent_exit, run = trial.how_it_ended(), trial.run
    assert agent_exit is not None
    found = f"{agent_exit.describe()}{_quoted(trial.last_words())}"
    runs_once = run.agent == "self" or (run.agent == "stdio" and run.stdin_kind != "pipe")
    if run.agent in {"stdio", "self"} and agent_exit.code == 0:
        return note("start", found, "none is needed if it ends because it was given no prompt")
    if runs_once and agent_exit.code is not None and agent_exit.code not in _BROKEN:
        return note("start", found, "none is needed if it ends because it was given no prompt; else see its last words")
    return error("start", found, "do what its last words say")


def _quoted(words: str) -> str:
    return f" Its last words:\n{words}" if words else " It wrote nothing."
