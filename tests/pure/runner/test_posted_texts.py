from __future__ import annotations

import json

from taskherd.domain.reports import LogSource
from taskherd.runner.agents.posted_texts import MAX_POSTED, PostedTexts


def test_a_posted_text_is_a_persons_word_once() -> None:
    """However a terminal breaks its lines, and not in a message that was there before."""
    posted = PostedTexts()
    posted.add("Yes, do\nso", after=2)
    assert posted.source(1, "user", "Yes, do so") is LogSource.OUTPUT
    assert posted.source(3, "agent", "Yes, do so") is LogSource.OUTPUT
    assert posted.source(4, "user", "Yes, do so ") is LogSource.INPUT
    assert posted.source(5, "user", "Yes, do so") is LogSource.OUTPUT
    posted.add("Yes, do so", after=5)
    assert posted.source(6, "user", "Yes, do so") is LogSource.INPUT


def test_a_persons_message_is_not_replaced() -> None:
    """Neither by the agent's words nor by what the person said before; the message itself may come again."""
    posted = PostedTexts()
    posted.add("yes")
    posted.add("no")
    assert posted.source(1, "user", "no") is LogSource.INPUT
    assert posted.source(1, "user", "yes") is None
    assert posted.source(1, "agent", "no") is None
    assert posted.source(1, "user", "no") is LogSource.INPUT


def test_a_text_that_was_not_delivered_is_forgotten() -> None:
    """No person's message can show it."""
    posted = PostedTexts()
    posted.add("yes")
    posted.discard_last()
    assert posted.source(1, "user", "yes") is LogSource.OUTPUT


def test_a_text_of_which_it_is_not_known_whether_it_was_posted_is_settled() -> None:
    """By whether a message shows it; if none does it is forgotten, and no other text with it."""
    posted = PostedTexts()
    posted.add("yes")
    posted.add("no")
    assert posted.source(1, "user", "no") is LogSource.INPUT
    assert (posted.settle("no"), posted.settle("yes"), posted.settle("perhaps")) == (True, False, False)
    assert posted.source(2, "user", "yes") is LogSource.OUTPUT
    assert posted.source(1, "user", "no") is LogSource.INPUT


def test_the_latest_texts_are_remembered_by_the_next_runner_too() -> None:
    """The log keeps what it has of earlier messages."""
    posted = PostedTexts()
    for number in range(MAX_POSTED + 2):
        posted.add(f"text {number}", after=number - 1)
        assert posted.source(number, "user", f"text {number}") is LogSource.INPUT
    again = PostedTexts(**json.loads(json.dumps(posted.save())))
    assert again.save() == posted.save()
    assert len(again.save()["texts"]) == MAX_POSTED
    assert again.source(0, "user", "text 0") is None
    assert again.source(1, "agent", "anything") is None
    assert again.source(2, "user", "text 2") is LogSource.INPUT
    assert again.source(MAX_POSTED + 2, "user", "text 2") is LogSource.OUTPUT
