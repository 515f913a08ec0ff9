"""Commands and replies: encoding, decoding and limits."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from asyncpg.pgproto import pgproto
from hypothesis import given
from hypothesis import strategies as st

from taskherd.domain.command_results import CommandRefused
from taskherd.domain.commands import Answer, Create, Delete, Send, UpdateLabels
from taskherd.domain.outcome import DeadLetterReason
from taskherd.errors import Malformed
from taskherd.messages import replies
from taskherd.messages.commands import decode_command, digest, encode_command
from taskherd.messages.decoding import InvalidMessage
from tests.pure.messages.samples import COMMANDS

NIL = str(UUID(int=0))


@pytest.mark.parametrize("fields", COMMANDS, ids=lambda fields: str(fields["type"]))
def test_every_type_is_decoded(fields: dict[str, Any]) -> None:
    """Each command type of the contract is decoded as its domain value, with every field."""
    command = decode_command(orjson.dumps({**fields, "newer": [1]}))
    assert not isinstance(command, InvalidMessage)
    assert json.loads(encode_command(command)) == fields


def test_the_canonical_json_identifies_a_command() -> None:
    """Two commands have the same text only if they request the same; the form of their JSON does not matter."""
    texts = {
        encode_command(command)
        for fields in COMMANDS
        if not isinstance(command := decode_command(orjson.dumps(fields)), InvalidMessage)
    }
    assert len(texts) == len(COMMANDS)
    reordered = decode_command(orjson.dumps(dict(reversed(COMMANDS[0].items())), option=orjson.OPT_INDENT_2))
    assert not isinstance(reordered, InvalidMessage)
    assert encode_command(reordered) in texts


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.none() | st.just("yes"), max_size=5),
)
def test_the_encoding_is_that_of_python_s_json(text: str, labels: dict[str, str | None]) -> None:
    """The digests that earlier releases recorded are of such texts: sorted keys, no spaces, Unicode as it is."""
    ids = {"command_id": uuid4(), "task_id": pgproto.UUID(uuid4().bytes), "actor_id": uuid4()}
    for command in (Send(**ids, input=text), UpdateLabels(**ids, labels=labels)):
        content = json.loads(encode_command(command))
        expected = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        assert encode_command(command) == expected.encode()


def test_the_nil_preset_means_no_preset() -> None:
    """Go clients always send a preset; the nil UUID means that there is none."""
    command = decode_command(orjson.dumps({**COMMANDS[0], "template_version_preset_id": NIL, "name": None}))
    assert isinstance(command, Create)
    assert command.template_version_preset_id is None
    assert command.name is None


def test_an_empty_input_is_decoded() -> None:
    """An empty input is refused by the domain, with the message of the API contract."""
    command = decode_command(orjson.dumps({**COMMANDS[3], "input": ""}))
    assert isinstance(command, Send)
    assert command.input == ""


def test_inputs_are_sanitized() -> None:
    """Control characters are removed from an input, except newlines and tabs."""
    command = decode_command(orjson.dumps({**COMMANDS[3], "input": "a\x00\n\tb\x1b"}))
    assert isinstance(command, Send)
    assert command.input == "a\n\tb"


@pytest.mark.parametrize("fields", COMMANDS, ids=lambda fields: str(fields["type"]))
def test_a_command_survives_a_round_trip(fields: dict[str, Any]) -> None:
    """An encoded and decoded command is equal to the original, and absent fields are not sent."""
    command = decode_command(orjson.dumps(fields))
    assert not isinstance(command, InvalidMessage)
    assert orjson.loads(encode_command(command)) == fields
    assert decode_command(encode_command(command)) == command


def test_what_a_command_does_not_say_is_not_sent() -> None:
    """Neither null nor false: the digest of a command is that of an older release, which knew fewer fields."""
    ids: dict[str, Any] = {"command_id": uuid4(), "task_id": uuid4(), "actor_id": uuid4()}
    create = Create(**ids, owner_id=uuid4(), template_version_id=uuid4(), input="Less")
    required = {*ids, "owner_id", "template_version_id", "input", "type"}
    assert orjson.loads(encode_command(create)).keys() == required
    assert orjson.loads(encode_command(Send(**ids, input="Less"))).keys() == {*ids, "input", "type"}


def test_the_length_limit_of_a_name() -> None:
    """A name of up to 1,024 characters gets a refusal that explains names; a longer one is invalid."""
    fields = {**COMMANDS[0], "name": "n" * 1024}
    assert isinstance(decode_command(orjson.dumps(fields)), Create)
    refused = decode_command(orjson.dumps({**fields, "name": "n" * 1025}))
    assert isinstance(refused, InvalidMessage)
    assert refused.detail.startswith("name: ")


def test_the_digest_of_a_command_is_the_same_in_every_release() -> None:
    """A command that is repeated after an upgrade is recognized: ``sha256sum`` of its canonical JSON is the digest."""
    send = Send(command_id=UUID(int=1), task_id=UUID(int=2), actor_id=UUID(int=3), input="Go on", interrupt=True)
    canonical = (
        b'{"actor_id":"00000000-0000-0000-0000-000000000003","command_id":"00000000-0000-0000-0000-000000000001",'
        b'"input":"Go on","interrupt":true,"task_id":"00000000-0000-0000-0000-000000000002","type":"task.send"}'
    )
    assert encode_command(send) == canonical
    assert digest(send).hex() == "c421433668d21d09ef186cdee589eece6e8cf39755986d9e4eed32c6b61adb15"


@pytest.mark.parametrize("more", [0, 1])
def test_the_size_limit_of_a_command(more: int) -> None:
    """A command of 1 MiB is decoded; of a larger one the dead letter has the first 64 KiB and the length."""
    body = orjson.dumps(COMMANDS[1]).ljust(2**20 + more)
    result = decode_command(body)
    assert isinstance(result, Delete) is (more == 0)
    if isinstance(result, InvalidMessage):
        assert (result.reason, result.body) == (DeadLetterReason.TOO_LARGE, body[: 64 * 1024])
        assert (result.length, result.detail) == (2**20 + 1, "1048577 bytes; expected at most 1048576")


@pytest.mark.parametrize("fields", [COMMANDS[0], COMMANDS[8]], ids=["task.create", "task.update_labels"])
@pytest.mark.parametrize(
    ("labels", "is_valid"),
    [
        ({str(number): "v" for number in range(256)}, True),
        ({str(number): "v" for number in range(257)}, False),
        ({"k" * 256: "v" * 256}, True),
        ({"k" * 257: "v"}, False),
        ({"k": "v" * 257}, False),
        ({"k": 7}, False),
    ],
)
def test_the_message_limits_labels_loosely(fields: dict[str, Any], labels: dict[str, Any], *, is_valid: bool) -> None:
    """Up to 256 labels of up to 256 characters get a refusal that explains labels; more are invalid."""
    command = decode_command(orjson.dumps({**fields, "labels": labels}))
    assert isinstance(command, Create | UpdateLabels) is is_valid
    if isinstance(command, Create | UpdateLabels):
        assert command.labels == labels


def test_only_a_label_that_is_updated_may_be_null() -> None:
    """Null removes a label, of which a new task has none."""
    assert isinstance(decode_command(orjson.dumps({**COMMANDS[8], "labels": {"repo": None}})), UpdateLabels)
    invalid = decode_command(orjson.dumps({**COMMANDS[0], "labels": {"repo": None}}))
    assert isinstance(invalid, InvalidMessage)
    assert invalid.detail.startswith("labels.repo: ")


def test_the_length_limit_of_the_option_of_an_answer() -> None:
    """One of up to 256 characters gets a refusal that names the options; a longer one is invalid."""
    fits = decode_command(orjson.dumps({**COMMANDS[7], "option_id": "o" * 256}))
    assert isinstance(fits, Answer)
    assert fits.option_id == "o" * 256
    refused = decode_command(orjson.dumps({**COMMANDS[7], "option_id": "o" * 257}))
    assert isinstance(refused, InvalidMessage)
    assert refused.detail.startswith("option_id: ")


def test_a_reply_survives_a_round_trip() -> None:
    """A decoded reply is equal to the encoded one; any other body is malformed."""
    assert replies.decode_reply(replies.accepted_reply({"id": "x"}, 3)) == replies.Accepted({"id": "x"}, 3)
    sent = replies.accepted_reply({}, 4, input_id=UUID(int=1), queued=True)
    assert replies.decode_reply(sent) == replies.Accepted({}, 4, queued=True)
    answered = replies.accepted_reply({}, 5, answered=UUID(int=2))
    assert replies.decode_reply(answered) == replies.Accepted({}, 5, answered=UUID(int=2))
    steered = replies.accepted_reply({}, 6, input_id=UUID(int=1), interrupt_id=UUID(int=3), answered=UUID(int=2))
    assert replies.decode_reply(steered) == replies.Accepted({}, 6, False, UUID(int=3), UUID(int=2))  # noqa: FBT003
    for refusal in (CommandRefused(404, "Not there."), CommandRefused(409, "Taken.", "Really.", (("name", "in use"),))):
        assert replies.decode_reply(replies.refused_reply(refusal)) == refusal
    task, refused = '{"ok":true,"task":{},"version":1', '{"ok":false,"error":{"status":409,"message":"No."'
    for body in (
        *("", "\xff", "[]", '{"ok":true}', '{"ok":false,"error":{}}', '{"ok":1,"task":{},"version":"1"}'),
        *(f'{task},"interrupt_id":"x"}}', f'{task},"answered":7}}'),
        *(f'{refused},"validations":{wrong}}}}}' for wrong in ("7", "[7]", "[{}]", '[{"field":"name"}]')),
    ):
        with pytest.raises(Malformed):
            replies.decode_reply(body.encode("latin-1"))


@pytest.mark.parametrize("letter", ["a", "é", "😀"])
def test_the_size_limit_of_an_input(letter: str) -> None:
    """An input of 256 KiB of UTF-8 is accepted; a larger one is invalid and not truncated."""
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
def test_invalid_commands_have_a_reason_and_a_reply(body: bytes, reason: DeadLetterReason) -> None:
    """An invalid command has a reason, and its reply contains the reason and the error."""
    invalid = decode_command(body)
    assert isinstance(invalid, InvalidMessage)
    assert (invalid.reason, invalid.index, invalid.body) == (reason, None, body)
    reply = replies.RefusedReply.model_validate_json(replies.invalid_message_reply(invalid))
    assert (reply.error.status, reply.error.message) == (400, "Command could not be read.")
    assert reply.error.detail == f"{reason.value}: {invalid.detail}"


def test_a_sender_that_is_not_trusted_is_forbidden() -> None:
    """The reply to its command says that, not that the command is invalid."""
    untrusted = InvalidMessage(None, DeadLetterReason.UNTRUSTED_SENDER, "sent by 'eve'", b"{}")
    reply = replies.RefusedReply.model_validate_json(replies.invalid_message_reply(untrusted))
    assert (reply.error.status, reply.error.message) == (403, "The sender is not trusted.")
    assert reply.error.detail == "untrusted_sender: sent by 'eve'"


def test_refusals_omit_empty_fields() -> None:
    """``detail`` and ``validations`` are present or absent, never null: Go and zod clients fail on null."""
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


def test_only_replies_to_a_send_contain_the_input() -> None:
    """``input_id`` and ``queued`` are both present in the reply to a send, and absent in others."""
    assert orjson.loads(replies.accepted_reply({"id": "x"}, 3)) == {"ok": True, "task": {"id": "x"}, "version": 3}
    sent = orjson.loads(replies.accepted_reply({}, 4, input_id=UUID(int=1), queued=False))
    assert sent["input_id"] == str(UUID(int=1))
    assert sent["queued"] is False
