"""Worker and API behind a real PgBouncer, in both modes."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from taskherd.api.app import ApiProcess
from taskherd.cli import db
from taskherd.cli.diagnostics.database import check_database
from taskherd.errors import Misconfigured
from taskherd.settings import Settings
from taskherd.store import role_settings
from tests.harness.api import TIMEOUT, open_api_harness
from tests.harness.pgbouncer import IGNORED, StartPgBouncer
from tests.harness.sse import sse_client
from tests.harness.worker import SECRET
from tests.store.test_pgbouncer import SETTINGS

pytestmark = pytest.mark.slow

MODES = {
    "session": {"pool_mode": "session"},
    "transaction": {"pool_mode": "transaction", "default_pool_size": "4"},
    "transaction without prepared statements": {
        "pool_mode": "transaction",
        "default_pool_size": "4",
        "max_prepared_statements": "0",
    },
}


@pytest.mark.parametrize("mode", MODES)
async def test_worker_and_api_work_behind_pgbouncer(
    database_url: str, amqp_url: str, amqp_prefix: str, start_pgbouncer: StartPgBouncer, mode: str
) -> None:
    """Commands, reports, reads and streams work through PgBouncer as they do without it."""
    settings = MODES[mode]
    async with start_pgbouncer(**settings) as bouncer:
        await role_settings.apply(database_url)
        url = bouncer.url(pgbouncer=settings["pool_mode"])
        async with open_api_harness(database_url, amqp_url, amqp_prefix, served_url=url) as api:
            created = await api.create()
            async with sse_client(api.alice, f"/tasks/me/{created['id']}/watch") as stream:
                await api.worker.make_active(uuid.UUID(created["id"]))
                await stream.status("active")
            others = await asyncio.gather(*(api.active() for _ in range(8)))
            listed = (await api.alice.get("/tasks")).json()["tasks"]
            assert {task["id"] for task in listed} == {created["id"], *(task["id"] for task in others)}
            response = await api.alice.delete(f"/tasks/me/{created['id']}")
            assert response.status_code == 202, response.text
            assert (await api.alice.get(f"/tasks/me/{created['id']}")).status_code == 404
            assert api.worker.reasons() == []


async def test_doctor_and_role_settings_say_what_is_missing(
    start_pgbouncer: StartPgBouncer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Doctor says which settings are missing and how to set them; after that it prints those in force."""
    async with start_pgbouncer(pool_mode="transaction") as bouncer:
        settings = Settings(database_url=bouncer.url(pgbouncer="transaction"))
        (finding,) = [each async for each in check_database(settings)]
        assert "lock_timeout is 0, not 3000ms" in finding.found
        assert "taskherd db role-settings --apply" in finding.found
        monkeypatch.setenv("TASKHERD_DATABASE_URL", settings.database_url)
        await asyncio.to_thread(db.role_settings, apply=True)
        assert 'SET "' not in (printed := capsys.readouterr().out)
        assert " SET lock_timeout = '3000ms';" in printed
        await bouncer.console("RECONNECT")
        found = {each.what: each.found async for each in check_database(settings)}
        assert "lock_timeout 3000 ms" in found["database sessions"]


async def test_an_api_without_guards_refuses_to_start(
    amqp_url: str, amqp_prefix: str, start_pgbouncer: StartPgBouncer
) -> None:
    """An API whose sessions would have no timeouts ends, and its error says what is missing."""
    async with start_pgbouncer(pool_mode="transaction", **{IGNORED: SETTINGS}) as bouncer:
        settings = Settings(
            database_url=bouncer.url(),
            amqp_url=amqp_url,
            amqp_prefix=amqp_prefix,
            secret_key=SECRET,
            api_port=0,
            ops_port=0,
        )
        api = ApiProcess(settings)
        with pytest.raises(Misconfigured, match="statement_timeout is 0"):
            await asyncio.wait_for(api.run(), TIMEOUT)
