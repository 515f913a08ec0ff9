"""A request as a command: under which id it is given, and what the worker's reply is to whoever asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4, uuid5

from taskherd.api.http.responses import HTTPError, invalid, unavailable
from taskherd.api.http.route import Header
from taskherd.domain.handle_command import CommandRefused
from taskherd.errors import Malformed, Unavailable
from taskherd.messages.commands import encode
from taskherd.messages.replies import REPEATED, USED_BEFORE, decode_reply

if TYPE_CHECKING:
    from taskherd.api.context import RequestContext
    from taskherd.domain.commands import Command

KEY: Final = "Idempotency-Key"
MAX_KEY: Final = 255
KEY_HEADER: Final = Header(
    KEY,
    "A name for this very request: sent again, it changes nothing. Kept at least a day.",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[ -~]+$"},
)


def command_id_of(request: RequestContext) -> UUID:
    """The id of the caller's command: the same for the same caller and key, else a new one."""
    key = key_of(request)
    return uuid4() if key is None else uuid5(request.caller.user_id, key)


def key_of(request: RequestContext) -> str | None:
    """The caller's own name for this request, so that doing it again does nothing; None without one."""
    key = request.headers.get(KEY.lower())
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY or not (key.isascii() and key.isprintable()):
        raise invalid((KEY, f"1 to {MAX_KEY} printable ASCII characters were expected."))
    return key


@dataclass(frozen=True, slots=True)
class Done:
    """A command that was carried out; `repeated`: by an earlier request, nothing changed this time."""

    task: dict[str, Any]
    queued: bool
    repeated: bool


async def send_command(request: RequestContext, command: Command) -> Done:
    """Send a command in the caller's name and return what it came to; a refusal is raised as the answer."""
    request.log_fields = {"command_id": str(command.command_id), "task_id": str(command.task_id)}
    try:
        reply = await request.api.commands.call(command.type, encode(command))
        response = decode_reply(reply.body)
    except (Unavailable, Malformed) as error:
        request.log_fields["reason"] = str(error)
        raise unavailable("The task could not be changed in time.") from None
    if isinstance(response, CommandRefused):
        raise _http_error(response, keyed=key_of(request) is not None)
    return Done(response.task, response.queued, REPEATED in reply.headers)


def _http_error(refused: CommandRefused, *, keyed: bool) -> HTTPError:
    message = refused.message
    if keyed and message == USED_BEFORE:
        message = f"{KEY} was used for another request."
    return HTTPError(refused.status, message, refused.detail, refused.validations)
