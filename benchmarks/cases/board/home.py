"""The home page in Chromium, of an admin who looks at everyone's tasks, of which there are enough for each list."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from benchmarks.harness.services import connected
from tests.harness.browser import find_chromium, run_browser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.harness.services import BenchmarkServices
    from tests.harness.browser import Browser, Tab

ADMIN: Final = "admin"
READY: Final = "document.querySelector('.page[data-ready] .lines li')"
"""True once the page shows rows of tasks that can be used."""

_ADMIN: Final = """
INSERT INTO users (id, username, name, email, avatar_url) VALUES (md5('admin')::uuid, 'admin', 'Admin', '', '');
INSERT INTO memberships (user_id, organization_id, role) SELECT md5('admin')::uuid, id, 'admin' FROM organizations;
"""
# Every fourth task waits for a message, every fourth is done, and every fourth has failed.
_STATES: Final = """
CREATE TEMPORARY TABLE ended AS
SELECT id, (ARRAY['idle', 'complete', 'failed'])[(abs(hashtext(name)) % 4)] AS state
FROM tasks WHERE abs(hashtext(name)) % 4 > 0;
UPDATE tasks SET document = replace(document::text, '"state":"working"', '"state":"' || e.state || '"')::json
FROM ended AS e WHERE e.id = tasks.id;
UPDATE task_index SET state = e.state FROM ended AS e WHERE e.id = task_id;
TRUNCATE task_totals;
INSERT INTO task_totals (organization_id, owner_id, template_id, pool, status, state, health, waiting, stalled, tasks)
SELECT organization_id, u.id, template_id, pool, status, state, health, waiting, stalled, count(*)
FROM task_index, LATERAL (VALUES (owner_id), ('00000000-0000-0000-0000-000000000000')) AS u(id)
WHERE term = '' GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9;
"""
_ENTERING: Final = """if (location.protocol === "http:") {
  sessionStorage.setItem("taskherd-token", %s);
  localStorage.setItem("taskherd-home-scope", "everyone");
}"""


async def fill(services: BenchmarkServices, tasks: int, owners: int) -> None:
    """Create a database with tasks of many owners, an admin, and agents that work, wait, are done and have failed."""
    await services.prepare_tasks(tasks, owners)
    async with connected(services.database_url) as connection:
        await connection.execute(_ADMIN + _STATES)
        await connection.execute("VACUUM ANALYZE")


async def add_admin(services: BenchmarkServices) -> None:
    """Add an admin of the organization to the database."""
    async with connected(services.database_url) as connection:
        await connection.execute(_ADMIN)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser while the block runs."""
    async with run_browser(find_chromium(print)) as browser:
        yield browser


async def new_tab(browser: Browser, token: str, script: str = "") -> Tab:
    """Return a tab without a cache, in which pages are signed in, and where a script runs before each page."""
    tab = await browser.new_tab(private=True)
    await tab.resize(1280, 900)
    await tab.call("Page.addScriptToEvaluateOnNewDocument", source=_ENTERING % json.dumps(token) + script)
    return tab


async def metrics(tab: Tab) -> dict[str, Any]:
    """Return what the browser counts of a tab, after its garbage was collected; bytes where they are sizes."""
    await tab.call("HeapProfiler.collectGarbage")
    found = await tab.call("Performance.getMetrics")
    return {each["name"]: each["value"] for each in found["metrics"]}
