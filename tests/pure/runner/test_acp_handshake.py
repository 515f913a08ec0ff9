"""From the first call of an agent to an open session, by what the agent can do and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from acp import schema

from taskherd import __version__
from taskherd.runner import template
from taskherd.runner.agents.acp import handshake
from taskherd.runner.agents.acp.sizes import MAX_PARTS
from tests.pure.runner.acp_life import AcpLife

CANNOT_CONTINUE = "the agent cannot continue its earlier conversation"


@pytest.mark.parametrize(
    ("run", "reads", "writes", "terminals"),
    [
        ({}, False, False, False),
        ({"client_files": "read"}, True, False, False),
        ({"client_files": "write", "client_terminals": True}, True, True, True),
    ],
)
def test_the_agent_is_offered_what_the_template_allows(
    run: dict[str, Any], *, reads: bool, writes: bool, terminals: bool
) -> None:
    """Files and commands; forms are always shown to people."""
    offered = handshake.initialize_params(template.parse({"command": ["a"], "agent": "acp", **run}))
    assert offered == {
        "protocolVersion": 1,
        "clientCapabilities": {
            "fs": {"readTextFile": reads, "writeTextFile": writes}, "terminal": terminals, "elicitation": {"form": {}},
        },
        "clientInfo": {"name": "taskherd", "title": "taskherd", "version": __version__},
    }  # fmt: skip


def test_an_agent_that_cannot_be_used_is_told_why() -> None:
    """Its answer is large or of another form, or it speaks another version of the protocol."""
    assert handshake.parse_initialized({"protocolVersion": 1, "x": [[]] * MAX_PARTS}) == (
        f"Its answer to `initialize` is invalid: it has more than {MAX_PARTS} parts"
    )
    found = handshake.parse_initialized({"protocolVersion": [], "x": 1})
    assert found == "Its answer to `initialize` is invalid: protocolVersion: Input should be a valid integer"
    assert handshake.parse_initialized({"protocolVersion": 2}) == (
        "It speaks version 2 of the Agent Client Protocol, taskherd version 1. Install a version of the agent that"
        " speaks it."
    )


RESUMES: dict[str, Any] = {"sessionCapabilities": {"resume": {}}}


@pytest.mark.parametrize(
    ("capabilities", "session", "method"),
    [
        ({"loadSession": True, **RESUMES}, "s-1", "session/resume"),
        (RESUMES, "s-2", "session/resume"),
        ({"loadSession": True, "sessionCapabilities": {}}, "s-3", "session/load"),
        ({"loadSession": True}, "s-4", "session/load"),
        ({"loadSession": False}, "s-5", "session/new"),
        ({"loadSession": True, **RESUMES}, None, "session/new"),
        (None, "s-6", "session/new"),
    ],
)
def test_a_session_is_continued_in_the_best_way_that_the_agent_can(
    capabilities: dict[str, Any] | None, session: str | None, method: str
) -> None:
    """Resumed rather than loaded, which replays it."""
    agent = schema.InitializeResponse.model_validate({"protocolVersion": 1, "agentCapabilities": capabilities})
    assert handshake.continuation(agent, session) == method


def test_a_session_has_a_folder_and_servers() -> None:
    """A new one has no id, since the agent gives it one; one that is continued has its own."""
    servers = ({"name": "herd"},)
    assert handshake.session_params("/work", servers, None) == {"cwd": "/work", "mcpServers": [{"name": "herd"}]}
    assert handshake.session_params("/x", (), "s") == {"cwd": "/x", "mcpServers": [], "sessionId": "s"}


WANTS = "wants its user to sign in, which taskherd cannot do for it."
ADVICE = (
    " Give it its key in a variable that the template names in `env.inherit` or sets in `env.set`, or sign in once as"
    " the user and with the HOME that its agents have on the runner's machine."
)


@pytest.mark.parametrize(
    ("initialized", "words"),
    [
        ({}, f"The agent {WANTS}"),
        ({"agentInfo": 5, "authMethods": None}, f"The agent {WANTS}"),
        (
            {
                "agentInfo": {"title": "Ada", "name": "ada-cli"},
                "authMethods": [
                    {"id": "key", "name": "API key", "vars": [{"name": "ADA_KEY"}, 5, {"name": "ADA_URL"}]},
                    7,
                    {"id": "browser"},
                ],
            },
            f"Ada {WANTS} It offers: API key (ADA_KEY, ADA_URL); browser.",
        ),
        (
            {"authMethods": [{"id": "k", "name": "K", "vars": 5}, {"id": "l", "vars": [7]}]},
            f"The agent {WANTS} It offers: K; l.",
        ),
        ({"authMethods": 5}, f"The agent {WANTS}"),
        (
            {"agentInfo": {"name": "n" * 65}, "authMethods": [{"id": f"m{number}"} for number in range(11)]},
            f"{'n' * 64} {WANTS} It offers: m0; m1; m2; m3; m4; m5; m6; m7; m8; m9.",
        ),
    ],
)
def test_how_to_sign_in_is_said_in_the_agents_words(initialized: dict[str, Any], words: str) -> None:
    """Its name, and the first ten ways that it offers, with their variables."""
    assert handshake.authentication_needed(initialized) == words + ADVICE


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"message": "No.", "data": {"details": "Because", "message": "other"}}, "No. (Because)"),
        ({"message": "No.", "data": {"message": "Because of it"}}, "No. (Because of it)"),
        ({"message": "No.", "data": "Simply so"}, "No. (Simply so)"),
        ({"message": "No.", "data": ""}, "No."),
        ({"message": "No.", "data": {"details": 5}}, "No."),
        ({"message": "No.", "data": 5}, "No."),
        ({"code": 1}, "unknown error"),
    ],
)
def test_an_error_is_shown_with_its_details(error: dict[str, Any], words: str) -> None:
    """Details that are no text are left out."""
    assert handshake.describe_error(error) == words


def starting(folder: Path, session: str | None = None, **run: Any) -> AcpLife:
    """Return the life of an agent whose first call waits; the task has an earlier session or none."""
    life = AcpLife(folder, **run)
    life.context.journal.acp_session = session
    life.follow_again()
    life.follower._recover()
    life.follower._opening.begin()
    return life


async def answer(life: AcpLife, **response: Any) -> None:
    """Answer the only call that the agent has got."""
    (call,) = life.take()
    life.write({"id": call["id"], **response})
    await life.step()


CAN_RESUME = {"protocolVersion": 1, "agentCapabilities": RESUMES}


async def test_the_first_refusal_ends_the_opening(tmp_path: Path) -> None:
    """It is the reason that counts, and a notice shows it."""
    life = starting(tmp_path)
    await answer(life, error={"code": 5, "message": "Not today", "data": "closed"})
    words = "The agent refused `initialize`: Not today (closed)"
    assert (life.follower._opening.failure, life.notices, life.take()) == (words, [words], [])
    life.follower._opening.fail("Something later")
    assert (life.follower._opening.failure, life.notices) == (words, [words])


async def test_an_agent_of_another_version_is_asked_no_more(tmp_path: Path) -> None:
    """People see both versions, and the agent gets no further message."""
    life = starting(tmp_path)
    await answer(life, result={"protocolVersion": 7})
    assert life.take() == []
    (notice,) = life.notices
    assert notice.startswith("It speaks version 7 of the Agent Client Protocol, taskherd version 1.")


async def test_a_refused_continuation_begins_a_new_session(tmp_path: Path) -> None:
    """The task's earlier session is forgotten, and people see why."""
    life = starting(tmp_path, "earlier")
    await answer(life, result=CAN_RESUME)
    (call,) = life.waiting().values()
    work = str(life.work)
    assert (call["method"], call["params"]) == (
        "session/resume", {"cwd": work, "mcpServers": [], "sessionId": "earlier"},
    )  # fmt: skip
    await answer(life, error={"code": 3, "message": "Lost it"})
    assert life.notices == [f"{CANNOT_CONTINUE}: Lost it"]
    assert not life.context.journal.acp_session
    (call,) = life.waiting().values()
    assert (call["method"], call["params"]) == ("session/new", {"cwd": work, "mcpServers": []})
    await answer(life, result={"sessionId": "later"})
    assert [life.follower._opening.session, life.context.journal.acp_session] == ["later"] * 2
    assert life.follower._opening.checkpoint()["session"] == "later"


async def test_an_agent_that_cannot_continue_begins_a_new_session(tmp_path: Path) -> None:
    """And people see that it does."""
    life = starting(tmp_path, "earlier-2")
    await answer(life, result={"protocolVersion": 1})
    assert life.notices == [f"{CANNOT_CONTINUE}, so it begins a new one"]
    (call,) = life.waiting().values()
    assert call["method"] == "session/new"


async def test_a_continued_session_keeps_its_id(tmp_path: Path) -> None:
    """Another id in the agent's answer is ignored."""
    life = starting(tmp_path, "earlier-3")
    await answer(life, result=CAN_RESUME)
    await answer(life, result={"sessionId": "another"})
    assert (life.follower._opening.session, life.context.journal.acp_session) == ("earlier-3", "earlier-3")
    assert life.notices == []


@pytest.mark.parametrize("session", [None, 5, "", "x" * 1025])
async def test_a_session_needs_a_usable_id(tmp_path: Path, session: object) -> None:
    """One of at most 1,024 characters."""
    life = starting(tmp_path)
    await answer(life, result={"protocolVersion": 1})
    await answer(life, result=None if session is None else {"sessionId": session})
    assert life.follower._opening.failure == "The agent's answer to `session/new` has no usable `sessionId`."
    assert life.follower._opening.session is None


async def test_an_id_may_be_long(tmp_path: Path) -> None:
    """It has 1,024 characters at most."""
    life = starting(tmp_path)
    await answer(life, result={"protocolVersion": 1})
    await answer(life, result={"sessionId": "x" * 1024})
    assert (life.follower._opening.failure, life.follower._opening.session) == (None, "x" * 1024)


async def test_an_agent_that_wants_a_sign_in_says_how(tmp_path: Path) -> None:
    """It is said how to sign in, also instead of a continuation, which stays the task's session."""
    info = {"name": "Bob", "version": "1"}
    for number, session in enumerate((None, "earlier-4")):
        folder = tmp_path / str(number)
        folder.mkdir()
        life = starting(folder, session)
        await answer(life, result={**CAN_RESUME, "agentInfo": info})
        await answer(life, error={"code": -32000, "message": "Sign in!"})
        assert life.follower._opening.failure == f"Bob {WANTS}{ADVICE} Then resume the task."
        assert life.context.journal.acp_session == session
        assert life.take() == []


async def test_a_refused_new_session_ends_the_opening(tmp_path: Path) -> None:
    """There is nothing else to try."""
    life = starting(tmp_path)
    await answer(life, result={"protocolVersion": 1})
    await answer(life, error={"code": 4, "message": "No room"})
    assert life.follower._opening.failure == "The agent refused `session/new`: No room"
    assert life.take() == []
