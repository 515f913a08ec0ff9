"""What an agent that speaks ACP tells becomes log entries, without an agent: which ones, and how large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from acp import schema

from taskherd.domain.reports import LogEntry
from taskherd.runner.agents.acp.conversation import STARTED, Conversation
from taskherd.runner.reporter import Reporter
from tests.pure.runner.contexts import make_context

KIB = 1024


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    """Return a reporter whose reports nobody sends."""
    return make_context(tmp_path).reporter


def update(update_kind: str, /, **fields: Any) -> object:
    """Return a session update as the protocol has it."""
    params = {"sessionId": "s", "update": {"sessionUpdate": update_kind, **fields}}
    return schema.SessionNotification.model_validate(params).update


def message(text: str, kind: str = "agent_message_chunk", **fields: Any) -> object:
    """Return a chunk of a message."""
    return update(kind, content={"type": "text", "text": text}, **fields)


def call(number: int | str, **fields: Any) -> object:
    """Return the beginning of a tool call."""
    return update("tool_call", toolCallId=str(number), **{"title": f"Call {number}", **fields})


def progress(number: int | str, **fields: Any) -> object:
    """Return what becomes of a tool call."""
    return update("tool_call_update", toolCallId=str(number), **fields)


def plan(*entries: tuple[str, str]) -> object:
    """Return a plan with these contents and states."""
    shown = [{"content": content, "status": status, "priority": "low"} for content, status in entries]
    return update("plan", entries=shown)


def text_part(text: str) -> dict[str, Any]:
    """Return a text in the content of a tool call."""
    return {"type": "content", "content": {"type": "text", "text": text}}


def diff(path: str, old: str | None, new: str) -> dict[str, Any]:
    """Return a diff in the content of a tool call."""
    return {"type": "diff", "path": path, "oldText": old, "newText": new}


def told(*updates: object, checkpoint: dict[str, Any] | None = None) -> Conversation:
    """Return the conversation after these updates."""
    conversation = Conversation(checkpoint or {})
    for each in updates:
        conversation.apply(each)
    return conversation


def shown(conversation: Conversation, reporter: Reporter) -> list[tuple[int, str | None, str]]:
    """Return id, kind and content of the entries that have changed."""
    return [(entry.id, entry.kind, entry.content) for entry in conversation.take_entries(reporter)]


def only(conversation: Conversation, reporter: Reporter) -> LogEntry:
    """Return the one entry that has changed."""
    (entry,) = conversation.take_entries(reporter)
    return entry


def data_of(entry: LogEntry) -> dict[str, Any]:
    """Return the data of an entry."""
    return dict(json.loads(entry.data or "{}"))


def test_chunks_of_one_message_are_one_entry(reporter: Reporter) -> None:
    """Until another kind or id of message comes, a call, a notice or a turn; chunks without text change nothing."""
    conversation = told(
        message("One, "), message("two."), message("", messageId="b"), message("Hm", "agent_thought_chunk")
    )
    assert shown(conversation, reporter) == [(0, "message", "One, two."), (1, "thought", "Hm")]
    conversation.apply(message("Three", messageId="a"))
    conversation.apply(message(", four", messageId="a"))
    conversation.apply(message("Five", messageId="b"))
    assert shown(conversation, reporter) == [(2, "message", "Three, four"), (3, "message", "Five")]
    conversation.apply(message("x", messageId="i" * 200 + "1"))
    conversation.apply(message("y", messageId="i" * 200 + "2"))
    assert shown(conversation, reporter) == [(4, "message", "xy")]
    conversation.add_notice("Note this")
    conversation.apply(message("z", messageId="i" * 200))
    assert shown(conversation, reporter) == [(5, "notice", "taskherd: Note this"), (6, "message", "z")]
    conversation.apply(message("z", messageId="i" * 199))
    conversation.begin_turn("Go on")
    conversation.apply(message("So", messageId="i" * 199))
    assert shown(conversation, reporter) == [(7, "message", "z"), (8, None, "Go on"), (9, "message", "So")]
    assert not conversation.has_changes


def test_a_long_message_goes_on_in_the_next_entry(reporter: Reporter) -> None:
    """After 16 Ki characters, however they come."""
    conversation = told(message("a" * (16 * KIB - 1)), message("bc"), message("d" * (32 * KIB)))
    entries = shown(conversation, reporter)
    assert [(number, len(text)) for number, _, text in entries] == [(0, 16 * KIB), (1, 16 * KIB), (2, 16 * KIB), (3, 1)]
    assert (entries[0][2][-1], entries[1][2][:2]) == ("b", "cd")


def test_what_is_no_text_is_described(reporter: Reporter) -> None:
    """A link, what it contains, or what kind of thing it is."""
    blocks: list[tuple[dict[str, Any], str]] = [
        ({"type": "resource_link", "name": "a.py", "uri": "file:///a.py"}, "[a.py](file:///a.py)"),
        ({"type": "resource", "resource": {"uri": "file:///b", "text": "bee"}}, "bee"),
        ({"type": "resource", "resource": {"uri": "file:///c", "text": ""}}, "[file:///c]"),
        ({"type": "resource", "resource": {"uri": "file:///d", "blob": "AA=="}}, "[file:///d]"),
        ({"type": "image", "data": "AA==", "mimeType": "image/png"}, "[image, image/png]"),
        ({"type": "audio", "data": "AA==", "mimeType": "audio/wav"}, "[audio, audio/wav]"),
    ]
    conversation = told(*(update("agent_message_chunk", content=block) for block, _ in blocks))
    assert only(conversation, reporter).content == "".join(text for _, text in blocks)
    conversation.apply(update("user_message_chunk", content={"type": "text", "text": "Hello"}))
    assert not conversation.has_changes, "the runner tells inputs itself"


def test_the_last_sentence_of_what_the_agent_says_is_known() -> None:
    """Of what is not finished only if nothing else is known; thoughts do not count, nor what is far from the end."""
    conversation = told(message("I look at it. It is"))
    assert (conversation.last_words, conversation.activity) == ("I look at it.", "I look at it.")
    conversation.apply(message("Hm. Well.", "agent_thought_chunk"))
    assert conversation.last_words == "It is"
    conversation.end_turn()
    assert conversation.last_words == "It is"
    conversation.begin_turn("Go on")
    assert (conversation.last_words, conversation.activity) == ("", STARTED)
    far = told(message("First. " + "x" * 1_999))
    far.end_turn()
    assert far.last_words == "x" * 1_999
    near = told(message("Yes.\n" + "-" * 1_996))
    near.end_turn()
    assert near.last_words == "es."
    lost = told(message("Yes.\n" + "-" * 2_000))
    lost.end_turn()
    assert lost.last_words == ""


def test_what_the_agent_is_doing() -> None:
    """The plan's entry in progress, else the latest running call, else the latest pending one, else its last words."""
    conversation = told(message("I begin.\n"))
    steps: list[tuple[object, str]] = [
        (call(1), "Call 1"),
        (call(2), "Call 2"),
        (progress(1, status="in_progress"), "Call 1"),
        (call(3, status="in_progress"), "Call 3"),
        (plan(("read", "completed"), ("fix", "in_progress"), ("test", "in_progress")), "fix"),
        (plan(("read", "completed"), ("test", "pending")), "Call 3"),
        (progress(3, status="completed"), "Call 1"),
        (progress(1, status="failed"), "Call 2"),
        (progress(2, status="completed"), "I begin."),
    ]
    for each, activity in steps:
        conversation.apply(each)
        assert conversation.activity == activity


def test_a_plan_is_one_entry_of_its_turn(reporter: Reporter) -> None:
    """It is replaced as it goes on, and has up to 50 entries; it ends a message once."""
    conversation = told(message("So"), plan(("read", "completed"), ("fix", "in_progress"), ("test", "pending")))
    assert shown(conversation, reporter) == [(0, "message", "So"), (1, "plan", "[x] read\n[>] fix\n[ ] test")]
    conversation.apply(message("far"))
    conversation.apply(plan(*((f"{number:02}" + "p" * 500, "pending") for number in range(51))))
    conversation.apply(message(", so good"))
    text, entry = conversation.take_entries(reporter)
    assert (text.id, text.content, entry.id) == (2, "far, so good", 1)
    assert [len(line) for line in entry.content.split("\n")] == [4 + 500] * 50
    assert entry.data is None, "it is too large"
    conversation.begin_turn("Go on")
    conversation.apply(plan(("again", "pending")))
    again = conversation.take_entries(reporter)[1]
    assert again.id == 4
    assert data_of(again) == {"entries": [{"content": "again", "status": "pending", "priority": "low"}]}


def test_a_call_is_replaced_as_it_goes_on(reporter: Reporter) -> None:
    """What an update does not tell stays; what the turn leaves unfinished has no state any more."""
    places = [{"path": "/" + "p" * 500, "line": 7}, *({"path": f"/{number}"} for number in range(10))]
    conversation = told(message("So"), call(1, kind="edit", locations=places), message("it is"))
    _, entry, _ = conversation.take_entries(reporter)
    assert (entry.id, entry.content, entry.title, entry.status) == (1, "Call 1", "Call 1", "pending")
    locations = [{"path": "/" + "p" * 499, "line": 7}, *({"path": f"/{number}"} for number in range(9))]
    assert data_of(entry) == {"kind": "edit", "locations": locations}
    conversation.apply(progress(1, content=[text_part("one"), text_part("two")]))
    entry = only(conversation, reporter)
    assert (entry.content, data_of(entry)) == ("Call 1\none\ntwo", {"kind": "edit", "locations": locations})
    conversation.apply(progress(1, title="t" * 600, kind="read", status="failed", locations=[], content=[]))
    entry = only(conversation, reporter)
    assert (entry.content, entry.title) == ("t" * 500 + " (failed)", "t" * 199 + "…")
    assert (entry.status, data_of(entry)) == ("failed", {"kind": "read"})
    conversation.apply(progress("unknown", status="completed"))
    entry = only(conversation, reporter)
    assert (entry.id, entry.content, data_of(entry)) == (3, "A tool call", {"kind": "other"})
    for number, status in (("a", "pending"), ("b", "in_progress"), ("c", "completed")):
        conversation.apply(call(number, status=status))
    conversation.take_entries(reporter)
    conversation.end_turn()
    ended = [(entry.title, entry.status) for entry in conversation.take_entries(reporter)]
    assert ended == [("Call a", None), ("Call b", None)]


def test_the_changes_of_a_call_are_told_as_far_as_they_fit(reporter: Reporter) -> None:
    """The first diff with its texts, up to ten by their paths."""
    diffs = [diff("/" + "p" * 500, None, "one\ntwo"), *(diff(f"/{number}", "old", "new") for number in range(10))]
    conversation = told(call(1, content=[text_part("t" * (4 * KIB + 1)), *diffs]))
    assert conversation.describe("1").split("\n")[1:6] == [
        "changes /" + "p" * 499, "+one", "+two", "changes /0", "-… (3 more characters)",
    ]  # fmt: skip
    entry = only(conversation, reporter)
    lines = entry.content.split("\n")
    assert lines[:3] == ["Call 1", "changes /" + "p" * 499, "changes /0"]
    assert lines[10:] == ["changes /8", "t" * 4 * KIB + "… (1 more characters)"]
    data = data_of(entry)
    assert data["diff"] == {"path": "/" + "p" * 499, "old": "", "new": "one\ntwo"}
    assert data["also_changes"] == [f"/{number}" for number in range(9)]
    conversation.apply(progress(1, content=[diff("/a", "x" * (6 * KIB), "y" * (6 * KIB + 1))]))
    data = data_of(only(conversation, reporter))
    assert data["diff"] == {"path": "/a", "old": "x" * 6 * KIB, "new": "y" * 6 * KIB + "… (1 more characters)"}
    assert "also_changes" not in data
    conversation.apply(progress(1, content=[diff("/a", '"' * (6 * KIB), '"' * (6 * KIB))]))
    data = data_of(only(conversation, reporter))
    assert data["diff"]["old"] == data["diff"]["new"] == '"' * 3 * KIB + f"… ({3 * KIB} more characters)"


def test_what_commands_wrote_is_shown_in_the_calls_that_refer_to_them(reporter: Reporter) -> None:
    """Of up to two commands, once they have ended; an update that names them again changes nothing."""
    parts = [{"type": "terminal", "terminalId": name} for name in ("x" * 201, "y" * 200, "b", "c")]
    conversation = told(call(1, content=parts), call(2, content=parts[2:]), call(3))
    conversation.take_entries(reporter)
    for name in ("x" * 201, "c", "y" * 200, "b"):
        conversation.show_terminal(name, lambda name=name: f"{name[0]} wrote")  # type: ignore[misc]
    conversation.show_terminal("b", lambda: "more")
    contents = [entry.content for entry in conversation.take_entries(reporter)]
    assert contents == ["Call 2\nb wrote\nc wrote", "Call 1\ny wrote\nb wrote"]
    conversation.apply(progress(1, content=parts))
    assert only(conversation, reporter).content == "Call 1\ny wrote\nb wrote"


def test_the_latest_64_calls_are_remembered(reporter: Reporter) -> None:
    """An update of an older one is another entry; a call that goes on is among the latest."""
    conversation = told(*(call(number) for number in range(64)), progress(0, status="completed"), call(64))
    conversation.take_entries(reporter)
    for number, entry in ((0, 0), (2, 2), (1, 65)):
        conversation.apply(progress(number, status="completed"))
        assert only(conversation, reporter).id == entry
    assert conversation.tool("1") is not None
    assert conversation.tool("2") is not None
    assert conversation.tool("3") is None
    same = "i" * 200
    conversation.apply(call(same + "1", kind="read"))
    tool = conversation.tool(same + "2")
    assert tool is not None
    assert (tool["title"], tool["kind"]) == (f"Call {same}1", "read")


def test_the_contents_of_the_latest_8_calls_are_remembered(reporter: Reporter) -> None:
    """Those of an older one are forgotten once they were told, but not its title."""
    content = [text_part("text"), diff("/a", "b", "c"), {"type": "terminal", "terminalId": "t"}]
    conversation = told(*(call(number, content=content, locations=[{"path": "/a"}]) for number in range(9)))
    entries = conversation.take_entries(reporter)
    assert {entry.content for entry in entries} == {f"Call {number}\nchanges /a\ntext" for number in range(9)}
    conversation.apply(call(9))
    for number in (0, 1):
        assert conversation.describe(str(number)) == ""
        conversation.apply(progress(number, status="completed"))
        entry = conversation.take_entries(reporter)[-1]
        assert (entry.content, data_of(entry)) == (f"Call {number}", {"kind": "other"})
    assert conversation.describe("4") == "text\nchanges /a\n-b\n+c"
    conversation.show_terminal("t", lambda: "written")
    contents = [entry.content for entry in conversation.take_entries(reporter)]
    assert contents == [f"Call {number}\nchanges /a\ntext\nwritten" for number in range(4, 9)]


def test_64_changes_are_many() -> None:
    """They are told without waiting for more."""
    conversation = told(*(call(number) for number in range(63)))
    assert (conversation.has_changes, conversation.has_many_changes) == (True, False)
    conversation.apply(call(63))
    assert conversation.has_many_changes


def test_the_next_runner_goes_on_from_the_checkpoint(reporter: Reporter) -> None:
    """With the open message, calls and plan; the entry of an input that was never given is the next one's."""
    first = told(call(1), plan(("fix", "pending")), message("I look. And"))
    first.take_entries(reporter)
    again = told(message(" so on."), checkpoint=json.loads(json.dumps(first.checkpoint())))
    again.apply(progress(1, status="completed"))
    again.apply(plan(("fix", "completed")))
    assert shown(again, reporter) == [
        (2, "message", "I look. And so on."), (0, "tool_call", "Call 1"), (1, "plan", "[x] fix"),
    ]  # fmt: skip
    assert again.last_words == "And so on."
    again.begin_turn("one")
    again.take_entries(reporter)
    again.take_back_turn()
    again.begin_turn("two")
    assert shown(again, reporter) == [(3, None, "two")]
