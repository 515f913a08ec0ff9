"""Run the checks of this machine's roles, all at once, each with a timeout."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from taskherd.cli.diagnostics import api, clocks, processes
from taskherd.cli.diagnostics.broker import check_broker
from taskherd.cli.diagnostics.database import check_database, check_standby
from taskherd.cli.diagnostics.findings import Finding, error, ok
from taskherd.cli.diagnostics.machine import check_machine
from taskherd.cli.diagnostics.pools import check_own_queues, check_pools
from taskherd.cli.diagnostics.roles import SERVERS, Role, check_settings, configured_roles
from taskherd.errors import Misconfigured, TaskherdError
from taskherd.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHECK_TIMEOUT: Final = 30.0
"""Maximum time of a group of checks, in seconds; the groups run at the same time, so this is also the total."""


async def run_checks(chosen: tuple[Role, ...] = (), now: clocks.Now = clocks.utc_now) -> list[Finding]:
    """Run the checks of the roles, or of this machine's roles, and return findings in the order to fix them.

    ``now`` is this machine's clock.
    """
    roles, found = (chosen, "as asked for") if chosen else await _roles_of_machine()
    settings, findings = check_settings(roles)
    findings.insert(0, ok("role of this machine", f"{', '.join(roles)} ({found})"))
    if settings is None:
        return findings
    groups = [collect(name, group) for name, group in _groups(settings, roles, now).items()]
    for group in await asyncio.gather(*groups):
        findings += group
    return findings


async def collect(name: str, group: AsyncIterator[Finding], seconds: float = CHECK_TIMEOUT) -> list[Finding]:
    """Return the findings of a group, with an error if it fails or takes longer than ``seconds``."""
    findings: list[Finding] = []
    try:
        async with asyncio.timeout(seconds):
            async for finding in group:
                findings.append(finding)  # noqa: PERF401 - those before a failure are kept
    except TimeoutError:
        findings.append(error(name, f"no result within {seconds:g} s", "look for an overloaded server or network"))
    except TaskherdError as problem:
        findings.append(error(name, str(problem), "correct the settings of it, or start it"))
    except Exception as problem:  # noqa: BLE001 - the other checks go on; its text may contain a URL
        findings.append(error(name, f"the check failed with {type(problem).__name__}", "report this as a bug"))
    return findings


def _groups(settings: Settings, roles: tuple[Role, ...], now: clocks.Now) -> dict[str, AsyncIterator[Finding]]:
    """Return the groups of checks for these roles, without those whose settings are missing."""
    is_server = not SERVERS.isdisjoint(roles)
    environ = os.environ
    groups: dict[str, AsyncIterator[Finding]] = {}
    if is_server and settings.database_url:
        groups["database"] = check_database(settings, roles, now)
    if Role.API in roles and settings.database_read_url:
        groups["standby"] = check_standby(settings)
    if settings.amqp_url:
        groups["broker"] = check_broker(settings, roles)
        if is_server and settings.database_url:
            groups["tasks and runners"] = check_pools(settings)
        if Role.RUNNER in roles:
            groups["runner's queues"] = check_own_queues(settings)
    if Role.RUNNER in roles:
        groups["machine"] = check_machine(settings)
    groups["API"] = api.check_api(settings, roles, environ.get(api.API_URL, ""), now)
    groups["operations port"] = processes.check_processes(settings, roles, environ.get(processes.METRICS_URL, ""))
    return groups


async def _roles_of_machine() -> tuple[tuple[Role, ...], str]:
    """Return the role of the process that runs with these settings, else the roles that they are set for, and why."""
    try:
        running = await processes.running_role(load("amqp_prefix"))
    except Misconfigured:
        running = None
    if running is not None:
        return (running,), "it runs with these settings"
    return configured_roles(os.environ), "from the settings"
