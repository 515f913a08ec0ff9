from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import orjson
import pytest

from taskherd.domain.commands import Create, Send, digest_text
from taskherd.domain.handle_command import CommandRefused
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Malformed
from taskherd.messages import replies
from taskherd.messages.commands import decode_command, encode
from taskherd.messages.decoding import InvalidMessage
from tests.pure.messages.samples import COMMANDS

NIL = str(UUID(int=0))


@pytest.mark.parametrize("said", COMMANDS, ids=lambda said: str(said["type"]))
def test_every_type_is_read(said: dict[str, Any]) -> None:
    """Each command type of the contract comes out as its core value, with every field that was said."""
    command = decode_command(orjson.dumps({**said, "newer": [1]}))
    assert not isinstance(command, InvalidMessage)
    assert json.loads(digest_text(command)) == said


def test_the_digest_text_tells_commands_apart() -> None:
    """Two commands have one text only if they ask for the same; how they were written does not matter."""
    texts = {
        digest_text(found)
        for said in COMMANDS
        if not isinstance(found := decode_command(orjson.dumps(said)), InvalidMessage)
    }
    assert len(texts) == len(COMMANDS)
    backwards = decode_command(orjson.dumps(dict(reversed(COMMANDS[0].items())), option=orjson.OPT_INDENT_2))
    assert not isinstance(backwards, InvalidMessage)
    assert digest_text(backwards) in texts


def test_the_nil_preset_is_none() -> None:
    """Go clients always send a preset; the nil UUID stands for none."""
    command = decode_command(orjson.dumps({**COMMANDS[0], "template_version_preset_id": NIL, "name": None}))
    assert isinstance(command, Create)
    assert command.template_version_preset_id is None
    assert command.name is None


def test_an_empty_input_is_read() -> None:
    """Whether an input may be empty is for the task to say, with the API's own message."""
    command = decode_command(orjson.dumps({**COMMANDS[3], "input": ""}))
    assert isinstance(command, Send)
    assert command.input == ""


def test_inputs_are_cleaned() -> None:
    """Control characters are taken out of an input; newlines and tabs stay."""
    command = decode_command(orjson.dumps({**COMMANDS[3], "input": "a\x00\n\tb\x1b"}))
    assert isinstance(command, Send)
    assert command.input == "a\n\tb"


@pytest.mark.parametrize("said", COMMANDS, ids=lambda said: str(said["type"]))
def test_a_command_comes_back_as_it_was_sent(said: dict[str, Any]) -> None:
    """Encoding a command and decoding it gives the same value, and nothing is sent for what is absent."""
    command = decode_command(orjson.dumps(said))
    assert not isinstance(command, InvalidMessage)
    assert orjson.loads(encode(command)) == said
    assert decode_command(encode(command)) == command


def test_a_reply_is_read_as_a_value() -> None:
    """What the worker replies comes out as it went in; anything else is malformed."""
    assert replies.decode_reply(replies.accepted_reply({"id": "x"}, 3)) == replies.Accepted({"id": "x"}, 3)
    sent = replies.accepted_reply({}, 4, input_id=UUID(int=1), queued=True)
    assert replies.decode_reply(sent) == replies.Accepted({}, 4, queued=True)
    for refusal in (CommandRefused(404, "Not there."), CommandRefused(409, "Taken.", "Really.", (("name", "in use"),))):
        assert replies.decode_reply(replies.refused_reply(refusal)) == refusal
    for body in (b"", b"\xff", b"[]", b'{"ok":true}', b'{"ok":false,"error":{}}', b'{"ok":1,"task":{},"version":"1"}'):
        with pytest.raises(Malformed):
            replies.decode_reply(body)


@pytest.mark.parametrize("letter", ["a", "é", "😀"])
def test_the_bound_of_an_input(letter: str) -> None:
    """256 KiB of UTF-8 are taken, more is refused, never cut."""
    fits = letter * (256 * 1024 // len(letter.encode()))
    assert isinstance(decode_command(json.dumps({**COMMANDS[3], "input": fits}, ensure_ascii=False).encode()), Send)
    refused = decode_command(json.dumps({**COMMANDS[3], "input": fits + "."}, ensure_ascii=False).encode())
    assert isinstance(refused, InvalidMessage)
    assert refused.reason is DeadLetterReason.INVALID
    assert refused.detail == "input: at most 262144 bytes of UTF-8 were expected"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", DeadLetterReason.NOT_JSON),
        (b"[]", DeadLetterReason.INVALID),
        (b'{"x":NaN}', DeadLetterReason.NOT_JSON),
        (b'{"a":' * 20_000, DeadLetterReason.NOT_JSON),
        (orjson.dumps({**COMMANDS[1], "type": "task.explode"}), DeadLetterReason.UNKNOWN_TYPE),
        (orjson.dumps({**COMMANDS[1], "command_id": None}), DeadLetterReason.INVALID),
        (orjson.dumps({**COMMANDS[1], "actor_id": 1}), DeadLetterReason.INVALID),
        (orjson.dumps([COMMANDS[1]]), DeadLetterReason.INVALID),
    ],
)
def test_bad_commands_are_told_apart(body: bytes, reason: DeadLetterReason) -> None:
    """A command that can't be read gets a reason and a reply that its sender can act on."""
    bad = decode_command(body)
    assert isinstance(bad, InvalidMessage)
    assert (bad.reason, bad.index, bad.body) == (reason, None, body)
    reply = replies.RefusedReply.model_validate_json(replies.invalid_message_reply(bad))
    assert reply.error.status == 400
    assert reply.error.detail == f"{reason.value}: {bad.detail}"


def test_refusals_leave_out_what_is_empty() -> None:
    """``detail`` and ``validations`` are there or absent, never null: Go and zod clients fail on null."""
    assert orjson.loads(replies.refused_reply(CommandRefused(404, "Not there."))) == {
        "ok": False,
        "error": {"status": 404, "message": "Not there."},
    }
    assert orjson.loads(replies.refused_reply(CommandRefused(409, "Taken.", "Really.", (("name", "in use"),)))) == {
        "ok": False,
        "error": {
            "status": 409,
            "message": "Taken.",
            "detail": "Really.",
            "validations": [{"field": "name", "detail": "in use"}],
        },
    }


def test_acceptance_tells_of_the_input_for_a_send_only() -> None:
    """``input_id`` and ``queued`` come together, with a send."""
    assert orjson.loads(replies.accepted_reply({"id": "x"}, 3)) == {"ok": True, "task": {"id": "x"}, "version": 3}
    sent = orjson.loads(replies.accepted_reply({}, 4, input_id=UUID(int=1), queued=False))
    assert sent["input_id"] == str(UUID(int=1))
    assert sent["queued"] is False
