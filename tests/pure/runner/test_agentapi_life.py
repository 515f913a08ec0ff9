"""The follower of AgentAPI from its first connection to the exit of the agent, with an AgentAPI in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from taskherd import retry, sse
from taskherd.domain.reports import InterruptOutcome, LogEntry, LogSource
from taskherd.messages.limits import LOG_BURST, MAX_CONTENT_BYTES
from taskherd.runner.agents import agentapi
from taskherd.runner.agents.agentapi import BUSY, AgentApiFollower
from taskherd.runner.agents.agentapi_client import ForeignListener
from taskherd.runner.agents.context import DeliveryUnknown, NotDelivered
from taskherd.runner.agents.log_budget import LogBudget, LogRates
from taskherd.runner.agents.words import MAX_WORDS, last_with_words
from taskherd.runner.journal import InputDelivery
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.reporter import Reporter
from taskherd.runner.workspaces.processes import ExitRecord
from tests.pure.runner.contexts import Spending, make_context, reports_of
from tests.pure.runner.life import FollowerLife, a_few_steps, recorded
from tests.pure.runner.test_context import given_start

ACCEPTED = (200, "{}")
REFUSED = (500, BUSY)
OTHER = b"event: other\ndata: x\n\n"


class AgentApi(httpx.AsyncBaseTransport):
    """An AgentAPI that does what a test says."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        """What each request for the events and for the status raises."""
        self.streams = True
        """Whether the events are streamed; else they are answered with 500."""
        self.status = ACCEPTED
        self.posts: list[tuple[int, str]] = []
        """Status and body of the answers to the next posts; then none is answered."""
        self.requests: list[str] = []
        self.allowed = 10**9
        """Number of requests that are answered; more of them wait."""
        self.posted: list[dict[str, str]] = []
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        self.requests.append(request.url.path)
        while len(self.requests) > self.allowed:  # noqa: ASYNC110 - a test changes it
            await asyncio.sleep(0.001)
        if request.url.path == "/message":
            return await self._answer_post(json.loads(request.content))
        if self.failure is not None:
            raise self.failure
        if request.url.path == "/events":
            return httpx.Response(200, content=self._stream()) if self.streams else httpx.Response(500)
        return httpx.Response(self.status[0], stream=httpx.ByteStream(self.status[1].encode()))

    async def _answer_post(self, message: dict[str, str]) -> httpx.Response:
        self.posted.append(message)
        if not self.posts:
            await asyncio.Event().wait()
        status, body = self.posts.pop(0)
        return httpx.Response(status, stream=httpx.ByteStream(body.encode()))

    async def _stream(self) -> AsyncIterator[bytes]:
        while (event := await self._events.get()) is not None:
            yield event

    def send(self, kind: str, **fields: Any) -> None:
        """Send an event."""
        self.send_chunk(f"event: {kind}\ndata: {json.dumps(fields)}\n\n".encode())

    def send_chunk(self, chunk: bytes) -> None:
        """Send a chunk of the stream."""
        self._events.put_nowait(chunk)

    @property
    def waiting(self) -> int:
        """Number of chunks that were not read yet."""
        return self._events.qsize()

    def send_status(self, status: str) -> None:
        """Send the status of the screen."""
        self.send("status_change", status=status)

    def cut(self) -> None:
        """End the stream."""
        self._events.put_nowait(None)


class Life(FollowerLife[AgentApiFollower]):
    """A follower with its AgentAPI, and what it has reported."""

    def __init__(self, folder: Path, **run: Any) -> None:
        self.api = AgentApi()
        super().__init__(make_context(folder, agent="agentapi", **{"idle_after": 0.001, "grace": 0, **run}))
        self.follow_again()

    def follow_again(self) -> None:
        """Go on with another follower, which begins at the checkpoint."""
        self.client = httpx.AsyncClient(base_url="http://127.0.0.1:1", transport=self.api)
        self.follower = AgentApiFollower(self.context, self.client)

    @property
    def entries(self) -> list[tuple[str, str]]:
        """Type and content of the log's entries."""
        logs = reports_of(self.context.outbox, "task.log")
        return [(entry["type"], entry["content"]) for report in logs for entry in report["entries"]]


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the follower wait only briefly."""
    for name in ("FLUSH_EVERY", "_QUIET_POLL_INTERVAL", "BUDGET_POLL_INTERVAL"):
        monkeypatch.setattr(agentapi, name, 0.001)
    monkeypatch.setattr(retry, "delay", lambda _failures: 0.001)


async def test_an_agent_is_ready_when_its_agentapi_answers(tmp_path: Path) -> None:
    """That is reported and noted once; afterwards it waits for input when its screen is stable."""
    life = Life(tmp_path)
    async with life.followed():
        await life.until(lambda: life.saved)
        assert life.said == [("ready",), ("healthy",)]
        assert life.saved == [True]
        life.api.send_status("running")
        life.api.send("message_update", id=0, role="agent", message="● All is done.")
        life.api.send_status("stable")
        await life.until(lambda: len(life.said) == 4)
        assert life.entries == [("output", "● All is done.")]
    assert life.said[2:] == [("working", "The agent is working."), ("idle", "All is done.")]
    assert [report.get("guessed_from") for report in reports_of(life.context.outbox, "app.status")] == [
        "its screen, which AgentAPI watches"
    ] * 2
    life.follow_again()
    async with life.followed():
        life.api.send_status("stable")
        life.api.send("message_update", id=1, role="agent", message="● Still here.")
        await life.until(lambda: len(life.entries) == 2)
    assert (len(life.said), life.saved) == (4, [True])


async def test_an_agent_that_starts_late_is_ready_later(tmp_path: Path) -> None:
    """After its time to start it counts as late and unhealthy, until it answers."""
    life = Life(tmp_path, start_timeout=0.01)
    life.api.failure = httpx.ConnectError("nobody listens yet")
    async with life.followed():
        await life.until(lambda: len(life.said) == 2)
        assert life.said == [("start_timeout",), ("unhealthy",)]
        assert life.saved == []
        life.api.failure = None
        await life.until(lambda: life.saved)
    assert life.said[2:] == [("ready",), ("healthy",)]


async def test_an_agent_with_a_prompt_to_post_works_before_it_is_ready(tmp_path: Path) -> None:
    """A prompt that could not be given is told. Until then a stable screen means nothing, and then for a time."""
    posted: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    life = Life(tmp_path)
    given_start(life.context)
    life.context = replace(life.context, deliver_once=lambda *_: posted)
    life.follow_again()
    async with life.followed():
        life.api.send_status("stable")
        life.api.send("message_update", id=0, role="agent", message="Welcome")
        await life.until(lambda: life.entries)
        assert life.said == [("working", "The agent is working."), ("ready",), ("healthy",)]
        assert life.works()
        stable_since = life.follower._stable_since
        posted.set_result("it is out of paper")
        await life.until(lambda: len(life.said) == 5)
        assert life.follower._stable_since > stable_since
        assert not life.works()
    failure = "Prompt delivery failed: it is out of paper"
    assert life.said[3:] == [("working", failure), ("idle", "Welcome")]
    assert life.entries == [("output", "Welcome"), ("output", failure)]


@pytest.mark.parametrize("found", ["its message", "a stable screen without it", "an agent that works"])
async def test_a_prompt_whose_runner_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    """The next one posts it if no message shows it, once the screen is stable; an agent that works has it."""
    life, given = Life(tmp_path), list[str]()

    async def deliver_once(input_id: UUID, text: str) -> str | None:
        if input_id not in life.context.journal.inputs:
            given.append(text)
            life.context.journal.inputs[input_id] = InputDelivery.DELIVERED
        return None

    prompt_id = given_start(life.context)
    life.context = replace(life.context, deliver_once=deliver_once)
    life.follow_again()
    life.follower._posted_texts.add("Do it")
    life.context.reporter.log([], checkpoint=life.follower._checkpoint())
    life.context.journal.inputs[prompt_id] = InputDelivery.DELIVERING
    life.follow_again()
    if found == "an agent that works":
        monkeypatch.setattr(agentapi, "STABLE_TIMEOUT", 0.05)
    async with life.followed():
        life.api.send("message_update", id=0, role="agent", message="Welcome")
        await life.until(lambda: life.context.journal.ready_reported)
        await a_few_steps()
        assert given == []
        assert life.works()
        if found == "its message":  # although its agent works on it
            life.api.send_status("running")
            life.api.send("message_update", id=1, role="user", message="Do it")
        else:
            life.api.send_status("running" if found == "an agent that works" else "stable")
        await life.until(life.follower._has_begun.is_set)
    assert given == (["Do it"] if found == "a stable screen without it" else [])
    assert life.context.journal.inputs == {prompt_id: InputDelivery.DELIVERED}
    assert life.context.journal.was_given("Do it")


async def test_an_agentapi_that_does_not_answer_is_unhealthy(tmp_path: Path) -> None:
    """After three failures in a row, once; it is healthy again with the first answer."""
    life = Life(tmp_path)
    life.context.journal.ready_reported = True
    life.api.failure = httpx.ConnectError("nobody listens")
    life.api.allowed = 4
    async with life.followed():
        await life.until(lambda: life.api.requests == ["/events", "/status"] * 2 + ["/events"])
        assert life.said == []
        life.api.allowed = 6
        await life.until(lambda: life.said)
        life.api.allowed = 10**9
        await life.until(lambda: len(life.api.requests) > 20)
        assert life.said == [("unhealthy",)]
        life.api.failure = None
        await life.until(lambda: len(life.said) == 2)
        assert life.said[1] == ("healthy",)
        for _ in range(5):  # it breaks off, but answers each time
            count = len(life.api.requests)
            life.api.cut()
            await life.until(lambda: len(life.api.requests) >= count + 2)  # noqa: B023 - awaited within the loop
    assert (len(life.said), life.saved) == (2, [])


async def test_the_status_is_requested_when_there_is_no_stream(tmp_path: Path) -> None:
    """What is no status is ignored, and so is what an answer says that is none."""
    life = Life(tmp_path)
    life.context.journal.ready_reported = True
    life.api.streams = False
    wrong = [(200, "{"), (200, "[]"), (200, "[" * 30_000), (500, '{"status": "running"}'), (200, '{"status": 7}')]
    async with life.followed():
        for answer in wrong:
            life.api.status = answer
            count = len(life.api.requests)
            await life.until(lambda: len(life.api.requests) >= count + 6)  # noqa: B023 - awaited within the loop
        assert reports_of(life.context.outbox, "app.status") == []
        life.api.status = (200, '{"status": "running"}')
        await life.until(lambda: reports_of(life.context.outbox, "app.status"))
        assert life.said[-1] == ("working", "The agent is working.")


@pytest.mark.parametrize("was_ready", [False, True])
async def test_a_stranger_on_the_port_of_the_agent(tmp_path: Path, *, was_ready: bool) -> None:
    """It is told once; an agent that was not ready has failed to start, and is ended."""
    life = Life(tmp_path)
    life.context.journal.ready_reported = was_ready
    life.api.failure = ForeignListener("a stranger listens")
    async with life.followed():
        await life.until(lambda: len(life.api.requests) > 4)
        assert life.entries == [("output", "a stranger listens")]
        reported = [each for each in life.said if each != ("unhealthy",)]
        if was_ready:
            assert (reported, life.stops) == ([("working", "a stranger listens")], 0)
        else:
            assert (reported, life.stops) == ([("start_error",), ("failed", "a stranger listens")], 1)
            assert life.said[2:] == [("unhealthy",)]


async def test_a_post_ends_with_the_follower(tmp_path: Path) -> None:
    """What is still open then is closed, and its input of unknown outcome."""
    life = Life(tmp_path)
    async with life.followed():
        life.api.send_status("stable")
        delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
        await life.until(lambda: life.api.posted)
        assert life.works(), "a message is being posted"
        (post,) = life.follower._posts
    assert (post.cancelled(), life.client.is_closed) == (True, True)
    with pytest.raises(asyncio.CancelledError):
        await delivery
    assert life.follower._posts == set()


async def test_a_busy_agent_is_asked_again_a_second_later(tmp_path: Path) -> None:
    """Once its screen is stable; what it then accepts is input, and no other message of its user's."""
    life = Life(tmp_path)
    life.follower._set_status("stable")
    life.api.posts = [REFUSED, ACCEPTED]
    delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
    await life.until(lambda: not life.follower._posts and life.api.posted)
    life.follower._set_status("running")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.2):
            await asyncio.shield(delivery)
    assert len(life.api.posted) == 1, "the agent works"
    life.follower._set_status("stable")
    await delivery
    assert life.api.posted == [{"content": "hello", "type": "user"}] * 2
    assert life.follower._posted is None
    life.follower._handle_message({"id": 3, "role": "user", "message": "hello"})
    life.follower._handle_message({"id": 4, "role": "user", "message": "hello"})
    life.follower._flush()
    assert life.entries == [("input", "hello"), ("output", "hello")]


async def test_an_agent_that_stays_busy_was_given_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it rejects the input or its screen is never stable: the error says so, and no message is input."""
    monkeypatch.setattr(agentapi, "STABLE_TIMEOUT", 0.2)
    life = Life(tmp_path)
    with pytest.raises(NotDelivered, match=r"did not become ready for the input within 0\.2 s"):
        await life.follower.deliver("hello", recorded)
    life.follower._set_status("stable")
    life.api.posts = [REFUSED] * 9
    with pytest.raises(NotDelivered, match="reported that it was ready, but rejected the input as busy"):
        await life.follower.deliver("hello", recorded)
    assert len(life.api.posted) == 1
    life.follower._handle_message({"id": 3, "role": "user", "message": "hello"})
    life.follower._flush()
    assert life.entries == [("output", "hello")]
    with pytest.raises(NotDelivered, match="The input is empty"):
        await life.follower.deliver(" \n", recorded)


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (200, "{}", None, ""),
        (299, BUSY, None, ""),
        (500, "message must not be empty", NotDelivered, "500 message must not be empty"),
        (500, "the terminal is gone", DeliveryUnknown, "500 the terminal is gone"),
        (502, "no gateway", DeliveryUnknown, "502 no gateway"),
        (422, "no such type", NotDelivered, "422 no such type"),
        (499, "x" * 201, NotDelivered, "499 " + "x" * 200),
        (500, "y" * 201, DeliveryUnknown, "500 " + "y" * 200),
    ],
)
async def test_what_an_answer_to_a_post_means(
    tmp_path: Path, status: int, body: str, error: type[Exception] | None, message: str
) -> None:
    """Only what AgentAPI says before it types is certain not to have been typed."""
    life = Life(tmp_path)
    life.follower._set_status("stable")
    life.api.posts = [(status, body)]
    if error is None:
        await life.follower.deliver("hello", recorded)
    else:
        with pytest.raises(error) as raised:
            await life.follower.deliver("hello", recorded)
        assert str(raised.value).endswith(f"AgentAPI responded with {message}")
    assert len(life.api.posted) == 1


async def test_a_post_without_an_answer_or_echo_is_of_unknown_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input that is echoed was delivered, however late its answer comes."""
    life = Life(tmp_path)
    life.follower._set_status("stable")
    delivery = asyncio.create_task(life.follower.deliver("hello", recorded))
    await life.until(lambda: life.api.posted)
    assert life.works()
    life.follower._handle_message({"id": 1, "role": "user", "message": "hello"})
    await delivery
    assert not life.works()
    monkeypatch.setattr(agentapi, "ACCEPT_TIMEOUT", 0.01)
    with pytest.raises(DeliveryUnknown, match=r"did not respond in 0\.01 s"):
        await life.follower.deliver("hello again", recorded)
    assert len(life.follower._posts) == 2
    async with life.followed():
        await asyncio.sleep(0)
    assert life.follower._posts == set()


async def test_an_interrupt_types_escape_until_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it waits for a stable screen, as long as it takes an agent to become idle, or at most two seconds."""
    monkeypatch.setattr(agentapi, "QUIET_TIME", 600.0)
    life = Life(tmp_path, idle_after=0.05)
    life.api.posts = [(500, "no terminal"), ACCEPTED]
    interrupt = asyncio.create_task(life.follower.interrupt())
    await a_few_steps()
    assert life.api.posted == [], "whether it works is not known yet"
    life.follower._set_status("running")
    await life.until(lambda: len(life.api.posted) == 2 and not life.api.posts)
    assert life.api.posted == [{"content": "\x1b", "type": "raw"}] * 2
    await a_few_steps()
    assert not interrupt.done(), "the screen changes"
    life.follower._set_status("stable")
    stable_at = asyncio.get_running_loop().time()
    assert await interrupt is InterruptOutcome.STOPPED
    assert 0.04 <= asyncio.get_running_loop().time() - stable_at < 30
    assert life.said == [("working", "The agent is working."), ("idle", "The turn was interrupted.")]
    assert (life.stops, life.context.journal.interrupted) == (0, False)
    async with life.followed():
        life.api.send_status("stable")
        life.api.send("message_update", id=0, role="agent", message="Stopped")
        await life.until(lambda: life.entries)
    assert [each for each in life.said if each[0] == "idle"] == [("idle", "The turn was interrupted.")]
    assert await life.follower.interrupt() is InterruptOutcome.ENDED
    assert len(life.api.posted) == 2, "an agent that waits is left alone"


async def test_an_interrupt_waits_for_the_prompt(tmp_path: Path) -> None:
    """Or its turn would begin after the interrupt."""
    life = Life(tmp_path)
    given_start(life.context)
    life.follow_again()
    life.follower._set_status("stable")
    interrupt = asyncio.create_task(life.follower.interrupt())
    await a_few_steps()
    assert (life.api.posted, interrupt.done(), life.follower.is_at_work) == ([], False, True)
    life.follower._has_begun.set()
    assert await interrupt is InterruptOutcome.ENDED


async def test_an_agent_that_escape_does_not_stop_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its end is noted as that of an interrupt before."""
    monkeypatch.setattr(agentapi, "REACTION_TIMEOUT", 0.05)
    life = Life(tmp_path)
    life.context.folder.exit.write_text("{}")
    life.follower._set_status("running")
    assert await life.follower.interrupt() is InterruptOutcome.STOPPED
    assert (life.stops, life.context.journal.interrupted, len(life.saved)) == (1, True, 1)


@pytest.mark.parametrize(("prompt", "post_prompt"), [(False, False), (False, True), (True, False), (True, True)])
async def test_which_messages_of_the_user_are_the_prompt(tmp_path: Path, *, prompt: bool, post_prompt: bool) -> None:
    """The first one with its text, if the agent has the prompt from elsewhere; it is awaited by the first runner."""
    life = Life(tmp_path, post_prompt=post_prompt)
    if prompt:
        given_start(life.context)
    life.follow_again()
    assert life.follower._has_begun.is_set() is not (prompt and post_prompt)
    for number, text in enumerate(("", "Do it")):
        life.follower._handle_message({"id": number, "role": "user", "message": text})
    life.follower._flush()
    assert life.entries == [("output", ""), ("input" if prompt and not post_prompt else "output", "Do it")]
    life.follow_again()
    life.follower._handle_message({"id": 2, "role": "user", "message": "Do it"})
    life.follower._flush()
    assert life.entries[2:] == [("output", "Do it")]


async def test_nothing_is_told_while_there_is_no_room(tmp_path: Path) -> None:
    """Neither in the outbox nor in the log's budget: events wait in their connection, changes for the next flush."""
    outbox, time = Outbox(tmp_path / "small.jsonl", Budget(1), lambda _: None), [0.0]
    life = Life(tmp_path, outbox=outbox)
    life.context.journal.ready_reported = True
    life.context = replace(life.context, log_budget=LogBudget(LogRates(1_000, 1), lambda: time[0]))
    life.follow_again()
    outbox.append(["{}"])
    life.follower._handle_message({"id": 0, "role": "agent", "message": "Hello"})
    async with life.followed():
        life.api.send("agent_error", message="no credit")
        await a_few_steps()
        assert len(outbox) == 1
        life.context.log_budget.spend(LOG_BURST, 0)
        outbox.confirm(1)
        await a_few_steps()
        assert len(outbox) == 0
        time[0] += 1
        await life.until(lambda: len(outbox))
        outbox.confirm(len(outbox))
        time[0] += 10
        await life.until(lambda: len(outbox))


async def test_a_report_with_its_entries_counts_for_the_budget(tmp_path: Path) -> None:
    """Each by one, and the texts of entries by their bytes."""
    life, budget = Life(tmp_path), Spending()
    life.context = replace(life.context, log_budget=budget)
    life.follow_again()
    life.follower._report_error("né")
    for number in range(3):
        life.follower._handle_message({"id": number, "role": "agent", "message": "é"})
    life.follower._flush()
    assert budget.spent == [(2, 3), (3, 6)]


@pytest.mark.parametrize("chunks", [[OTHER] * 1_000, [OTHER * 1_000], [b":"] * 1_000])
async def test_others_have_their_turns_whatever_an_agent_sends(tmp_path: Path, chunks: list[bytes]) -> None:
    """Between two chunks, and between two events of a chunk, although there is budget."""
    life, turns = Life(tmp_path), 0
    for chunk in chunks:
        life.api.send_chunk(chunk)
    life.api.cut()

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(take_turns())
    await life.follower._stream()
    other.cancel()
    assert turns >= 1_000


@pytest.mark.parametrize(
    ("chunk", "size"),
    [
        (b"x", 64),
        (b":\n" * 1024, 1025 * 64 + 2048 // 16),
        (b"\r" * 1024, 1025 * 64 + 1024 // 16),
        (OTHER, 4 * 64 + len(OTHER) // 16 + 1),
        (b"data: {" + b"x" * 1024 + b"\n\n", 3 * 64 + 1033 // 16 + 1025),
        (b'event: message_update\ndata: {"id": 0, "role": "agent", "message": "Hi"}\n\n', 4 * 64 + 75 // 16),
    ],
)
async def test_what_an_agent_sends_counts_for_the_budget(tmp_path: Path, chunk: bytes, size: int) -> None:
    """By 64 bytes for each line and a sixteenth of its own, and in full if it shows nothing."""
    life, budget = Life(tmp_path), Spending()
    life.context = replace(life.context, log_budget=budget)
    life.follow_again()
    life.api.send_chunk(chunk)
    life.api.cut()
    await life.follower._stream()
    assert [sum(numbers) for numbers in zip(*budget.spent, strict=True)] == [0, size]


@pytest.mark.parametrize("chunk", [OTHER, OTHER * 100, b":\n" * 100, b"x", b"data: " + b"x" * 10_000 + b"\n\n"])
async def test_what_shows_nothing_is_not_read_without_end(tmp_path: Path, chunk: bytes) -> None:
    """It costs the agent's budget; the agent is read again when it has some."""
    life, now = Life(tmp_path), [0.0]
    life.context = replace(life.context, log_budget=LogBudget(LogRates(2**14, 50), lambda: now[0]))
    life.follow_again()
    for _ in range(10_000):
        life.api.send_chunk(chunk)
    async with life.followed():
        for _ in range(2):
            before = life.api.waiting
            await life.until(lambda: not life.context.log_budget.has_room)
            await a_few_steps()
            waiting = life.api.waiting
            await a_few_steps()
            assert before > life.api.waiting == waiting > 0
            now[0] += LOG_BURST


async def test_of_a_large_message_only_what_an_entry_has_room_for_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of its lines and characters, and those of an error; words are looked for in its end."""
    life, contents, looked_at = Life(tmp_path), list[int](), list[int]()
    entry = Reporter.entry

    def counted_entry(reporter: Reporter, number: int, source: LogSource, content: str, *rest: Any) -> LogEntry:
        contents.append(len(content))
        return entry(reporter, number, source, content, *rest)

    def counted_lines(lines: list[str], default: str) -> str:
        looked_at.append(sum(len(line) + 1 for line in lines) - 1)
        return last_with_words(lines, default)

    monkeypatch.setattr(Reporter, "entry", counted_entry)
    monkeypatch.setattr(agentapi, "last_with_words", counted_lines)
    life.follower._handle_message({"id": 0, "role": "agent", "message": "x" + "\n" * MAX_CONTENT_BYTES + "y"})
    life.follower._handle_message({"id": 1, "role": "agent", "message": ".\n" * 2**19})
    life.follower._handle_error("\x7f" * 2**20, "error", None)
    life.follower._flush()
    assert contents == [1, MAX_CONTENT_BYTES + 1, MAX_CONTENT_BYTES + 1]
    assert looked_at == [1, MAX_WORDS]
    assert [content[-2:] for _, content in life.entries] == [": ", "x", ".…"]


async def test_the_padding_of_a_screen_takes_no_room(tmp_path: Path) -> None:
    """A long message is shown to its end, which has its last words, however wide the screen is."""
    life = Life(tmp_path)
    lines = [f"● line {number}" for number in range(1_000)]
    life.follower._handle_message({"id": 0, "role": "agent", "message": "\n".join(line.ljust(500) for line in lines)})
    life.follower._flush()
    assert life.entries == [("output", "\n".join(lines))]
    assert life.follower._latest == "line 999"


async def test_what_was_said_last_is_told_with_the_exit(tmp_path: Path) -> None:
    """The agent's own words, or what AgentAPI has printed."""
    life = Life(tmp_path)
    life.context.folder.output.mkdir()
    (life.context.folder.output / f"{0:020d}").write_text("panic: no terminal\n")
    life.follower._set_status("running")
    await life.follower.conclude(ExitRecord("exited", code=1))
    assert reports_of(life.context.outbox, "agent.exit")[0]["words"] == "panic: no terminal"
    life.follower._handle_message({"id": 0, "role": "agent", "message": "● Done"})
    await life.follower.conclude(ExitRecord("exited", code=0))
    assert reports_of(life.context.outbox, "agent.exit")[1]["words"] == "Done"


async def test_an_error_does_not_change_the_state(tmp_path: Path) -> None:
    """Its text is the message of the state that the agent is in; the next runner knows that state."""
    life = Life(tmp_path)
    life.follower._state = "idle"
    life.follower._report_error("no credit")
    life.follow_again()
    life.follower._report_error("still no credit")
    assert life.said == [("idle", "no credit"), ("idle", "still no credit")]
    ids = [entry["id"] for report in reports_of(life.context.outbox, "task.log") for entry in report["entries"]]
    assert ids == [2**40, 2**40 + 1]


async def test_the_last_2000_messages_are_known(tmp_path: Path) -> None:
    """They are not told again unless they have changed; of older ones that is not known."""
    life = Life(tmp_path)
    for number in [*range(2_001), 0, 2, 1, 2_000]:
        life.follower._handle_message({"id": number, "role": "agent", "message": f"m{number}"})
        if number in {0, 1, 2, 2_000}:
            life.follower._flush()
    assert [content for _, content in life.entries][2_001:] == ["m0", "m1"]


async def test_changes_of_up_to_4_mib_wait_for_the_next_flush(tmp_path: Path) -> None:
    """At 4 MiB they are told at once, and the count begins anew."""
    life = Life(tmp_path)
    for number in range(2):
        for size in [64 * 1024] * 63 + [64 * 1024 - 1, 1]:
            assert len(life.entries) == number
            event = {"id": number, "role": "agent", "message": "x" * size}
            await life.follower._handle_event(sse.Event("message_update", json.dumps(event), ""))
    assert life.entries == [("output", "x")] * 2
