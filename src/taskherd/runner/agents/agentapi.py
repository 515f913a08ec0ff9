"""Agents behind AgentAPI (github.com/coder/agentapi): followed by their events, spoken to by their messages.

The event stream is the only source while a message is posted: `GET /status` hangs then. So the status is asked for only
when the stream has broken.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid5

import httpx
import orjson

from taskherd import retry, sse
from taskherd.domain.reports import AgentState, Health, Lifecycle, LogSource
from taskherd.messages.fields import instant
from taskherd.runner.agents.context import DeliveryUnknown, NotDelivered, report_exit, shorten

if TYPE_CHECKING:
    from datetime import datetime

    from taskherd.domain.reports import LogEntry, Report
    from taskherd.runner.agents.context import AgentContext, Begin
    from taskherd.runner.outbox import Checkpoint
    from taskherd.runner.workspaces.processes import AgentExit

TIMEOUT = 5.0
SILENT_STREAM = 60.0
"""Seconds without a word after which the stream is made anew: a connection that was lost says nothing either."""
STABLE_WITHIN = 300.0
"""Seconds that an input waits until the agent is stable."""
ACCEPT_TIMEOUT = 120.0
"""Seconds after posting in which the agent must show that it took the input, or answer."""
MAX_TURN = 86_400.0
UNREACHABLE_AFTER = 3
"""Failures in a row after which the agent's app is called unhealthy."""
WRITE_EVERY = 0.5
"""Seconds in which the updates of a message are put together: AgentAPI sends one for each change of the screen."""
BUSY = "waiting for user input"
"""AgentAPI's words for a message that comes while it is not stable (lib/screentracker/conversation.go); with those that
say what a message "must" be, they are all of its refusals by which nothing was typed."""
REMEMBERED = 2_000
ENTRIES_AT_ONCE = 4
ERROR_ENTRIES = 2**40
"""Where the ids of entries begin that are no messages of the agent's."""


class AgentApiFollower:
    """The follower of one such agent."""

    def __init__(self, context: AgentContext, client: httpx.AsyncClient | None = None) -> None:
        self._context = context
        base = f"http://127.0.0.1:{context.journal.port}"
        self._client = client or httpx.AsyncClient(base_url=base, timeout=TIMEOUT, trust_env=False)
        mark = context.checkpoint
        self._state: str = mark.get("state", "")
        self._errors: int = mark.get("errors", 0)
        self._stable = asyncio.Event()
        self._stable_since = 0.0
        self._failures = 0
        self._reached = asyncio.Event()
        self._changed: dict[int, LogEntry] = {}
        self._written: dict[int, int] = {}
        self._latest = ""
        self._speaking = asyncio.Lock()
        self._highest = -1
        self._posted: tuple[str, int, asyncio.Event] | None = None
        """What is being posted, the highest message id before it, and what to set when it is shown."""
        self._turns: set[asyncio.Task[httpx.Response]] = set()

    async def follow(self) -> None:
        """Report what it does, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._write_down())
                group.create_task(self._begin())
        finally:
            for turn in self._turns:
                turn.cancel()
            await asyncio.gather(*self._turns, return_exceptions=True)
            await self._client.aclose()

    async def deliver(self, text: str, begin: Begin) -> None:
        """Post it as a message once the agent is stable; raises `NotDelivered` or `DeliveryUnknown`."""
        text = text.strip()  # AgentAPI takes no other
        if not text:
            raise NotDelivered("The input is empty.")
        async with self._speaking:
            deadline = asyncio.get_running_loop().time() + STABLE_WITHIN
            await self._until_stable(deadline)
            await begin()
            while not await self._post(text):
                await asyncio.sleep(1)
                await self._until_stable(deadline)

    def conclude(self, exit_: AgentExit) -> None:
        """Report the last messages, and how it ended."""
        self._report(list(self._changed.values()))
        self._changed.clear()
        report_exit(self._context, exit_, self._state, shorten(self._latest))

    async def _begin(self) -> None:
        """Say when it is up, or that it takes too long; then give it the prompt."""
        context = self._context
        if not context.journal.ready:
            try:
                async with asyncio.timeout(context.run.start_timeout):
                    await self._reached.wait()
            except TimeoutError:
                context.reporter.lifecycle(Lifecycle.START_TIMEOUT)
                context.reporter.health(Health.UNHEALTHY)
                await self._reached.wait()
            context.reporter.lifecycle(Lifecycle.READY)
            context.reporter.health(Health.HEALTHY)
            context.journal.ready = True
            await context.save()
        start = context.journal.start
        if context.run.post_prompt and start is not None and start.prompt:
            failed = await context.once(uuid5(start.build_id, "prompt"), start.prompt)
            if failed:
                self._handle_error(failed, "prompt")

    async def _listen(self) -> None:
        while True:
            with suppress(httpx.HTTPError):
                await self._stream()
            self._failures += 1
            await self._poll_status()
            if self._failures == UNREACHABLE_AFTER and self._context.journal.ready and not self._turns:
                self._context.reporter.health(Health.UNHEALTHY)
            await asyncio.sleep(retry.delay(self._failures))

    async def _stream(self) -> None:
        """Take events until the stream breaks; raises httpx.HTTPError."""
        parser = sse.Parser()
        timeout = httpx.Timeout(TIMEOUT, read=SILENT_STREAM)
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        async with self._client.stream("GET", "/events", headers=headers, timeout=timeout) as response:
            response.raise_for_status()
            self._is_there()
            async for chunk in response.aiter_raw():
                for event in parser.feed(chunk):
                    await self._handle_event(event)

    async def _poll_status(self) -> None:
        """Ask for the status, which the stream does not tell now."""
        with suppress(httpx.HTTPError, ValueError, AttributeError):
            response = await self._client.get("/status")
            response.raise_for_status()
            self._is_there()
            self._set_status(str(response.json().get("status")))

    def _is_there(self) -> None:
        if self._failures >= UNREACHABLE_AFTER and self._context.journal.ready:
            self._context.reporter.health(Health.HEALTHY)
        self._failures = 0
        self._reached.set()

    async def _handle_event(self, event: sse.Event) -> None:
        try:
            said = orjson.loads(event.data)
            match event.type:
                case "message_update":
                    self._handle_message(said)
                case "status_change":
                    self._set_status(str(said["status"]))
                case "agent_error":
                    self._handle_error(str(said["message"]), str(said.get("level", "error")))
                case _:
                    return  # a newer AgentAPI may say more
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            self._context.metrics.runner_agent_events_bad.inc()
            return
        if len(self._changed) >= REMEMBERED:
            await self._context.outbox.wait_room()
            self._flush()

    def _handle_message(self, said: dict[str, Any]) -> None:
        number, text, role = int(said["id"]), str(said["message"]), str(said["role"])
        speaker = LogSource.INPUT if role == "user" else LogSource.OUTPUT
        if not 0 <= number < ERROR_ENTRIES:
            raise ValueError(number)
        self._changed[number] = self._context.reporter.entry(number, speaker, text.rstrip(), _time(said.get("time")))
        if speaker is LogSource.OUTPUT:
            self._latest = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), self._latest)
        elif self._posted and number > self._posted[1] and _same(self._posted[0], text):
            self._posted[2].set()
        self._highest = max(self._highest, number)

    def _handle_error(self, message: str, level: str) -> None:
        """Show what went wrong in the conversation, and beside the state."""
        number = ERROR_ENTRIES + self._errors
        self._errors += 1
        entry = self._context.reporter.entry(number, LogSource.OUTPUT, f"AgentAPI {level}: {message}")
        state = AgentState(self._state) if self._state else AgentState.WORKING
        self._report([entry], self._context.reporter.status_report(state, f"AgentAPI {level}: {message}"))

    def _set_status(self, status: str) -> None:
        """Working is believed at once, stability only when it has lasted."""
        match status:
            case "running":
                self._stable.clear()
                self._stable_since = 0.0
                if self._state != AgentState.WORKING:
                    self._state = AgentState.WORKING
                    self._report([], self._context.reporter.status_report(AgentState.WORKING, "The agent is working."))
            case "stable":
                if not self._stable.is_set():
                    self._stable_since = asyncio.get_running_loop().time()
                    self._stable.set()
            case _:
                return  # a newer AgentAPI may say more

    async def _write_down(self) -> None:
        """Every now and then: write down what the messages have become, and see whether the agent is idle."""
        while True:
            await asyncio.sleep(WRITE_EVERY)
            await self._context.outbox.wait_room()
            self._flush()
            since = self._stable_since
            now = asyncio.get_running_loop().time()
            if self._stable.is_set() and now - since >= self._context.run.idle_after and self._state != AgentState.IDLE:
                self._state = AgentState.IDLE
                self._report([], self._context.reporter.status_report(AgentState.IDLE, shorten(self._latest)))

    def _flush(self) -> None:
        """Report the messages that have changed; after a break of the stream they all come again, most as they were."""
        entries = []
        for number, entry in self._changed.items():
            print_of = hash((entry.type, entry.content))
            if self._written.get(number) != print_of:
                self._written.pop(number, None)
                self._written[number] = print_of
                entries.append(entry)
        while len(self._written) > REMEMBERED:
            del self._written[next(iter(self._written))]
        self._changed.clear()
        self._report(entries)

    def _report(self, entries: list[LogEntry], *reports: Report) -> None:
        while len(entries) > ENTRIES_AT_ONCE:
            self._context.reporter.log(entries[:ENTRIES_AT_ONCE])
            entries = entries[ENTRIES_AT_ONCE:]
        if entries or reports:
            self._context.reporter.log(entries, *reports, mark=self._checkpoint())

    def _checkpoint(self) -> Checkpoint:
        return {"build": self._context.reporter.build_number, "state": str(self._state), "errors": self._errors}

    async def _until_stable(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self._stable.wait()
        except TimeoutError as error:
            raise NotDelivered("The agent was never ready to take it.") from error
        if asyncio.get_running_loop().time() > deadline:
            raise NotDelivered("The agent said that it was ready, and that it was busy.")

    async def _post(self, text: str) -> bool:
        """Post a message; whether the agent took it. Not, where it says that it is busy. Raises as `deliver`."""
        shown = asyncio.Event()
        self._posted = (text, self._highest, shown)
        timeout = httpx.Timeout(TIMEOUT, read=MAX_TURN)  # with the transport `acp` the answer comes after the turn
        post = self._client.post("/message", json={"content": text, "type": "user"}, timeout=timeout)
        turn = asyncio.create_task(post)
        self._turns.add(turn)
        turn.add_done_callback(self._turns.discard)
        try:
            await _either(turn, shown, ACCEPT_TIMEOUT)
        finally:
            self._posted = None
        if shown.is_set():
            turn.add_done_callback(_retrieve)
            return True
        if not turn.done():
            turn.add_done_callback(_retrieve)
            raise DeliveryUnknown("The agent did not say in time whether it took the input.")
        return _judge(turn)


async def _either(turn: asyncio.Task[httpx.Response], shown: asyncio.Event, within: float) -> None:
    """Wait until the post is answered, or the message is shown, or the time is over."""
    showing = asyncio.create_task(shown.wait())
    try:
        await asyncio.wait({turn, showing}, timeout=within, return_when=asyncio.FIRST_COMPLETED)
    finally:
        showing.cancel()


def _judge(turn: asyncio.Task[httpx.Response]) -> bool:
    """What the answer to a post says, if it has come; raises as `deliver`."""
    try:
        response = turn.result()
    except (httpx.ConnectError, httpx.ConnectTimeout):
        return False
    except httpx.HTTPError as error:
        raise DeliveryUnknown(
            f"The agent broke off while the input was given to it ({type(error).__name__})."
        ) from error
    if response.is_success:
        return True
    if BUSY in response.text:
        return False
    if response.status_code >= httpx.codes.INTERNAL_SERVER_ERROR and "must" not in response.text:
        raise DeliveryUnknown(f"The agent failed over the input: {response.status_code} {response.text[:200]}")
    raise NotDelivered(f"The agent refused the input: {response.status_code} {response.text[:200]}")


def _retrieve(turn: asyncio.Task[httpx.Response]) -> None:
    """Take the outcome of a post that nobody waits for any more."""
    if not turn.cancelled():
        turn.exception()


def _same(posted: str, shown: str) -> bool:
    """Whether a message that is shown is the one that was posted; terminals trim it and break its lines."""
    return "".join(posted.split()) == "".join(shown.split())


def _time(written: object) -> datetime | None:
    """When it was said; None where that can't be read."""
    with suppress(ValueError):
        return instant(str(written))
    return None
