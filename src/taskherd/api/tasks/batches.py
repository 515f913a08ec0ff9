"""Create many tasks with one request: each is judged and answered as a create of its own would be.

The commands are in flight together, as many as ``api.command_slots`` has slots. Each has the command id of its
idempotency key, so repeating the request, or a part of it, creates nothing twice.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4, uuid5

import orjson

from taskherd.api.command_slots import MAX_BULK
from taskherd.api.commands import (
    KEY_HEADER,
    MAX_KEY_LENGTH,
    NOT_CONFIRMED,
    execute,
    idempotency_key_of,
    is_key,
    refusal,
)
from taskherd.api.http import bodies
from taskherd.api.http.errors import HTTPError, invalid, unavailable
from taskherd.api.http.responses import BufferedResponse
from taskherd.api.tasks import documents
from taskherd.api.tasks.commands import charge_create, create_command, find_owner
from taskherd.api.tasks.schemas import MAX_BATCH, BatchTask
from taskherd.domain.command_results import CommandRefused
from taskherd.errors import Misconfigured, Retry, Unavailable
from taskherd.store import command_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from taskherd.api.context import RequestContext
    from taskherd.domain.commands import Create

MAX_BYTES: Final = 4 * 1024 * 1024
"""Maximum size of the body of a request."""
MAX_BATCH_KEY_LENGTH: Final = MAX_KEY_LENGTH - len(f"/{MAX_BATCH - 1}")
"""Maximum length of a batch's Idempotency-Key: each task has it with its index, and can be repeated alone with that."""
BATCH_KEY_HEADER: Final = replace(KEY_HEADER, schema={**KEY_HEADER.schema, "maxLength": MAX_BATCH_KEY_LENGTH})
MAX_REQUESTS, MAX_REQUESTS_OF_USER = 8, 2
"""Maximum number of requests in progress in one process, of all users and of one."""
SENT_TOGETHER: Final = 64
"""Number of commands that are prepared and then written together. Smaller writes take more CPU in all processes; larger
ones leave the worker idle at first."""
SEND_FOR: Final = 2.0
"""How long commands of one request are sent, as a multiple of the time limit for the reply to a command."""
TOO_MANY: Final = "Too many batches are in progress. Please wait."
_RETRY: Final = "Repeat the create with the same idempotency key: a task that was created is not created again."


def admit(request: RequestContext) -> AbstractContextManager[None]:
    """Count a request from before its body is read; raise a 429 if there are too many."""
    return request.api.batches.enter(request.caller.user_id)


async def create(request: RequestContext) -> BufferedResponse:
    """Create the tasks of the body. The results are in its order, each with the status that a single create has."""
    results = await _Batch(request, request.body.tasks).run()
    created = sum(result["status"] in {200, 201} for result in results)
    request.log_fields = {"tasks": len(results), "created": created}
    return BufferedResponse(200, orjson.dumps({"results": results, "count": len(results), "created": created}))


class _Batch:
    """The creates of one request."""

    def __init__(self, request: RequestContext, entries: Sequence[Any]) -> None:
        self._request = request
        self._entries = entries
        self._results: list[dict[str, Any]] = [{} for _ in entries]
        self._key = idempotency_key_of(request, MAX_BATCH_KEY_LENGTH)
        self._keys = _keys(entries, self._key or str(uuid4()))
        self._executed: frozenset[UUID] = frozenset()
        self._owners: dict[tuple[str, UUID | None], UUID | HTTPError] = {}
        self._in_flight = 0
        self._one_ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._send_until = loop.time() + SEND_FOR * request.api.settings.api_command_timeout
        self._has_outage = False

    async def run(self) -> list[dict[str, Any]]:
        """Execute all creates, and return their results in order."""
        await self._find_executed()
        async with asyncio.TaskGroup() as group:
            for start in range(0, len(self._entries), SENT_TOGETHER):
                entries = range(start, min(start + SENT_TOGETHER, len(self._entries)))
                await self._wait_for_room(len(entries))
                for index in entries:  # in order, so that the first ones get what is left of the rate
                    command = await self._prepare(index)
                    if command is not None:
                        self._in_flight += 1
                        group.create_task(self._execute(index, command)).add_done_callback(self._on_ended)
        return self._results

    async def _wait_for_room(self, count: int) -> None:
        """Wait until so many more commands may be in flight, and at least until those before are being sent."""
        while self._in_flight + count > MAX_BULK:
            self._one_ended.clear()
            await self._one_ended.wait()
        await asyncio.sleep(0)

    def _on_ended(self, _: asyncio.Task[None]) -> None:
        self._in_flight -= 1
        self._one_ended.set()

    async def _find_executed(self) -> None:
        """Find the commands that an earlier request sent, because repeating those costs nothing of the rate."""
        if self._key is None and not any(
            isinstance(each, dict) and "idempotency_key" in each for each in self._entries
        ):
            return
        ids = [self._command_id(key) for key in self._keys if isinstance(key, str)]
        rows = await self._request.reader.fetch(command_log.EXECUTED, ids)
        self._executed = frozenset(row[0] for row in rows)

    async def _prepare(self, index: int) -> Create | None:
        """Return the command of an entry, or None after recording why there is none."""
        key = self._keys[index]
        try:
            if isinstance(key, HTTPError):
                raise key
            self._check_time()
            body = bodies.validate(self._entries[index], BatchTask)
            owner = await self._find_owner(body)
            command_id = self._command_id(key)
            if command_id not in self._executed:
                charge_create(self._request)
        except HTTPError as error:
            self._record_error(index, error)
            return None
        return create_command(self._request, body, owner, command_id, has_key=True)

    def _check_time(self) -> None:
        """Raise a 503 if no more commands are sent: their time is over, or one of them was not confirmed in time."""
        if self._has_outage or self._now() > self._send_until:
            raise unavailable("The create was not sent in time.")

    async def _find_owner(self, body: BatchTask) -> UUID:
        user = body.owner or "me"
        found = self._owners.get((user, body.template_version_id))
        if found is None:
            try:
                found = await find_owner(self._request, self._request.user_of(user), body.template_version_id)
            except HTTPError as error:
                found = error
            except (Unavailable, Retry, Misconfigured):
                raise unavailable("The service is temporarily unavailable.") from None
            self._owners[user, body.template_version_id] = found
        if isinstance(found, HTTPError):
            raise found
        return found

    async def _execute(self, index: int, command: Create) -> None:
        api = self._request.api
        try:
            async with api.command_slots.bulk(command.actor_id, self._send_until):
                self._check_time()
                result = await execute(api, command)
        except HTTPError as error:
            self._record_error(index, error)
            return
        except Unavailable:
            self._has_outage = True
            self._record_error(index, unavailable(NOT_CONFIRMED))
            return
        if isinstance(result, CommandRefused):
            self._record_error(index, refusal(result, has_key=True))
            return
        rendered = documents.render_reply(result.task, nullable_ids_as_objects=api.nullable_ids_as_objects)
        self._results[index] = {
            "status": 200 if result.repeated else 201,
            "idempotency_key": self._keys[index],
            "task": orjson.Fragment(rendered),
        }

    def _record_error(self, index: int, error: HTTPError) -> None:
        key, response = self._keys[index], error.response
        result: dict[str, Any] = {"status": response.status}
        if isinstance(key, str):
            result["idempotency_key"] = key
        result["error"] = orjson.loads(response.body)
        if "Retry-After" in response.headers:
            result["error"]["detail"] += f" {_RETRY}"
            result["retry_after"] = int(response.headers["Retry-After"])
        self._results[index] = result

    def _command_id(self, key: str) -> UUID:
        """Return the command id that a single create with this Idempotency-Key has."""
        return uuid5(self._request.caller.user_id, key)


def _keys(entries: Sequence[Any], batch_key: str) -> list[str | HTTPError]:
    """Return the idempotency key of each entry, or what is wrong with the one that it has."""
    keys: list[str | HTTPError] = []
    used: set[str] = set()
    for index, entry in enumerate(entries):
        key = entry.get("idempotency_key") if isinstance(entry, dict) else None
        if key is None:
            key = f"{batch_key}/{index}"
        elif not isinstance(key, str) or not is_key(key):
            keys.append(invalid(("idempotency_key", f"Expected 1 to {MAX_KEY_LENGTH} printable ASCII characters.")))
            continue
        if key in used:
            keys.append(invalid(("idempotency_key", "Another task of this batch has the same key.")))
            continue
        used.add(key)
        keys.append(key)
    return keys
