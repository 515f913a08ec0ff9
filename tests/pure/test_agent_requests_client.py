"""Which request of an agent, and which answer, the words of a person mean."""

from __future__ import annotations

from typing import Any

import pytest

from taskherd.client.agent_requests import choose, choose_named
from taskherd.client.errors import ClientError, ExitCode

ALLOW = {"id": "allow", "label": "Allow once", "kind": "allow_once"}
REJECT = {"id": "reject", "label": "Not now", "kind": "reject_once"}


def request(request_id: str, *options: dict[str, str], title: str = "May I?") -> dict[str, Any]:
    """Return an open request whose id begins like this."""
    return {"id": request_id.ljust(36, "0"), "title": title, "options": list(options), "state": "open"}


APPROVAL = request("beef1", ALLOW, REJECT)
QUESTION = request("cafe2", title="Which one?")


@pytest.mark.parametrize(
    ("words", "text", "body"),
    [
        (("allow",), "", {"option_id": "allow"}),
        (("ALLOW ONCE",), "", {"option_id": "allow"}),
        (("beef", "reject"), "But why?", {"option_id": "reject", "text": "But why?"}),
        ((APPROVAL["id"], "Not now"), "", {"option_id": "reject"}),
    ],
)
def test_an_option_is_named_by_id_or_label(words: tuple[str, ...], text: str, body: dict[str, str]) -> None:
    """The only open request needs no id; upper and lower case of labels are not distinguished."""
    assert choose([APPROVAL], words, text) == (APPROVAL, body)


@pytest.mark.parametrize(
    ("words", "text", "answer"),
    [
        (("The first",), "", "The first"),
        ((), "The first", "The first"),
        (("CAFE2", "reject"), "", "reject"),
        (("cafe",), "beef", "beef"),
    ],
)
def test_a_question_without_options_takes_a_text(words: tuple[str, ...], text: str, answer: str) -> None:
    """In the place of an option, or with --text."""
    assert choose([QUESTION], words, text) == (QUESTION, {"text": answer})


def test_one_of_several_is_named_by_the_beginning_of_its_id() -> None:
    """At least four characters, with which no other one begins."""
    assert choose([APPROVAL, QUESTION], ("cafe", "Both"), "") == (QUESTION, {"text": "Both"})
    other = request("beef3", ALLOW)
    assert choose([APPROVAL, other], ("beef3", "allow"), "") == (other, {"option_id": "allow"})


@pytest.mark.parametrize(
    ("requests", "words", "text", "code", "said"),
    [
        ([], ("allow",), "", ExitCode.REFUSED, "asks nothing"),
        ([APPROVAL, QUESTION], ("allow",), "", ExitCode.USAGE, "cafe2000  Which one?"),
        ([APPROVAL, QUESTION], ("caf", "allow"), "", ExitCode.NOT_FOUND, "beef1000  May I?"),
        ([APPROVAL, request("beef3")], ("beef", "allow"), "", ExitCode.NOT_FOUND, "beef3000"),
        ([APPROVAL], ("dead0", "allow"), "", ExitCode.NOT_FOUND, "no open request"),
        ([APPROVAL], (), "", ExitCode.USAGE, "allow, reject"),
        ([APPROVAL], (), "Yes", ExitCode.USAGE, "allow, reject"),
        ([APPROVAL], ("yes",), "", ExitCode.USAGE, "no option 'yes'"),
        ([request("beef1", ALLOW, {**REJECT, "label": "Allow Once"})], ("allow once",), "", ExitCode.USAGE, "reject"),
        ([QUESTION], (), "", ExitCode.USAGE, "with a text"),
        ([QUESTION], (" ",), "", ExitCode.USAGE, "with a text"),
        ([QUESTION], ("This",), "That", ExitCode.USAGE, "once"),
    ],
)
def test_what_is_not_clear_is_not_answered(
    requests: list[dict[str, Any]], words: tuple[str, ...], text: str, code: ExitCode, said: str
) -> None:
    """The error says what there is to choose from."""
    with pytest.raises(ClientError) as refused:
        choose(requests, words, text)
    assert refused.value.code is code
    assert said in f"{refused.value.message} {refused.value.advice}"


def test_each_request_to_choose_from_is_one_line() -> None:
    """Whatever a title or the id of an option contains: it cannot look like another request."""
    title = "May I?\u2028cafe2000  Which one?\r\nbeef1000  Yes\x85"
    with pytest.raises(ClientError) as refused:
        choose([request("dead1", title=title), QUESTION], (), "")
    first = "dead1000  May I? cafe2000 Which one? beef1000 Yes"
    assert refused.value.advice.splitlines() == ["choose one of:", first, "cafe2000  Which one?"]
    with pytest.raises(ClientError) as refused:
        choose([request("dead1", {**ALLOW, "id": "allow\nall"}, REJECT)], (), "")
    assert refused.value.advice.splitlines() == ["choose one of: allow all, reject"]


@pytest.mark.parametrize(
    ("requests", "given", "code", "said"),
    [
        ([QUESTION], (APPROVAL["id"], "", ""), ExitCode.NOT_FOUND, "cafe2000  Which one?"),
        ([QUESTION], (APPROVAL["id"], "allow", ""), ExitCode.NOT_FOUND, "no open request"),
        ([QUESTION], (APPROVAL["id"], "", "The first"), ExitCode.NOT_FOUND, "no open request"),
        ([QUESTION], ("", "allow", ""), ExitCode.USAGE, "no options"),
        ([QUESTION], (QUESTION["id"], "allow", "The first"), ExitCode.USAGE, "no options"),
        ([APPROVAL, QUESTION], ("", "allow", ""), ExitCode.USAGE, "2 things"),
        ([], (APPROVAL["id"], "allow", ""), ExitCode.REFUSED, "asks nothing"),
    ],
)
def test_a_late_answer_is_not_given_to_another_request(
    requests: list[dict[str, Any]], given: tuple[str, str, str], code: ExitCode, said: str
) -> None:
    """An assistant that names a request or an option means that one, also if only another request is open by now."""
    with pytest.raises(ClientError) as refused:
        choose_named(requests, *given)
    assert refused.value.code is code
    assert said in f"{refused.value.message} {refused.value.advice}"


def test_an_assistant_says_which_word_is_which() -> None:
    """An option is never taken for the id of a request, whose beginning an agent may have chosen to be the same."""
    question = request("allow", ALLOW, REJECT)
    assert choose_named([question], "", "allow", "") == (question, {"option_id": "allow"})
    assert choose_named([APPROVAL, QUESTION], "cafe", "", "Both") == (QUESTION, {"text": "Both"})
