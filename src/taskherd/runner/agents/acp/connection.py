"""JSON-RPC 2.0 with one agent, in a form that survives the runner.

What is open is part of the follower's checkpoint: the calls that await a response, and the lines that the shim has not
acknowledged. A line is recorded before it is submitted. So the next runner knows which response belongs to what, and
finds by the shim's files whether a line that it did not submit itself was written: it submits none twice.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import orjson

from taskherd.runner.agents.acp.lines import LineReader, LineWriter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from taskherd.runner.workspaces.folders import RunFolder

WRITE_TIMEOUT: Final = 60.0
"""Seconds within which the agent must take a line from its stdin."""
CATCH_UP_TIME: Final = 2.0
"""Seconds for which no deadline is over when a runner begins to follow an agent that another one has followed."""
MAX_ANSWERS: Final = 64
"""Number of answers that the agent has not taken yet at which its further requests wait."""
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""Size of such answers together, in bytes, at which its further requests wait."""
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
AUTH_REQUIRED: Final = -32000
RESOURCE_NOT_FOUND: Final = -32002
MAX_ID: Final = 256
"""Maximum length of the agent's request ids, in characters of JSON."""

RpcId: TypeAlias = int | str


class AgentCall(NamedTuple):
    """A request of the agent."""

    id: RpcId
    method: str
    params: dict[str, Any]
    has_fields: bool = True
    """False if its parameters are no object; ``params`` is empty then."""


class Notification(NamedTuple):
    """A message of the agent that wants no response."""

    method: str
    params: dict[str, Any]


class AgentResponse(NamedTuple):
    """A response of the agent to the call of ``method``, made in ``line``; one of ``result`` and ``error`` is set."""

    number: int
    line: int
    method: str
    result: dict[str, Any] | None
    error: dict[str, Any] | None


class BadLine(NamedTuple):
    """A line that is no message of the protocol, or one that fits nothing that is open."""

    reason: str
    excerpt: str


Incoming: TypeAlias = AgentCall | Notification | AgentResponse | BadLine


class Connection:
    """The messages to and from one agent."""

    def __init__(self, folder: RunFolder, checkpoint: dict[str, Any]) -> None:
        self.reader = LineReader(folder, checkpoint.get("offset", 0), skipping=checkpoint.get("skipping", False))
        self.writer = LineWriter(folder)
        self.calls: dict[int, dict[str, Any]] = {int(key): value for key, value in checkpoint.get("calls", {}).items()}
        """Our open calls, by id: ``method``, ``deadline`` as ``deadline`` returns it, and ``line``."""
        self.lines: dict[int, dict[str, Any]] = {int(key): value for key, value in checkpoint.get("lines", {}).items()}
        """Lines that are not acknowledged: ``deadline``, ``size``; of answers ``answers`` (the agent's request) and
        ``result``; of notifications ``notifies`` (the method)."""
        self._next_id: int = checkpoint.get("next_id", 0)
        self._next_line: int = checkpoint.get("next_line", 0)
        self._given: list[RpcId] = checkpoint.get("given", [])
        """Requests of the agent that are not read yet (again), and were answered before a record was lost."""
        self._recorded: dict[int, bytes] = {}
        self._paused_at: float | None = None
        """When the time of deadlines was stopped, None while it passes."""
        self.is_closed = False
        """True once the agent has ended."""
        self._unrecorded: list[dict[str, Any]] | None = None
        with suppress(OSError):  # an agent that is just started must not be lost; recovery looks again
            self._unrecorded = self._find_unrecorded()

    @property
    def unrecorded(self) -> list[dict[str, Any]]:
        """The messages that an earlier runner submitted, and whose record was lost since, with the disk for example.

        Raise ``OSError`` if that cannot be found out now.
        """
        if self._unrecorded is None:
            self._unrecorded = self._find_unrecorded()
        return self._unrecorded

    def checkpoint(self) -> dict[str, Any]:
        """Return what the next runner needs."""
        return {
            "offset": self.reader.offset,
            "skipping": self.reader.skipping,
            "calls": {str(key): value for key, value in self.calls.items()},
            "lines": {str(key): value for key, value in self.lines.items()},
            "next_id": self._next_id,
            "next_line": self._next_line,
            "given": self._given,
        }

    def close(self) -> None:
        """Record no answers any more: the agent has ended."""
        self.is_closed = True

    @property
    def next_line(self) -> int:
        """The number of the next line that is recorded."""
        return self._next_line

    def has_answered(self, request: RpcId, since: int) -> bool:
        """Return whether an answer to a request of the agent was recorded, in line ``since`` or a later one."""
        return any(number >= since and line.get("answers") == request for number, line in self.lines.items())

    def ignore_call(self, request: RpcId) -> None:
        """Ignore the next request of the agent with this id: it was answered before."""
        self._given.append(request)

    def lost_lines(self) -> dict[int, dict[str, Any]]:
        """Return the lines that an earlier runner recorded and did not submit, and forget them.

        Their calls were never made, and their answers never given.
        """
        known = self.writer.known()
        lost = [number for number in self.lines if number not in known and number not in self._recorded]
        for number in known - self.lines.keys():
            self.writer.forget(number)  # acknowledged, and recorded as such
        for call_id in [key for key, call in self.calls.items() if call["line"] in lost]:
            del self.calls[call_id]
        return {number: self.lines.pop(number) for number in lost}

    def call(self, method: str, params: dict[str, Any], timeout: float, *, write_within: float = math.inf) -> int:
        """Record a call to be answered in ``timeout`` seconds, and return its id; ``submit`` makes it."""
        number, self._next_id = self._next_id, self._next_id + 1
        write_by = self.deadline(min(write_within, WRITE_TIMEOUT))
        line = self._record({"id": number, "method": method, "params": params}, {"deadline": write_by})
        self.calls[number] = {"method": method, "deadline": self.deadline(timeout), "line": line}
        return number

    def notify(self, method: str, params: dict[str, Any]) -> None:
        """Record a notification; one that is lost is among the ``lost_lines`` of the next runner."""
        about = {"deadline": self.deadline(WRITE_TIMEOUT), "notifies": method}
        self._record({"method": method, "params": params}, about)

    def answer(self, request: RpcId, result: dict[str, Any] | None, *, keep: bool = False) -> int:
        """Record the answer to a request of the agent, and return its line.

        ``keep``: the next runner gives a lost answer again. The checkpoint holds it until it was given.
        """
        about: dict[str, Any] = {"deadline": self.deadline(WRITE_TIMEOUT), "answers": request}
        if keep:
            about["result"] = result
        return self._record({"id": request, "result": result}, about)

    def refuse(self, request: RpcId, code: int, message: str) -> None:
        """Record an error as the answer to a request of the agent."""
        about = {"deadline": self.deadline(WRITE_TIMEOUT), "answers": request}
        self._record({"id": request, "error": {"code": code, "message": message}}, about)

    def deadline(self, seconds: float) -> float:
        """Return the time in ``seconds``, in seconds of the machine's monotonic clock.

        That is the same for all processes, so the next runner goes on with it; no agent outlives the machine's start.
        The wall clock may be set, and would end turns that are in flight.
        """
        return time.monotonic() + seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let no time of a deadline pass during the block, in which nothing is read that the agent writes."""
        began = self._paused_at = time.monotonic()
        try:
            yield
        finally:
            self._paused_at = None
            self._postpone(time.monotonic() - began)

    def allow_catch_up(self) -> None:
        """Extend deadlines to at least ``CATCH_UP_TIME`` from now, since the agent's output was not being read."""
        earliest = self.deadline(CATCH_UP_TIME)
        for item in (*self.calls.values(), *self.lines.values()):
            item["deadline"] = max(item["deadline"], earliest)

    def is_late(self, item: Mapping[str, Any]) -> bool:
        """Return whether the deadline of an open call or of a line is over."""
        now = self.deadline(0) if self._paused_at is None else self._paused_at
        return bool(item["deadline"] < now)

    def _postpone(self, seconds: float) -> None:
        for item in (*self.calls.values(), *self.lines.values()):
            item["deadline"] += seconds

    @property
    def has_room(self) -> bool:
        """False while the agent leaves so many answers unread that nothing more of what it writes is to be read.

        Each of them is a file, and a part of each checkpoint. What the runner itself asks does not count: the agent
        may write before it reads that.
        """
        sizes = [line.get("size", 0) for line in self.lines.values() if "answers" in line]
        return self.is_closed or (len(sizes) < MAX_ANSWERS and sum(sizes) < MAX_ANSWER_BYTES)

    @property
    def has_recorded(self) -> bool:
        """Whether there are recorded lines to be submitted."""
        return bool(self._recorded)

    def submit(self) -> None:
        """Submit the recorded lines; the checkpoint with them must be saved. Raise ``OSError`` if that fails."""
        for number in list(self._recorded):
            self.writer.submit(number, self._recorded[number])
            del self._recorded[number]

    def acknowledged(self) -> dict[int, bool]:
        """Return the open lines that have ended (True: written), and close them; ``forget`` them once that is saved."""
        ended = {number: written for number, written in self.writer.endings().items() if number in self.lines}
        for number in ended:
            del self.lines[number]
        return ended

    def take_back(self, call_id: int) -> bool:
        """Remove a call that the agent has not been given, and return whether it was removed."""
        call = self.calls[call_id]
        if self._recorded.pop(call["line"], None) is None and not self.writer.take_back(call["line"]):
            return False
        self.lines.pop(call["line"], None)
        del self.calls[call_id]
        return True

    def receive(self) -> Iterator[Incoming]:
        """Yield the messages in a chunk of output."""
        for line in self.reader.read():
            if line is None:
                yield BadLine("it is too long", "")
            elif line.strip():
                message = self._decode(line)
                if isinstance(message, AgentCall) and message.id in self._given:
                    self._given.remove(message.id)
                else:
                    yield message

    def _find_unrecorded(self) -> list[dict[str, Any]]:
        """Return the messages of lines that no record knows, and take back those that the shim has not begun to write.

        The agent may have been given the others, so their numbers and ids are not used again.
        """
        messages: list[dict[str, Any]] = []
        numbers = sorted(known for known in self.writer.known() if known >= self._next_line)
        begun = {number: self.writer.content(number) for number in numbers if not self.writer.take_back(number)}
        self._next_line = max([self._next_line, *(number + 1 for number in numbers)])
        for number, line in begun.items():  # all of them could be read
            self.lines[number] = {"deadline": self.deadline(WRITE_TIMEOUT)}
            with suppress(ValueError):
                message = orjson.loads(line)
                messages.append(message)
                if "method" in message:
                    self._next_id = max(self._next_id, message.get("id", -1) + 1)
        return messages

    def _record(self, message: dict[str, Any], about: dict[str, Any]) -> int:
        number, self._next_line = self._next_line, self._next_line + 1
        if self.is_closed and "answers" in about:
            return number
        line = self._recorded[number] = orjson.dumps({"jsonrpc": "2.0", **message})
        self.lines[number] = {**about, "size": len(line)}
        return number

    def _decode(self, line: bytes) -> Incoming:
        excerpt = line[:200].decode(errors="replace")
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError:
            return BadLine("it is no JSON", excerpt)
        if not isinstance(message, dict):
            return BadLine("it is no JSON-RPC message", excerpt)
        method, number = message.get("method"), message.get("id")
        params = message.get("params") or {}
        has_fields = isinstance(params, dict)
        if isinstance(method, str):
            if "id" not in message and has_fields:
                return Notification(method, params)
            if isinstance(number, int | str) and not isinstance(number, bool) and len(json.dumps(number)) <= MAX_ID:
                return AgentCall(number, method, params if has_fields else {}, has_fields)
        elif "method" not in message and ("result" in message) != ("error" in message):
            return self._decode_response(number, message, excerpt)
        return BadLine("it is no JSON-RPC message", excerpt)

    def _decode_response(self, number: object, message: dict[str, Any], excerpt: str) -> Incoming:
        if not isinstance(number, int) or (call := self.calls.pop(number, None)) is None:
            return BadLine("it answers no open request", excerpt)
        error, result = message.get("error"), message.get("result")
        if "error" in message:
            fields = error if isinstance(error, dict) else {}
            fields = {"code": 0, "message": str(error), **fields}
            return AgentResponse(number, call["line"], call["method"], None, fields)
        return AgentResponse(number, call["line"], call["method"], result if isinstance(result, dict) else {}, None)
