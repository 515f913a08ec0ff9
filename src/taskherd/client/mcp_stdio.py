"""A server of the Model Context Protocol (MCP) for tools only, on stdin and stdout, without libraries.

Messages are JSON-RPC 2.0, one per line: https://modelcontextprotocol.io/specification/2025-11-25/basic/transports.
It is our own because importing the SDK takes longer than an assistant should wait for its tools, see ADR 28.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore, Event, Lock
from typing import Any, BinaryIO, Final

from taskherd.client.errors import ClientError

VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Supported versions of the protocol, newest first. A client that asks for another one is offered the newest."""
MAX_LINE: Final = 4 * 1024 * 1024
"""Maximum size of a message in bytes; a longer one is skipped and answered with an error."""
MAX_CALLS: Final = 32
"""Maximum number of tool calls in progress or waiting; a further one is answered with an error."""
THREADS: Final = 8
"""Number of tool calls that run at the same time."""
WAITING_THREADS: Final = 16
"""Number of calls at the same time of tools that wait for people; they hold up no others."""

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
BUSY: Final = -32000
"""Error codes: those of JSON-RPC 2.0, and the first that it leaves to servers."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a tool, a text or a number; ``required`` ones are not empty, others default to "" or to None.

    ``choices``: the allowed values; none allows every text. ``is_number``: it is a whole number, not negative.
    """

    description: str
    required: bool = False
    choices: tuple[str, ...] = ()
    is_number: bool = False

    @property
    def default(self) -> str | None:
        """The value of an argument that is absent."""
        return None if self.is_number else ""

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the argument."""
        if self.is_number:
            return {"type": "integer", "minimum": 0, "description": self.description}
        schema: dict[str, Any] = {"type": "string", "description": self.description}
        if self.choices:
            schema["enum"] = list(self.choices) if self.required else ["", *self.choices]
        elif self.required:
            schema["minLength"] = 1
        return schema if self.required else {**schema, "default": ""}

    def error(self, value: Any) -> str:
        """Return what is wrong with a value, or ""."""
        if self.is_number:
            is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            return "" if is_number or value is None else "expected a whole number that is not negative"
        if not isinstance(value, str):
            return "expected a string"
        if self.required and not value:
            return "expected a text that is not empty"
        if self.choices and value and value not in self.choices:
            return f"expected one of: {', '.join(self.choices)}"
        return ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool. ``call`` receives its arguments by name, blocks, returns JSON, and raises ``ClientError``.

    The call of a tool that ``waits`` for people may take days. It also receives ``is_cancelled``, a function that says
    whether nobody waits for the result any more: the client has cancelled the call, or is gone.
    """

    name: str
    description: str
    arguments: Mapping[str, Argument]
    call: Callable[..., Any]
    waits: bool = False

    def listing(self) -> dict[str, Any]:
        """Return the tool as it appears in ``tools/list``."""
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: argument.schema() for name, argument in self.arguments.items()},
            "required": [name for name, argument in self.arguments.items() if argument.required],
        }
        return {"name": self.name, "description": self.description, "inputSchema": schema}


class ProtocolError(Exception):
    """A request that is answered with an error of JSON-RPC."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Server:
    """A server of one client. Calls of tools run in threads, so that the client can ping and call meanwhile."""

    def __init__(self, name: str, version: str, tools: Sequence[Tool], output: BinaryIO) -> None:
        self._info = {"name": name, "version": version}
        self._tools = {tool.name: tool for tool in tools}
        self._output = output
        self._writing = Lock()
        self._free = BoundedSemaphore(MAX_CALLS)
        self._ended = Event()
        self._waiting: dict[str | int, Event] = {}

    def run(self, source: BinaryIO) -> None:
        """Serve until ``source`` ends, cancel what waits for people, and answer all other calls before returning.

        Raises:
            OSError: the client no longer reads.
        """
        with ThreadPoolExecutor(THREADS, "mcp") as pool, ThreadPoolExecutor(WAITING_THREADS, "mcp waiting") as waiting:
            try:
                while line := source.readline(MAX_LINE + 1):
                    if len(line) > MAX_LINE:
                        while line and not line.endswith(b"\n"):
                            line = source.readline(MAX_LINE)
                        self._send_error(None, ProtocolError(INVALID_REQUEST, f"Message over {MAX_LINE} bytes"))
                    elif line.strip():
                        self._receive(line, pool, waiting)
            finally:
                self._ended.set()

    def _receive(self, line: bytes, pool: ThreadPoolExecutor, waiting: ThreadPoolExecutor) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            self._send_error(None, ProtocolError(PARSE_ERROR, "Parse error"))
            return
        if not isinstance(message, dict):
            self._send_error(None, ProtocolError(INVALID_REQUEST, "Invalid Request"))
            return
        if "method" in message and "id" not in message:
            self._notice(message)
            return
        if "method" not in message and ("result" in message or "error" in message):
            return  # a response, although this server requests nothing
        request_id = message.get("id")
        if isinstance(request_id, bool) or not isinstance(request_id, str | int):
            self._send_error(None, ProtocolError(INVALID_REQUEST, "Invalid Request"))
            return
        try:
            self._handle(request_id, message.get("method"), message.get("params", {}), (pool, waiting))
        except ProtocolError as error:
            self._send_error(request_id, error)

    def _notice(self, notification: Mapping[str, Any]) -> None:
        """Cancel a call that waits for people; others cannot be taken back, and other notifications need no action."""
        params = notification.get("params")
        if notification["method"] != "notifications/cancelled" or not isinstance(params, dict):
            return
        request_id = params.get("requestId")
        cancelled = self._waiting.get(request_id) if isinstance(request_id, str | int) else None
        if cancelled is not None:
            cancelled.set()

    def _handle(self, request_id: str | int, method: Any, params: Any, pools: Sequence[ThreadPoolExecutor]) -> None:
        if not isinstance(params, dict):
            raise ProtocolError(INVALID_PARAMS, "Invalid params: expected an object")
        if method == "tools/call":
            self._start_call(request_id, params, pools)
        else:
            self._send({"id": request_id, "result": self._answer(method, params)})

    def _answer(self, method: Any, params: Mapping[str, Any]) -> dict[str, Any]:
        match method:
            case "initialize":
                asked = params.get("protocolVersion")
                return {
                    "protocolVersion": asked if asked in VERSIONS else VERSIONS[0],
                    "capabilities": {"tools": {"listChanged": False}},
                    "serverInfo": self._info,
                }
            case "ping":
                return {}
            case "tools/list":
                return {"tools": [tool.listing() for tool in self._tools.values()]}
            case str():
                raise ProtocolError(METHOD_NOT_FOUND, f"Method not found: {method[:100]}")
            case _:
                raise ProtocolError(INVALID_REQUEST, "Invalid Request")

    def _start_call(
        self, request_id: str | int, params: Mapping[str, Any], pools: Sequence[ThreadPoolExecutor]
    ) -> None:
        name, arguments = params.get("name"), params.get("arguments") or {}
        tool = self._tools.get(name) if isinstance(name, str) else None
        if tool is None:
            raise ProtocolError(INVALID_PARAMS, f"Unknown tool: {str(name)[:100]}")
        if not isinstance(arguments, dict):
            raise ProtocolError(INVALID_PARAMS, "Invalid params: arguments must be an object")
        if not self._free.acquire(blocking=False):
            raise ProtocolError(BUSY, f"More than {MAX_CALLS} calls are in progress; try again later")
        if tool.waits:
            self._waiting[request_id] = Event()
        pools[tool.waits].submit(self._finish_call, request_id, tool, arguments)

    def _finish_call(self, request_id: str | int, tool: Tool, arguments: Mapping[str, Any]) -> None:
        cancelled = self._waiting.get(request_id) if tool.waits else None
        more = {} if cancelled is None else {"is_cancelled": lambda: cancelled.is_set() or self._ended.is_set()}
        try:
            self._send({"id": request_id, "result": call(tool, arguments, **more)})
        except OSError:
            pass  # the client no longer reads; the loop ends with its stdin
        finally:
            self._waiting.pop(request_id, None)
            self._free.release()

    def _send_error(self, request_id: str | int | None, error: ProtocolError) -> None:
        self._send({"id": request_id, "error": {"code": error.code, "message": error.message}})

    def _send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        with self._writing:
            self._output.write(line)
            self._output.flush()


def call(tool: Tool, arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Call a tool and return the result for the model, in which every failure is a text that the model reads.

    ``more`` is what the tool receives beside its arguments.
    """
    values = {
        name: arguments.get(name, argument.default) for name, argument in tool.arguments.items()
    }  # others are ignored, as they always were
    wrong = [f"{name}: {error}" for name, argument in tool.arguments.items() if (error := argument.error(values[name]))]
    if wrong:
        return _failure(f"Invalid arguments. {'; '.join(wrong)}")
    try:
        value = tool.call(**values, **more)
    except ClientError as error:
        return _failure(f"{error.message} ({error.advice})" if error.advice else error.message)
    except Exception as error:  # noqa: BLE001 - a bug in one tool must leave no call unanswered
        return _failure(f"The tool failed: {type(error).__name__}")
    result: dict[str, Any] = {"content": [{"type": "text", "text": json.dumps(value)}], "isError": False}
    return {**result, "structuredContent": value} if isinstance(value, dict) else result


def _failure(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": True}
