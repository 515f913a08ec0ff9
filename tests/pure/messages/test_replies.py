"""Replies as they are recorded: without the name of another task, which may be erased before the record is."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import UUID

import orjson
import pytest
from pydantic import ValidationError

from taskherd.domain.command_results import CommandRefused, name_in_use
from taskherd.domain.commands import Create, Pause
from taskherd.errors import Malformed
from taskherd.messages import replies

IDS: dict[str, Any] = {"command_id": UUID(int=1), "task_id": UUID(int=2), "actor_id": UUID(int=3)}


def create(name: str | None) -> Create:
    """Return a command that creates a task with this name."""
    return Create(**IDS, owner_id=UUID(int=4), template_version_id=UUID(int=5), input=f"Make {name}", name=name)


def test_the_record_of_a_taken_name_does_not_contain_it() -> None:
    """A repetition of the command gets the reply that was sent, since the command says the name again."""
    command, refusal = create("fix-login"), name_in_use("fix-login")
    sent = replies.refused_reply(refusal)
    recorded = replies.stored_reply(command, sent, refusal)
    assert "fix-login" in sent.decode()
    assert "fix-login" not in recorded
    assert replies.decode_reply(recorded.encode()) == name_in_use("")
    assert replies.restored_reply(command, recorded) == sent
    assert replies.restored_reply(create("other"), recorded) == replies.refused_reply(name_in_use("other"))


@pytest.mark.parametrize(
    ("command", "refusal"),
    [
        (create("fix-login"), CommandRefused(404, "Not there.")),
        (create("fix-login"), name_in_use("other")),
        (create(None), name_in_use("made-up")),
        (create(None), name_in_use("False")),
        (Pause(**IDS), name_in_use("fix-login")),
        (Pause(**IDS), name_in_use("")),
    ],
    ids=[
        "another refusal",
        "another name",
        "a name that was made up",
        "a name like a word of Python",
        "another command",
        "no name",
    ],
)
def test_other_refusals_are_recorded_as_they_are(command: Create | Pause, refusal: CommandRefused) -> None:
    """Only a create names a task that it does not change, and only the name that it asked for is in the command."""
    sent = replies.refused_reply(refusal)
    assert replies.stored_reply(command, sent, refusal) == sent.decode()
    assert replies.restored_reply(command, sent.decode()) == sent


def test_an_accepted_reply_is_recorded_as_it_is() -> None:
    """The task is the command's own."""
    for command in (create("fix-login"), Pause(**IDS)):
        sent = replies.accepted_reply({"name": "fix-login"}, 3)
        assert replies.stored_reply(command, sent, None) == sent.decode()
        assert replies.restored_reply(command, sent.decode()) == sent


def test_what_is_recorded_for_a_create_without_a_name_is_sent_again() -> None:
    """Its name was made up by the worker, so the command cannot say it."""
    recorded = replies.refused_reply(name_in_use("")).decode()
    for command in (create(None), create("")):
        assert replies.restored_reply(command, recorded) == recorded.encode()


@pytest.mark.parametrize("body", [b"x", b"{}", b'{"ok":true,"task":{},"version":1,"answered":"x"}'])
def test_a_body_that_is_no_reply_has_one_reason(body: bytes) -> None:
    """The reason is the same for a body that is no JSON, and for one that lacks or garbles a field."""
    with pytest.raises(Malformed) as raised:
        replies.decode_reply(body)
    assert raised.value.reason == "not_a_reply"


def test_all_fields_of_a_reply() -> None:
    """They have these names; an input is queued only if that is said."""
    ids = {name: UUID(int=number) for number, name in enumerate(("input_id", "interrupt_id", "answered"), 6)}
    fields = {"ok": True, "task": {"id": "x"}, "version": 3, **{name: str(each) for name, each in ids.items()}}
    assert replies.decode_reply(orjson.dumps(fields)) == replies.Accepted(
        {"id": "x"}, 3, interrupt_id=ids["interrupt_id"], answered=ids["answered"]
    )
    input_id, interrupt_id, answered = ids.values()
    reply = partial(
        replies.accepted_reply, {"id": "x"}, 3, input_id=input_id, interrupt_id=interrupt_id, answered=answered
    )
    assert orjson.loads(reply()) == {**fields, "queued": False}
    assert orjson.loads(reply(queued=True)) == {**fields, "queued": True}
    assert orjson.loads(replies.accepted_reply({"id": "x"}, 3, queued=True)) == {
        "ok": True,
        "task": {"id": "x"},
        "version": 3,
    }


@pytest.mark.parametrize(("status", "is_valid"), [(399, False), (400, True), (599, True), (600, False)])
def test_which_statuses_a_refusal_may_have(status: int, *, is_valid: bool) -> None:
    """Those of HTTP for errors, of clients and of servers."""
    body = replies.refused_reply(CommandRefused(status, "No."))
    if is_valid:
        assert replies.RefusedReply.model_validate_json(body).error.status == status
    else:
        with pytest.raises(ValidationError, match="status"):
            replies.RefusedReply.model_validate_json(body)
