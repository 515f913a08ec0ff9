"""The environment of the runner that ``taskherd dev`` and the demo start: what it needs, and what templates inherit.

Its agents may be able to read what it has, so nothing else of the developer's environment is passed on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from taskherd.settings.fields import PREFIX
from taskherd.store import directory
from taskherd.store.engine import dispose, open_engine, transaction

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_SYSTEM: Final = frozenset(
    {
        *("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"),
        *("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "all_proxy", "http_proxy", "https_proxy", "no_proxy"),
        *("LD_LIBRARY_PATH", "NO_COLOR", "SSL_CERT_DIR", "SSL_CERT_FILE"),
    }
)
_SYSTEM_PREFIXES: Final = ("LC_", "OTEL_", "PYTHON")
_SETTINGS: Final = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *("AGENT_API_URL", "AMQP_PREFIX", "AMQP_URL", "FAILPOINT", "GRACE", "LOG_BYTES_RATE", "LOG_ENTRIES_RATE"),
        *("LOG_FORMAT", "LOG_LEVEL", "OPS_HOST", "OPS_PORT", "TRACING"),
    )
)
_RUNNER_SETTINGS: Final = f"{PREFIX}RUNNER_"


def select(environ: Mapping[str, str], inherited: Collection[str]) -> dict[str, str]:
    """Return the variables that a runner needs, and those that its templates inherit.

    Args:
        environ: the variables to choose from.
        inherited: the names that templates inherit; those with taskherd's prefix are never passed on for that.
    """
    return {
        name: value
        for name, value in environ.items()
        if _is_needed(name) or (name in inherited and not name.startswith(PREFIX))
    }


def _is_needed(name: str) -> bool:
    if name.startswith(PREFIX):
        return name in _SETTINGS or name.startswith(_RUNNER_SETTINGS)
    return name in _SYSTEM or name.startswith(_SYSTEM_PREFIXES)


def inherited_variables(database_url: str) -> frozenset[str]:
    """Return the names of the variables that the loaded templates inherit. Raise ``Unavailable`` if that fails."""
    return asyncio.run(_read(database_url))


async def _read(database_url: str) -> frozenset[str]:
    engine = open_engine(database_url, size=1, application_name="taskherd-dev")
    try:
        async with transaction(engine) as connection:
            return await directory.inherited_variables(connection)
    finally:
        await dispose(engine)
