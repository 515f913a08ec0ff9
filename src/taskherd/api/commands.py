"""Send a request as a command, and turn the worker's reply into a result or an error response."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4, uuid5

from taskherd.api.http.errors import HTTPError, invalid, unavailable
from taskherd.api.http.route import Header
from taskherd.broker.command_client import Reply
from taskherd.domain.command_results import COMMAND_ID_REUSED, NO_VERSION, CommandRefused
from taskherd.domain.commands import Create, Delete
from taskherd.errors import Malformed, Misconfigured, Retry, Unavailable
from taskherd.messages.commands import decode_command, digest, encode_command
from taskherd.messages.decoding import InvalidMessage
from taskherd.messages.replies import REPEATED_HEADER, decode_reply, refused_reply, restored_reply
from taskherd.store import command_log, feed, task_queries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from taskherd.api.context import ApiContext, RequestContext
    from taskherd.domain.commands import Command
    from taskherd.store.task_queries import TaskRef

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
MAX_KEY_LENGTH: Final = 255
NOT_CONFIRMED: Final = "The change was not confirmed in time."
CLOCK_TOLERANCE: Final = 0.1
"""Maximum number of seconds by which a worker's clock is behind the database's."""
KEY_HEADER: Final = Header(
    IDEMPOTENCY_KEY,
    "A key of the caller's choice for this request. Repeating the request with the same key, for at least a day,"
    " changes nothing and gives the same result.",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH, "pattern": "^[ -~]+$"},
)


def command_id_of(request: RequestContext) -> UUID:
    """Return the id of the caller's command: derived from caller and idempotency key, or random without a key."""
    key = idempotency_key_of(request)
    return uuid4() if key is None else uuid5(request.caller.user_id, key)


def is_key(text: str) -> bool:
    """Return whether a text can be an idempotency key."""
    return 0 < len(text) <= MAX_KEY_LENGTH and text.isascii() and text.isprintable()


def idempotency_key_of(request: RequestContext, max_length: int = MAX_KEY_LENGTH) -> str | None:
    """Return the request's Idempotency-Key, or None without one. Raise a 400 if it can't be one."""
    key = request.headers.get(IDEMPOTENCY_KEY.lower())
    if key is None:
        return None
    if not is_key(key) or len(key) > max_length:
        raise invalid((IDEMPOTENCY_KEY, f"Expected 1 to {max_length} printable ASCII characters."))
    return key


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of an accepted command."""

    task: dict[str, Any]
    queued: bool
    """True if the input waits in the inbox because the agent is busy."""
    repeated: bool
    """True if an earlier request with the same command id made the change."""
    interrupt_id: UUID | None = None
    """The interrupt that the command opened or joined."""
    answered: UUID | None = None
    """The request of the agent that the command answered."""


async def send_command(request: RequestContext, command: Command) -> CommandResult:
    """Send a command on behalf of the caller and return its result.

    Raises:
        HTTPError: the refusal of the worker, or a 503 if no reply arrives in time.
    """
    request.log_fields = {"command_id": str(command.command_id), "task_id": str(command.task_id)}
    deadline = asyncio.get_running_loop().time() + request.api.settings.api_command_timeout
    try:
        async with request.api.command_slots.single(command.actor_id, command.task_id, deadline):
            result = await execute(request.api, command, deadline)
    except Unavailable as error:
        request.log_fields["reason"] = str(error)
        raise unavailable(NOT_CONFIRMED) from None
    if isinstance(result, CommandRefused):
        raise refusal(result, has_key=idempotency_key_of(request) is not None)
    return result


async def repeated_delete(request: RequestContext, ref: TaskRef) -> Delete | None:
    """Return the caller's command with the request's key if it was executed, and deleted the task that ``ref`` names.

    Other requests do not find that task any more; sending the command again gives its recorded reply.
    """
    if idempotency_key_of(request) is None:
        return None
    command_id = command_id_of(request)
    row = await task_queries.find_deleted(request.api.reader, ref, command_id)
    if row is None:
        return None
    command = Delete(command_id=command_id, task_id=row["id"], actor_id=request.caller.user_id)
    return command if row["digest"] == digest(command) else None


async def execute(api: ApiContext, command: Command, deadline: float | None = None) -> CommandResult | CommandRefused:
    """Send a command for which there is a slot, and return its result or refusal.

    It ends at ``deadline``, in seconds of the loop's clock, by default after the time limit for replies. A create that
    its caller repeats after it has lost access to the task is refused as a new one would be.

    Raises:
        Unavailable: no reply arrived in time.
    """
    body = encode_command(command)
    find_record = _record_of(api, command, body)
    try:
        reply = await api.commands.call(command.type, body, find_record, deadline=deadline)
        if reply.sent_again and REPEATED_HEADER in reply.headers:
            reply = await find_record() or reply  # what was repeated may be this call, and not one of the caller's
    finally:
        api.reads.mark(command.actor_id)  # also without a reply: the command may have been executed
    try:
        response = decode_reply(reply.body)
    except Malformed as error:
        raise Unavailable(str(error)) from None
    if isinstance(response, CommandRefused):
        return response
    is_repeated = REPEATED_HEADER in reply.headers
    if is_repeated and isinstance(command, Create) and not await _may_see(api, command):
        return NO_VERSION
    return CommandResult(response.task, response.queued, is_repeated, response.interrupt_id, response.answered)


async def _may_see(api: ApiContext, command: Create) -> bool:
    """Return whether the caller may still see the task that it created, even if it is deleted.

    Of all commands only a create is sent without a look at its task; its recorded reply holds the task's document.
    """
    try:
        return await feed.visible_even_deleted(api.reader, command.actor_id, command.task_id)
    except (Retry, Misconfigured) as error:
        raise Unavailable(str(error)) from None


def _record_of(api: ApiContext, command: Command, body: bytes) -> Callable[[], Awaitable[Reply | None]]:
    """Return a function that looks for the reply to ``command`` in the database, where the worker committed it."""
    loop = asyncio.get_running_loop()
    sent_at = loop.time()

    async def find() -> Reply | None:
        try:
            row = await command_log.recorded(api.reader, command.command_id)
        except (Unavailable, Retry, Misconfigured):
            return None
        if row is None:
            return None
        executed = decode_command(body)
        if isinstance(executed, InvalidMessage):
            return None
        if row["digest"] != digest(executed):
            return Reply(refused_reply(COMMAND_ID_REUSED), {})
        is_repeated = row["age"] > loop.time() - sent_at + CLOCK_TOLERANCE
        return Reply(restored_reply(executed, row["reply"]), {REPEATED_HEADER: True} if is_repeated else {})

    return find


def refusal(refused: CommandRefused, *, has_key: bool) -> HTTPError:
    """Return the error response for a refusal; ``has_key``: the caller knows the command's id as a key."""
    message = refused.message
    if has_key and message == COMMAND_ID_REUSED.message:
        message = f"{IDEMPOTENCY_KEY} was used for another request."
    return HTTPError(refused.status, message, refused.detail, refused.validations)
