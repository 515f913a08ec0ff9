"""Fixtures: one API with a worker and one browser for all tests of a file; each test has a tab of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from taskherd.dev.services import Services
from tests.board.pages import Board
from tests.conftest import open_amqp_prefix
from tests.harness.api import open_api_harness
from tests.harness.browser import find_chromium, run_browser
from tests.harness.databases import Databases


@pytest.fixture(autouse=True)
async def close_tabs(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Close the tabs of a test at its end: they would draw whatever happens in the tests after it."""
    board: Board | None = request.getfixturevalue("board") if "board" in request.fixturenames else None
    yield
    if board is not None:
        await board.browser.close_tabs()


@pytest.fixture(scope="module")
async def board(services: Services, databases: Databases, announce: Callable[[str], None]) -> AsyncIterator[Board]:
    """Run an API, a worker and a browser on a database and queues of their own."""
    async with (
        open_amqp_prefix(services.amqp_url) as prefix,
        databases.lend() as url,
        open_api_harness(url, services.amqp_url, prefix, agent_lost_after=3_600) as harness,
        run_browser(find_chromium(announce)) as browser,
    ):
        yield Board(harness, browser)
