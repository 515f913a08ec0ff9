"""When an entry of a followed conversation is final."""

from __future__ import annotations

from typing import Any

from taskherd.client import conversation
from taskherd.client.conversation import QUIET, Entry, FollowedConversation


def entry(number: int, content: str = "", **fields: Any) -> Entry:
    """Return an entry of an agent, in the place that its id says."""
    return {"id": number, "type": "output", "content": content, "place": [0, 1, number + 1, number], **fields}


def ids(entries: list[Entry]) -> list[int]:
    """Return the ids of entries."""
    return [each["id"] for each in entries]


def test_an_entry_is_final_when_another_one_comes_after_it() -> None:
    """It is taken once, in its last version; one with an earlier place, though it came later, ends nothing."""
    followed = FollowedConversation()
    followed.receive([entry(1, "Hel")], 0)
    assert followed.take(1) == []
    followed.receive([entry(2, "came late", place=[0, 1, 1, 2])], 1)
    assert ids(followed.take(1)) == [2]
    followed.receive([entry(1, "Hello world"), entry(3, "Next")], 1)
    assert [each["content"] for each in followed.take(1)] == ["Hello world"]
    assert followed.take(1) == []


def test_an_entry_of_another_kind_ends_nothing() -> None:
    """Entries whose places have another first number come all after those of an agent, whenever they were made."""
    followed = FollowedConversation()
    followed.receive([entry(1, "Hel"), entry(2, "aside", place=[1, 1, 1, 2])], 0)
    assert followed.take(1) == []
    followed.receive([entry(3, "sent aside", place=[1, 1, 2, 3], type="input")], 0)
    assert ids(followed.take(1)) == [2, 3]


def test_some_entries_are_final_at_once() -> None:
    """What people sent, notices, and tool calls that have ended are never replaced by a longer version."""
    followed = FollowedConversation()
    followed.receive([entry(1, type="input")], 0)
    assert ids(followed.take(0)) == [1]
    followed.receive([entry(2, kind="notice"), entry(3, status="completed")], 0)
    assert ids(followed.take(0)) == [2, 3]
    followed.receive([entry(4, status="failed")], 0)
    assert ids(followed.take(0)) == [4]


def test_a_tool_call_that_goes_on_is_final_only_the_first_time() -> None:
    """Not by what comes after it, but once it was quiet; then by its end, the next turn, or the end of the agent."""
    followed = FollowedConversation()
    followed.receive([entry(1, "make", status="in_progress"), entry(2, "Waiting"), entry(3, "Still")], 0)
    assert ids(followed.take(1)) == [2]
    assert ids(followed.take(QUIET)) == [1, 3]
    assert followed.after == 0
    followed.receive([entry(1, "make: 1 passed", status="in_progress")], QUIET)
    assert followed.take(9 * QUIET) == []
    followed.receive([entry(1, "make: 14 passed", status="completed")], 9 * QUIET)
    assert [each["content"] for each in followed.take(9 * QUIET)] == ["make: 14 passed"]
    assert followed.after == 2
    followed.receive([entry(4, "sleep", status="pending"), entry(5, "Go on", type="input")], 9 * QUIET)
    assert ids(followed.take(9 * QUIET)) == [4, 5]
    followed.receive([entry(6, "sleep more", status="pending")], 9 * QUIET)
    assert ids(followed.take(9 * QUIET, everything=True)) == [6]


def test_a_quiet_entry_is_final_once() -> None:
    """One that did not change for a while is taken; if it then grows, it is taken again when it is really final."""
    followed = FollowedConversation()
    followed.receive([entry(1, "Hel")], 0)
    followed.receive([entry(1, "Hello")], 1)
    assert followed.take(QUIET) == []
    assert ids(followed.take(QUIET + 1)) == [1]
    followed.receive([entry(1, "Hello")], QUIET + 2)
    assert followed.take(3 * QUIET, everything=True) == []
    followed.receive([entry(1, "Hello world")], 3 * QUIET)
    assert followed.take(9 * QUIET) == []
    followed.receive([entry(2, "Next")], 9 * QUIET)
    assert [each["content"] for each in followed.take(9 * QUIET)] == ["Hello world"]


def test_what_may_still_change_is_read_again() -> None:
    """An entry that was taken only because it was quiet, or at the end, is after ``after`` until it ends."""
    followed = FollowedConversation()
    followed.receive([entry(4, type="input"), entry(5, "Hel")], 0)
    assert ids(followed.take(QUIET)) == [4, 5]
    assert followed.after == 4
    followed.receive([entry(5, "Hello")], QUIET)
    assert [each["content"] for each in followed.take(QUIET, everything=True)] == ["Hello"]
    assert followed.after == 4
    followed.receive([entry(6, kind="notice")], QUIET)
    assert ids(followed.take(QUIET)) == [6]
    assert followed.after == 6


def test_a_read_does_not_bring_an_earlier_version_back(monkeypatch: Any) -> None:
    """It may come from a standby that is behind; of a stream the last version counts, whichever it is."""
    monkeypatch.setattr(conversation, "MAX_REMEMBERED", 2)
    followed = FollowedConversation()
    for content in ("Hel", "Hello", "Hello world"):
        followed.receive([entry(1, content)], 0)
    for content in ("Hel", "Hello"):
        followed.receive([entry(1, content)], 0, may_be_older=True)
    assert [each["content"] for each in followed.take(0, everything=True)] == ["Hello world"]
    followed.receive([entry(1, "Hello"), entry(2, "Next")], 0, may_be_older=True)
    assert ids(followed.take(0, everything=True)) == [2]
    followed.receive([entry(1, "Hello")], 0)
    assert [each["content"] for each in followed.take(0)] == ["Hello"]
    followed.receive([entry(1, "Goodbye")], 0)
    followed.receive([entry(1, "Hel")], 0, may_be_older=True)
    assert [each["content"] for each in followed.take(0)] == ["Hel"], "more versions are remembered than MAX_REMEMBERED"


def test_few_entries_are_remembered(monkeypatch: Any) -> None:
    """Of a long conversation only the versions of the latest entries are kept."""
    monkeypatch.setattr(conversation, "MAX_REMEMBERED", 2)
    followed = FollowedConversation()
    for number in range(4):
        followed.receive([entry(number, type="input")], 0)
        followed.take(0)
    followed.receive([entry(number, type="input") for number in range(4)], 0)
    assert ids(followed.take(0)) == [0, 1]
