"""How a worker is put together, before it connects to anything."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from taskherd import __version__
from taskherd.errors import Misconfigured
from taskherd.messages.agent_tokens import agent_token
from taskherd.settings import Settings
from taskherd.store import database_clock, migrate
from taskherd.worker import app
from taskherd.worker.app import Worker
from tests.harness.histories import NOON, TASK

URLS: dict[str, Any] = {"database_url": "postgresql://db/t", "amqp_url": "amqp://mq/"}
SECRET = "s" * 32
MIB = 1024 * 1024


def make_worker(**settings: Any) -> Worker:
    """Return a worker with these settings."""
    return Worker(Settings(**{**URLS, "secret_key": SECRET, **settings}))


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, "database_url"),
        ({"database_url": URLS["database_url"]}, "amqp_url"),
        (URLS, "secret_key"),
    ],
)
def test_a_worker_needs_a_database_a_broker_and_a_secret(
    settings: dict[str, Any], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of them it does not start, and names the first that is missing."""
    for name in ("TASKHERD_DATABASE_URL", "TASKHERD_AMQP_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Misconfigured, match="must be set for a worker") as raised:
        app.main(Settings(**settings))
    assert raised.value.setting == missing


async def test_the_memory_of_unacknowledged_messages_is_bounded() -> None:
    """As the runbook says: 64 MiB of reports, 32 of commands and 16 of messages of runners; 2,000 of each of those."""
    worker = make_worker(prefetch=7_777)
    consumers = (worker._reports, worker._commands, worker._claims)
    assert [each._max_bytes for each in consumers] == [64 * MIB, 32 * MIB, 16 * MIB]
    assert [each._prefetch for each in consumers] == [7_777, 2_000, 2_000]
    assert [each._exclusive for each in consumers] == [True, False, False]


async def test_each_worker_has_a_name_of_its_own() -> None:
    """Unless it is given one."""
    settings = Settings(**URLS, secret_key=SECRET)
    one, other = Worker(settings), Worker(settings)
    assert one._id != other._id
    assert Worker(settings, "w7")._id == "w7"
    assert one.ops_port == 0, "it is not open yet"


async def test_tokens_are_signed_with_the_newest_secret() -> None:
    """The older ones only verify."""
    worker = make_worker(secret_key=f"{'n' * 32},{'o' * 32}")
    assert worker._context.make_agent_token(TASK, 3) == agent_token("n" * 32, TASK, 3)


async def test_a_task_whose_prompt_has_no_words_gets_two() -> None:
    """And four digits, so that its name is not in use."""
    short, longer = make_worker()._context.draw_names("?!")
    assert re.fullmatch(r"[a-z]+-[a-z]+-[0-9a-f]{4}", short)
    assert re.fullmatch(r"[a-z]+(-[a-z]+)?-[0-9a-f]{8}", longer)


@pytest.mark.parametrize(("mode", "strict"), [("strict", True), ("queue", False)])
async def test_inputs_are_refused_or_queued_while_an_agent_is_busy(mode: str, *, strict: bool) -> None:
    """As the setting says."""
    assert make_worker(send_mode=mode)._context.strict_send is strict


async def test_limits_of_logs_are_those_of_the_settings() -> None:
    """In entries and in bytes."""
    limits = make_worker(log_entries_most=200, log_bytes_most=70_000)._context.log_limits
    assert (limits.max_entries, limits.max_bytes) == (200, 70_000)


async def test_a_worker_shows_what_it_is() -> None:
    """Its version and its installation, and no other series."""
    worker = make_worker()
    value = worker.metrics.registry.get_sample_value
    assert value("taskherd_build_info", {"version": __version__}) == 1
    assert value("taskherd_process_info", {"role": "worker", "installation": worker._settings.installation}) == 1
    assert value("taskherd_database_up") == 0


async def test_traces_say_that_they_are_those_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of which version, if there are any."""
    opened: list[tuple[object, ...]] = []
    monkeypatch.setattr(app, "open_tracing", lambda *arguments: opened.append(arguments))
    worker = make_worker()
    assert opened == [(worker._settings.tracing, "worker", __version__)]


async def test_what_makes_a_worker_unready() -> None:
    """The broker, its consumers, the database and its schema; a newer release is only noted."""
    readiness = make_worker()._readiness
    assert set(readiness._reasons) == {"broker", "consumers"}
    names = ("database", "schema", "release")
    assert set(readiness._checks) == set(names)
    assert [readiness.counts(name) for name in names] == [True, True, False]


async def test_a_lost_connection_interrupts_what_is_known_of_the_broker() -> None:
    """Reports may wait in its queues, and another broker may lack what was declared."""
    worker = make_worker()
    probe: Any = worker.probe
    probe.note_drained()
    assert probe.drained_since is not None
    worker._topology._due.clear()
    worker._work_queues._declared.add("r1")
    worker._connections._on_down()
    assert (probe.drained_since, worker._topology._due.is_set()) == (None, True)
    assert worker._work_queues._declared == set()


async def test_only_what_may_delay_reports_interrupts_the_drained_time() -> None:
    """An error that is retried does, a message that is not confirmed does not."""
    worker = make_worker()
    worker.probe.note_drained()
    since = worker.probe.drained_since
    worker._context.on_unconfirmed("a queue is full")
    assert (worker.probe.drained_since, since is None) == (since, False)
    worker._context.on_error("no database")
    assert worker.probe.drained_since is None


@pytest.mark.parametrize("idle", ["", "_reports", "_commands", "_claims"])
async def test_a_worker_is_ready_and_drained_while_it_consumes_everything(
    monkeypatch: pytest.MonkeyPatch, idle: str
) -> None:
    """Deliveries in flight are those that wait and those in progress."""
    worker = make_worker()
    worker.probe.note_drained()
    since = worker.probe.drained_since
    assert since is not None
    for name, buffered in (("_reports", 3), ("_commands", 50), ("_claims", 500)):
        monkeypatch.setattr(worker, name, SimpleNamespace(consuming=name != idle, buffered=buffered))
    monkeypatch.setattr(worker, "_report_consumer", SimpleNamespace(in_flight=4))
    monkeypatch.setattr(app, "in_use", lambda _: 6)
    updating = asyncio.create_task(worker._update_gauges())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not updating.done()
    updating.cancel()
    await asyncio.wait({updating})
    reason = "not consuming" if idle else None
    assert worker._readiness._reasons == {"broker": "not known yet", "consumers": reason}
    assert worker.probe.drained_since == (None if idle else since)
    value = worker.metrics.registry.get_sample_value
    assert (value("taskherd_in_flight_deliveries"), value("taskherd_database_connections_in_use")) == (7, 6)


@pytest.mark.parametrize(("mode", "upgrades"), [("auto", True), ("never", False)])
async def test_a_worker_prepares_its_database(monkeypatch: pytest.MonkeyPatch, mode: str, *, upgrades: bool) -> None:
    """It migrates it, if it may, and takes its time; until then a metric says that there is none."""
    worker = make_worker(migrate=mode)
    ensured: list[tuple[str, bool]] = []

    async def ensure(url: str, *, upgrading: bool) -> None:
        ensured.append((url, upgrading))

    @asynccontextmanager
    async def transaction(engine: object) -> AsyncIterator[str]:
        assert engine is worker._engine
        yield "connection"

    async def read(connection: object) -> datetime:
        assert connection == "connection"
        return NOON

    monkeypatch.setattr(migrate, "ensure_async", ensure)
    monkeypatch.setattr(app, "transaction", transaction)
    monkeypatch.setattr(database_clock, "read", read)
    worker.metrics.database_up.set(1)
    worker._on_database_down("away")
    assert worker.metrics.registry.get_sample_value("taskherd_database_up") == 0
    await worker._prepare_database()
    assert ensured == [(URLS["database_url"], upgrades)]
    assert timedelta() <= worker._clock.now() - NOON < timedelta(minutes=1)
