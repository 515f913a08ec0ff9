"""Which processes a machine is for: what is running with these settings, or else what the settings are enough for."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from taskherd.cli.diagnostics.findings import Finding, error, ok
from taskherd.errors import Misconfigured
from taskherd.settings import Settings, load, variable_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Role(StrEnum):
    """A kind of process."""

    WORKER = "worker"
    API = "api"
    RUNNER = "runner"


SERVERS: Final = frozenset({Role.WORKER, Role.API})
"""The roles that use the database and the secret key."""
REQUIRED: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.WORKER: ("database_url", "amqp_url", "secret_key"),
    Role.API: ("database_url", "amqp_url", "secret_key"),
    Role.RUNNER: ("amqp_url",),
}
"""The settings that each role needs."""
_RUNNER_SETTINGS: Final = ("runner_name", "runner_pool", "runner_root", "runner_cgroup")


def configured_roles(environ: Mapping[str, str]) -> tuple[Role, ...]:
    """Return the roles that the variables in ``environ`` are set for.

    A runner's machine has the URL of the broker but neither a database URL nor a secret key.
    """
    is_server = any(_is_set(environ, name) for name in ("database_url", "secret_key"))
    if not is_server and _is_set(environ, "amqp_url"):
        return (Role.RUNNER,)
    is_runner = any(_is_set(environ, name) for name in _RUNNER_SETTINGS)
    return (Role.WORKER, Role.API, *((Role.RUNNER,) if is_runner else ()))


def check_settings(roles: Iterable[Role]) -> tuple[Settings | None, list[Finding]]:
    """Check the settings that the roles need.

    Return them with the findings, or None if no service can be checked with them.
    """
    required = dict.fromkeys(name for role in roles for name in REQUIRED[role])
    try:
        settings = load(*required)
    except Misconfigured as problem:
        return _load_all_optional(), [
            error(variable, *_split_problem(text, f"set {variable}")) for variable, text in problem.wrong
        ]
    findings = [ok("settings", "all valid")]
    if "secret_key" in required:
        shortest = min(len(key) for key in settings.secret_keys)
        findings.append(ok("secret keys", f"{len(settings.secret_keys)}, of at least {shortest} characters"))
    return settings, findings


def _load_all_optional() -> Settings | None:
    try:
        return load("amqp_prefix")
    except Misconfigured:
        return None


def _is_set(environ: Mapping[str, str], name: str) -> bool:
    variable = variable_of(name)
    return bool(environ.get(variable) or environ.get(f"{variable}_FILE"))


def _split_problem(problem: str, default_advice: str) -> tuple[str, str]:
    """Split the problem of a setting into what was found, and advice with what is expected."""
    found, _, expected = problem.partition("; expected ")
    return found, f"expected {expected}" if expected else default_advice
