"""Check that the API answers, with the installed version, and on a runner's machine its clock."""

from __future__ import annotations

from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

import orjson

from taskherd import __version__
from taskherd.cli.diagnostics import clocks, http
from taskherd.cli.diagnostics.findings import Finding, error, note, ok
from taskherd.cli.diagnostics.roles import Role
from taskherd.errors import Unavailable
from taskherd.settings import without_password

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection
    from datetime import datetime

    from taskherd.settings import Settings

API_URL: Final = "TASKHERD_URL"
"""Variable with the URL of the API, for clients."""
_PATH: Final = "/api/v2/buildinfo"
_DATE_AGE: Final = timedelta(seconds=2)
"""Maximum age of a ``Date`` header: it has whole seconds, and the server renews it once per second."""


async def check_api(
    settings: Settings, roles: Collection[Role], client_url: str = "", now: clocks.Now = clocks.utc_now
) -> AsyncIterator[Finding]:
    """Check the API of this machine, and the one that a runner's agents use; ``now`` is this machine's clock.

    ``client_url`` is used instead of this machine's address, if it is set.
    """
    if Role.API in roles:
        if client_url or settings.api_port:
            url = client_url or http.base_url(settings.api_host, settings.api_port)
            yield (await _check(url, now, is_needed=bool(client_url)))[0]
        else:
            yield note("API", "it listens on any free port, so it cannot be checked", f"set {API_URL} to its URL")
    if Role.RUNNER in roles:
        for finding in await _check(settings.agent_api_url, now, is_needed=True):
            yield finding


async def _check(url: str, now: clocks.Now, *, is_needed: bool) -> list[Finding]:
    """Return findings about the answer of the API at ``url``, and if there is one, about its clock."""
    what = f"API {without_password(url)}"
    advice = "start `taskherd api`, or correct " + (f"{API_URL} or TASKHERD_AGENT_API_URL" if is_needed else "its port")
    before = now()
    try:
        answer = await http.get(url.rstrip("/") + _PATH, through_proxy=True)
    except http.Refused as problem:
        return [error(what, str(problem), advice) if is_needed else note(what, f"{problem}: no API runs here", advice)]
    except Unavailable as problem:
        return [error(what, str(problem), advice)]
    version = _version(answer)
    if version is None:
        return [error(what, f"not taskherd's API (status {answer.status})", advice)]
    finding = ok(what, f"version {version}")
    if version != __version__:
        finding = note(what, f"version {version}; installed is {__version__}", "run the same version everywhere")
    shown = _date(answer)
    if shown is None:
        return [finding]
    return [finding, clocks.compare("the API", (shown, shown + _DATE_AGE), (before, now()))]


def _version(answer: http.SmallResponse) -> str | None:
    """Return the version of taskherd, which follows Coder's, or None if this is another server."""
    try:
        version = str(orjson.loads(answer.body)["version"])
    except (ValueError, KeyError, TypeError):
        return None
    coder, _, own = version.partition("+taskherd.")
    return own if coder and own and answer.status == http.OK else None


def _date(answer: http.SmallResponse) -> datetime | None:
    try:
        return parsedate_to_datetime(answer.headers.get("date", "")).astimezone(UTC)
    except ValueError:
        return None
