"""Batches that fail are halved, so that one message costs the others nothing."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from taskherd.backoff import Backoff
from taskherd.store import tasks as task_rows
from taskherd.store.engine import open_engine
from taskherd.worker import app, bisection
from tests.harness.worker import TIMEOUT, WorkerHarness, make_report
from tests.worker.conftest import StartWorker

SLOW, BUGGY = "A slow word", "A word too many"


async def on_update(harness: WorkerHarness, word: str, action: str) -> None:
    """Let PostgreSQL perform ``action`` for each task that is updated and whose state contains the word."""
    await harness.database.execute(f"""
        CREATE FUNCTION disturb() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; RETURN NEW; END $$;
        CREATE TRIGGER disturb BEFORE UPDATE ON tasks FOR EACH ROW WHEN (NEW.state::text LIKE '%{word}%')
        EXECUTE FUNCTION disturb()
    """)


async def test_a_batch_that_takes_too_long_is_halved(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports that do not fit into the time of one statement together are taken in parts."""
    monkeypatch.setattr(app, "open_engine", partial(open_engine, command_timeout=2))
    async with start_worker() as harness:
        tasks = await asyncio.gather(*(harness.create() for _ in range(20)))
        await on_update(harness, SLOW, "PERFORM pg_sleep(0.12)")
        await harness.report(*(make_report("app.status", each, state="working", message=SLOW) for each in tasks))
        await harness.until(lambda: all(harness.state(task_id).get("message") == SLOW for task_id in tasks))
        assert harness.metric("taskherd_batch_failures_total", reason="bisected") >= 1


async def test_a_batch_whose_tasks_have_large_prompts_is_halved(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports of many tasks whose prompts do not fit into memory together are taken in parts, and so are timers."""
    monkeypatch.setattr(task_rows, "MAX_PROMPT_BYTES", 150_000)
    async with start_worker() as harness:
        prompts = [f"{number} " + "x" * 50_000 for number in range(20)]
        tasks = await asyncio.gather(*(harness.create(input=prompt) for prompt in prompts))
        await harness.report(*(make_report("app.status", each, state="working", message=SLOW) for each in tasks))
        await harness.until(lambda: all(harness.state(task_id).get("message") == SLOW for task_id in tasks))
        assert harness.metric("taskherd_batch_failures_total", reason="bisected") >= 1
        assert [harness.document(task_id)["initial_prompt"] for task_id in tasks] == prompts


async def test_a_report_that_a_statement_fails_on_is_a_dead_letter(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of PostgreSQL that is neither an outage nor a rejected value costs that report only."""
    monkeypatch.setattr(bisection, "BUGS", Backoff(0.01, 0.01))
    async with start_worker() as harness:
        tasks = await asyncio.gather(*(harness.create() for _ in range(4)))
        await on_update(harness, BUGGY, "RAISE EXCEPTION USING ERRCODE = '21000'")
        words = ["Reading", BUGGY, "Writing", "Testing"]
        await harness.report(
            *(
                make_report("app.status", task_id, state="working", message=word)
                for task_id, word in zip(tasks, words, strict=True)
            )
        )
        await harness.until(lambda: harness.reasons() == ["fault"])
        for task_id, word in zip(tasks, words, strict=True):
            if word != BUGGY:
                await harness.until(
                    partial(lambda task, text: harness.state(task).get("message") == text, task_id, word)
                )


async def test_messages_that_all_fail_are_not_all_dead_letters(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While each report fails by a bug, the wait before the next is given up grows; what waits is taken afterwards."""
    monkeypatch.setattr(bisection, "BUGS", Backoff(0.01, 3600, jitter=0))
    async with start_worker() as harness:
        tasks = await asyncio.gather(*(harness.create() for _ in range(40)))
        await on_update(harness, BUGGY, "RAISE EXCEPTION USING ERRCODE = '42703'")
        await harness.report(*(make_report("app.status", each, state="working", message=BUGGY) for each in tasks))
        async with asyncio.timeout(TIMEOUT):
            while harness.worker._report_consumer._bisection._bugs_in_a_row < 3:  # noqa: ASYNC110 - it sends no event
                await asyncio.sleep(0.01)
        await harness.database.execute("DROP TRIGGER disturb ON tasks")
        await harness.until(
            lambda: (
                len(harness.dead_letters) + sum(bool(harness.state(each).get("message") == BUGGY) for each in tasks)
                == len(tasks)
            )
        )
    assert set(harness.reasons()) == {"fault"}
    assert len(harness.dead_letters) < len(tasks) / 2
