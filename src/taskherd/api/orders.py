"""A request as a command: under which id it is given, and what the worker's reply is to whoever asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4, uuid5

from taskherd.api.answers import Refusal, away, invalid
from taskherd.api.route import Header
from taskherd.broker.desk import Order, Reply
from taskherd.errors import Unavailable
from taskherd.wire.replies import USED_BEFORE

if TYPE_CHECKING:
    from taskherd.api.ask import Ask

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


async def give(ask: Ask, kind: str, task_id: UUID, *, command_id: UUID | None = None, **fields: Any) -> Reply:
    """Give a command in the caller's name; its refusal is raised as the answer."""
    command_id = command_id or command_id_of(ask)
    ask.noted = {"command_id": str(command_id), "task_id": str(task_id)}
    try:
        reply = await ask.house.desk.give(Order(kind, command_id, task_id, ask.caller.user_id, fields))
    except Unavailable as error:
        ask.noted["reason"] = str(error)
        raise away("The task could not be changed in time.") from None
    if not reply.told["ok"]:
        raise _refusal(reply.told["error"], keyed=key_of(ask) is not None)
    return reply


def _refusal(error: dict[str, Any], *, keyed: bool) -> Refusal:
    message = error["message"]
    if keyed and message == USED_BEFORE:
        message = f"{KEY} was used for another request."
    validations = [(each["field"], each["detail"]) for each in error.get("validations") or ()]
    return Refusal(error["status"], message, error.get("detail"), validations)
