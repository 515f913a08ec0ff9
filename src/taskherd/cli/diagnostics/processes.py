"""Check the operations port of each process: whose process answers, whether it is ready, what its alerts read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson

from taskherd import __version__
from taskherd.api.app import OPS_PORT as API_PORT
from taskherd.cli.diagnostics import http
from taskherd.cli.diagnostics.findings import Finding, error, note, ok, problems
from taskherd.cli.diagnostics.roles import Role
from taskherd.errors import Unavailable
from taskherd.observability import scrape
from taskherd.observability.health import DEFAULT_PORT as WORKER_PORT
from taskherd.runner.app import OPS_PORT as RUNNER_PORT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from taskherd.observability.scrape import Scrape
    from taskherd.settings import Settings

METRICS_URL: Final = "TASKHERD_METRICS_URL"
"""Variable with the URL of a worker's metrics, which `taskherd dev` sets."""
_PORTS: Final[Mapping[Role, int]] = {Role.WORKER: WORKER_PORT, Role.API: API_PORT, Role.RUNNER: RUNNER_PORT}
_FREE_PORT: Final = "set TASKHERD_OPS_PORT to a free port"


async def running_role(settings: Settings) -> Role | None:
    """Return the role of the process that these settings belong to; None if their port is not set or silent."""
    if not _is_explicit(settings):
        return None
    try:
        found = await _scrape(http.base_url(settings.ops_host, settings.ops_port))
    except Unavailable:
        return None
    is_ours = found is not None and found.installation == settings.installation and found.role in set(Role)
    return Role(found.role) if found is not None and is_ours else None


async def check_processes(settings: Settings, roles: Collection[Role], metrics_url: str = "") -> AsyncIterator[Finding]:
    """Check the operations port of each role on this machine.

    If the port is set, the settings belong to one process, and only its port is checked. ``metrics_url`` is the URL of
    a worker's metrics, used instead of the worker's default port.
    """
    if "ops_port" in settings.model_fields_set and not settings.ops_port:
        yield note("operations port", "any free port, so it cannot be checked", "set TASKHERD_OPS_PORT to a port")
        return
    if _is_explicit(settings):
        ports: dict[str, Collection[Role]] = {http.base_url(settings.ops_host, settings.ops_port): roles}
    else:
        ports = {http.base_url(settings.ops_host, _PORTS[role]): (role,) for role in roles}
        if metrics_url and Role.WORKER in roles:
            del ports[http.base_url(settings.ops_host, _PORTS[Role.WORKER])]
            ports = {metrics_url.removesuffix("/metrics"): (Role.WORKER,), **ports}
    for url, expected in ports.items():
        async for finding in _check_port(settings, url, expected):
            yield finding


async def _check_port(settings: Settings, url: str, expected: Collection[Role]) -> AsyncIterator[Finding]:
    port = urlsplit(url).port
    what = f"operations port {port}"
    kinds = " or ".join(expected)
    try:
        found = await _scrape(url)
    except http.Refused:
        advice = f"if one should run on this machine, start it: `taskherd {next(iter(expected))}`"
        yield note(what, f"free: no {kinds} runs here", advice)
        return
    except Unavailable as problem:
        yield _other(settings, what, str(problem))
        return
    if found is None:
        yield _other(settings, what, "in use by another program")
    elif not found.role:
        yield note(what, f"a process of taskherd {found.version} that does not name its installation", "upgrade it")
    elif found.installation != settings.installation:
        text = f"{found.role} of another installation ({found.installation}; these settings: {settings.installation})"
        yield _other(settings, what, text)
    elif found.role not in expected:
        yield _other(settings, what, f"{found.role} of this installation, not {kinds}")
    else:
        yield await _readiness(what, url, found)
        advice = "restart the process with this version; alerts on these metrics cannot fire"
        yield problems(f"inputs of the {found.role}'s alerts", found.missing_alert_inputs(), "complete", advice)


def _other(settings: Settings, what: str, found: str) -> Finding:
    """Return a finding about a port that a process of this installation cannot use."""
    if _is_explicit(settings):
        return error(what, found, _FREE_PORT)
    return note(what, found, f"{_FREE_PORT}, if a process of this installation is to run here")


async def _readiness(what: str, url: str, found: Scrape) -> Finding:
    """Return whether a process of this installation is ready, or why it is not."""
    text = f"{found.role} of this installation"
    try:
        answer = await http.get(f"{url}/readyz")
        checks: dict[str, Any] = orjson.loads(answer.body)["checks"]
        reasons = [f"{name}: {check['reason']}" for name, check in checks.items() if not check["ok"]]
    except (Unavailable, ValueError, KeyError, TypeError) as problem:
        return error(what, f"{text} that does not say whether it is ready ({problem})", "see its log")
    if reasons:
        return error(what, "\n".join((f"{text}, not ready", *reasons)), "see its log")
    if found.version != __version__:
        advice = "restart it, so that it runs the installed version"
        return note(what, f"{text}, ready, of version {found.version}; installed is {__version__}", advice)
    return ok(what, f"{text}, ready")


async def _scrape(url: str) -> Scrape | None:
    """Return the scrape, or None if what answers is not taskherd. Raise ``Unavailable`` if there is no answer."""
    answer = await http.get(f"{url}/metrics")
    try:
        found = scrape.parse(answer.body.decode())
    except ValueError:
        return None
    return found if found.is_taskherd else None


def _is_explicit(settings: Settings) -> bool:
    return "ops_port" in settings.model_fields_set and settings.ops_port != 0
