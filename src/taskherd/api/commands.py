"""A request as a command: under which id it is given, and what the worker's reply is to whoever asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4, uuid5

from taskherd.api.http.responses import Refusal, away, invalid
from taskherd.api.http.route import Header
from taskherd.domain.handle_command import Refused
from taskherd.errors import Malformed, Unavailable
from taskherd.messages.commands import encode
from taskherd.messages.replies import REPEATED, USED_BEFORE, decode_reply

if TYPE_CHECKING:
    from taskherd.api.context import Ask
    from taskherd.domain.commands import Command

KEY: Final = "Idempotency-Key"
KEY_MOST: Final = 255
KEY_HEADER: Final = Header(
    KEY,
    "A name for this very request: sent again, it changes nothing. Kept at least a day.",
    {"type": "string", "minLength": 1, "maxLength": KEY_MOST, "pattern": "^[ -~]+$"},
)


def command_id_of(ask: Ask) -> UUID:
    """The id of the caller's command: the same for the same caller and key, else a new one."""
    key = key_of(ask)
    return uuid4() if key is None else uuid5(ask.caller.user_id, key)


def key_of(ask: Ask) -> str | None:
    """The caller's own name for this request, so that doing it again does nothing; None without one."""
    key = ask.headers.get(KEY.lower())
    if key is None:
        return None
    if not 0 < len(key) <= KEY_MOST or not (key.isascii() and key.isprintable()):
        raise invalid((KEY, f"1 to {KEY_MOST} printable ASCII characters were expected."))
    return key


@dataclass(frozen=True, slots=True)
class Done:
    """A command that was carried out; `repeated`: by an earlier request, nothing changed this time."""

    task: dict[str, Any]
    queued: bool
    repeated: bool


async def give(ask: Ask, command: Command) -> Done:
    """Send a command in the caller's name and return what it came to; a refusal is raised as the answer."""
    ask.noted = {"command_id": str(command.command_id), "task_id": str(command.task_id)}
    try:
        reply = await ask.house.commands.call(command.type, encode(command))
        answer = decode_reply(reply.body)
    except (Unavailable, Malformed) as error:
        ask.noted["reason"] = str(error)
        raise away("The task could not be changed in time.") from None
    if isinstance(answer, Refused):
        raise _refusal(answer, keyed=key_of(ask) is not None)
    return Done(answer.task, answer.queued, REPEATED in reply.headers)


def _refusal(refused: Refused, *, keyed: bool) -> Refusal:
    message = refused.message
    if keyed and message == USED_BEFORE:
        message = f"{KEY} was used for another request."
    return Refusal(refused.status, message, refused.detail, refused.validations)
