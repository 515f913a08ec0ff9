"""Requests of agents: read those of a task or of the whole fleet, find the one that is meant, and answer it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from taskherd.client import tasks
from taskherd.client.errors import ClientError, ExitCode

if TYPE_CHECKING:
    from taskherd.client.http import Client

AgentRequest: TypeAlias = Mapping[str, Any]
"""The JSON of a request, as in ``docs/openapi.json``."""

PAGE: Final = 100
"""Number of requests that are read at once."""
MIN_PREFIX: Final = 4
"""Number of characters of an id that are taken for the beginning of one."""
_LISTED: Final = 8
"""Number of characters of an id that people read in tables."""


def short(request: AgentRequest) -> str:
    """Return the beginning of a request's id, as people read and write it."""
    return str(request["id"])[:_LISTED]


def of_task(client: Client, task: str) -> Iterator[AgentRequest]:
    """Yield the requests of a task, open ones first; the task is an id, a name, or ``owner/name``."""
    return _pages(client, (*tasks.path_of(task), "requests"), {})


def waiting(client: Client, query: str) -> Iterator[AgentRequest]:
    """Yield the open requests of all tasks that match a search, oldest first."""
    return _pages(client, ("requests",), {"q": query})


def _pages(client: Client, path: Sequence[str], query: Mapping[str, str]) -> Iterator[AgentRequest]:
    after: str | None = ""
    while after is not None:
        more = {"after": after} if after else {}
        page = client.request("GET", *path, query={**query, "limit": str(PAGE), **more}).body
        yield from page["requests"]
        after = page["next"]


def open_of(client: Client, task: str) -> list[AgentRequest]:
    """Return the open requests of a task, oldest first."""
    found: list[AgentRequest] = []
    for each in of_task(client, task):
        if each["state"] != "open":
            break
        found.append(each)
    return found


def choose(requests: Sequence[AgentRequest], words: Sequence[str], text: str) -> tuple[AgentRequest, dict[str, Any]]:
    """Return the open request that is meant, and the body of its answer.

    Args:
        requests: the open requests of a task.
        words: the id of a request or its beginning, which the only open one does not need, and then the option: its id
            or label. A question for free text takes the text in its place.
        text: what to say with it, or "".

    Raises:
        ClientError: none or several are meant, or the answer does not fit the request.
    """
    if not requests:
        raise ClientError(ExitCode.REFUSED, "the agent asks nothing")
    rest = list(words)
    named = _named(requests, rest[0]) if rest else None
    if named is not None:
        rest.pop(0)
    elif len(rest) > 1:
        raise ClientError(ExitCode.NOT_FOUND, f"there is no open request {rest[0]!r}", _listing(requests))
    elif len(requests) > 1:
        raise ClientError(ExitCode.USAGE, f"the agent asks {len(requests)} things", _listing(requests))
    request = named or requests[0]
    return request, _body(request, rest, text)


def choose_named(
    requests: Sequence[AgentRequest], request_id: str, option: str, text: str
) -> tuple[AgentRequest, dict[str, Any]]:
    """Return the open request that is meant, and the body of its answer, as ``choose`` does.

    The id of the request and the option are told apart here, so an answer that comes late is not taken for the text, or
    the option, of another request. Both may be "".
    """
    if not request_id or not requests:
        meant = requests
    elif (named := _named(requests, request_id)) is not None:
        meant = [named]
    else:
        raise ClientError(ExitCode.NOT_FOUND, f"there is no open request {request_id!r}", _listing(requests))
    if len(meant) != 1:
        return choose(meant, (), text)
    if option and not meant[0]["options"]:
        raise ClientError(ExitCode.USAGE, "the request has no options", "answer it with a text")
    return meant[0], _body(meant[0], [option] if option else [], text)


def _body(request: AgentRequest, words: Sequence[str], text: str) -> dict[str, Any]:
    """Return the body of the answer to a request: with the option that the only word names, or else a text."""
    options = request["options"]
    if not options:
        return {"text": _text_of(words, text)}
    option = _option(options, words[0]) if words else None
    if option is None:
        problem = f"there is no option {words[0]!r}" if words else f"it asks: {request['title']}"
        choices = ", ".join(" ".join(each["id"].splitlines()) for each in options)
        raise ClientError(ExitCode.USAGE, problem, f"choose one of: {choices}")
    return {"option_id": option, **({"text": text} if text else {})}


def _named(requests: Sequence[AgentRequest], word: str) -> AgentRequest | None:
    """Return the only request whose id begins like this, unless the word is too short to be meant as one."""
    found = [each for each in requests if len(word) >= MIN_PREFIX and each["id"].startswith(word.lower())]
    return found[0] if len(found) == 1 else None


def _text_of(words: Sequence[str], text: str) -> str:
    if words and text:
        raise ClientError(ExitCode.USAGE, "the request has no options", "give the text once")
    answer = words[0] if words else text
    if not answer.strip():
        raise ClientError(ExitCode.USAGE, "the request has no options", "answer it with a text")
    return answer


def _option(options: Sequence[Mapping[str, Any]], word: str) -> str | None:
    """Return the id of the option with this id, or else with this label."""
    for each in options:
        if each["id"] == word:
            return word
    labelled = [str(each["id"]) for each in options if each["label"].casefold() == word.casefold()]
    return labelled[0] if len(labelled) == 1 else None


def _listing(requests: Sequence[AgentRequest]) -> str:
    """Return the requests, one a line: white space in a title is one space, so that it cannot look like another one."""
    return "choose one of:\n" + "\n".join(f"{short(each)}  {' '.join(each['title'].split())}" for each in requests)


def answer(client: Client, task: str, request: AgentRequest, body: Mapping[str, Any]) -> None:
    """Answer a request. Raise ``ApiError`` with the status 409 if it is no longer open."""
    tasks.change(client, "POST", *tasks.path_of(task), "requests", str(request["id"]), "answer", body=body)
