"""Check each of several hosts of a URL: the processes need only one, but the others are there for when it fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from taskherd.cli.diagnostics.findings import Finding, note, ok
from taskherd.errors import TaskherdError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from taskherd.endpoints import Host


async def check_hosts(
    what: str, hosts: Sequence[Host], describe: Callable[[Host], Awaitable[str]]
) -> Sequence[Finding]:
    """Return a finding for each host, in order, and none for an only host, which other checks need anyway.

    Args:
        what: what the findings are about; the host is appended.
        hosts: the hosts of a URL.
        describe: connects to one host and returns what it is; it may raise any ``TaskherdError``.
    """

    async def check(host: Host) -> Finding:
        try:
            return ok(f"{what} {host}", await describe(host))
        except TaskherdError as problem:
            return note(f"{what} {host}", str(problem), "start it, or correct the URL: it is needed when others fail")

    return await asyncio.gather(*map(check, hosts)) if len(hosts) > 1 else ()
