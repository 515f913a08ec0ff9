from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from uuid import uuid4

import pytest

from taskherd.runner.agents import session
from taskherd.runner.agents.acp import cancelling, connection, files
from taskherd.runner.agents.acp.connection import Connection
from taskherd.runner.agents.acp.conversation import Conversation
from taskherd.runner.agents.acp.follower import AcpFollower
from taskherd.runner.journal import InputDelivery
from tests.harness.runner import TIMEOUT, eventually, is_alive
from tests.runner.acp import AcpRun, acp_run, hold_prompt

pytestmark = pytest.mark.timeout(120)


def _die(*_: object, **__: object) -> None:
    raise OSError("the runner is killed here")


def steps(*each: str) -> str:
    """Return a prompt that the tests' agent carries out."""
    return "\n".join(each)


async def test_a_turn_is_told_as_the_protocol_says(tmp_path: Path) -> None:
    """A prompt in flight is working, its response idle; messages, thoughts, plan and tool calls are entries."""
    prompt = steps(
        "think: hm", "say: I look ", "line: at it.", "plan: read;fix;test", "tool: 1 Run make", "wait: go",
        "done: 1 all green", "line: It works.",
    )  # fmt: skip
    async with acp_run(tmp_path) as run:
        await run.start(prompt)
        await run.until_state("working", "fix")
        run.touch("go")
        await run.until_state("idle", "It works.")
        assert [(each.get("kind"), each["type"]) for each in run.entries()] == [
            (None, "input"), ("thought", "output"), ("message", "output"), ("plan", "output"),
            ("tool_call", "output"), ("message", "output"),
        ]  # fmt: skip
        assert [each["content"].strip() for each in run.entries()] == [
            prompt, "hm", "I look at it.", "[x] read\n[>] fix\n[ ] test", "Run make\nall green", "It works.",
        ]  # fmt: skip
        call = run.entries()[4]
        assert (call["title"], call["status"], call["data"]) == ("Run make", "completed", {"kind": "execute"})
        assert all("the protocol" in report["guessed_from"] for report in run.reports("app.status"))


async def test_the_last_sentence_is_the_message_of_the_state(tmp_path: Path) -> None:
    """In a turn that of what is finished; the end of a message counts when something else comes, or the turn ends."""
    prompt = steps("say: I look at it. It is ", "say: wrong. I fix", "wait: go", "say:  app.py")
    async with acp_run(tmp_path) as run:
        await run.start(prompt)
        await run.until_state("working", "It is wrong.")
        run.touch("go")
        await run.until_state("idle")
        assert [words for _, words in run.states()][-2:] == ["It is wrong.", "I fix app.py"]


async def test_what_the_agent_is_asked(tmp_path: Path) -> None:
    """The agent is initialized with what the template offers, and opens its session in the task's folder."""
    async with acp_run(tmp_path, client_files="read") as run:
        await run.start("line: hello")
        await run.until_state("idle", "hello")
        initialize, new, prompt = run.received()
        assert initialize["params"]["protocolVersion"] == 1
        fs = initialize["params"]["clientCapabilities"]["fs"]
        assert fs == {"readTextFile": True, "writeTextFile": False}
        assert new["params"] == {"cwd": str(run.task.work), "mcpServers": []}
        assert prompt["params"]["prompt"] == [{"type": "text", "text": "line: hello"}]
        assert run.journal.ready_reported


@pytest.mark.parametrize(
    ("trait", "words"),
    [
        ("auth", r"Fake Agent wants its user to sign in.*API key \(FAKE_KEY\).*env\.inherit"),
        ("version-2", "speaks version 2"),
        ("die", "it cannot start"),
        ("hang-initialize", "did not answer `initialize`"),
    ],
)
async def test_a_start_that_fails_says_what_to_do(tmp_path: Path, trait: str, words: str) -> None:
    """An agent that cannot open a session fails its start, with words for whoever wrote the template."""
    async with acp_run(tmp_path, trait, start_timeout=1.0) as run:
        await run.start("line: hello")
        assert run.session is not None
        assert re.search(words, await run.session.wait_started() or "")
        run.end()
        await run.until_ended()
        assert run.state[0] == "failed"


async def test_a_test_does_not_wait_for_an_agent_that_has_ended(tmp_path: Path) -> None:
    """It fails at once, with the agent's last words; the agent of the next build can be ended, too."""
    async with acp_run(tmp_path, "die") as run:
        await run.start("line: hello")
        with pytest.raises(pytest.fail.Exception, match="it cannot start"):
            await run.until_state("idle")
        run.argv.remove("die")
        await run.start("line: again")
        await run.until_state("idle", "again")
        run.end()
        assert (await run.until_ended()).reason == "stopped"


async def test_a_sign_in_that_is_wanted_at_a_prompt_says_what_to_do(tmp_path: Path) -> None:
    """An agent may open its session first; the whole advice is in the log, also after another runner took over."""
    async with acp_run(tmp_path, "auth-at-prompt") as run:
        await run.start("line: hello")
        await run.until_state("failed", "Fake Agent wants its user to sign in")
        await run.take_over()
        assert await run.send("line: again") is None
        await eventually(lambda: len(run.texts("notice")) == 2)
        for notice in run.texts("notice"):
            assert re.search(r"API key \(FAKE_KEY\).*env\.inherit.*pause and resume the task", notice)


@pytest.mark.parametrize(
    ("reason", "idle", "complete"),
    [
        ("end_turn", ("idle", "Hm."), ("complete", "Hm.")),
        ("refusal", ("idle", "refus"), ("failed", "refus")),
        ("max_tokens", ("idle", "max_tokens"), ("failed", "max_tokens")),
        ("max_turn_requests", ("idle", "max_turn_requests"), ("failed", "max_turn_requests")),
        ("cancelled", ("idle", "was not requested"), ("failed", "was not requested")),
        ("done", ("idle", "not known (done)"), ("failed", "not known (done)")),
        ("error", ("failed", "the model is away"), ("failed", "the model is away")),
    ],
)
async def test_how_a_turn_ends(tmp_path: Path, reason: str, idle: tuple[str, str], complete: tuple[str, str]) -> None:
    """A turn ends as its response says; only one that came to its end can complete the task."""
    for completes, (state, words) in ((False, idle), (True, complete)):
        async with acp_run(tmp_path, complete_after_turn=completes) as run:
            await run.start(steps("line: Hm.", f"stop: {reason}"))
            await run.until_state(state, words)


async def test_inputs_are_turns(tmp_path: Path) -> None:
    """Inputs wait for the turn before them, are delivered once, and stand in the log before what they cause."""
    async with acp_run(tmp_path) as run:
        await run.start("line: one")
        await run.until_state("idle", "one")
        assert await run.send("line: two") is None
        await run.until_state("idle", "two")
        assert await run.send("line: three") is None
        await run.until_state("idle", "three")
        shown = [each["content"].strip() for each in run.entries()]
        assert shown == ["line: one", "one", "line: two", "two", "line: three", "three"]


async def test_the_next_runner_takes_over_in_the_middle_of_a_turn(tmp_path: Path) -> None:
    """It continues at a line boundary, knows the prompt in flight, and tells nothing twice."""
    prompt = steps("line: before", "tool: 1 Run make", 'torn: {"jsonrpc": ', "wait: go", 'raw: "2.0"}', "done: 1 ok",
                   "line: after")  # fmt: skip
    async with acp_run(tmp_path) as run:
        await run.start(prompt)
        await run.until_state("working", "Run make")
        for _ in range(3):
            await run.take_over()
        run.touch("go")
        await run.until_state("idle", "after")
        assert run.received_methods() == ["initialize", "session/new", "session/prompt"]
        assert [text.strip() for text in run.texts()] == ["before", "after"]
        assert run.texts("tool_call") == ["Run make\nok"]
        seqs = [report["seq"] for report in run.reports("app.status")]
        assert seqs == sorted(set(seqs))
        assert await run.send("line: next") is None
        await run.until_state("idle", "next")


async def test_files_are_read_and_written_only_in_the_tasks_folder(tmp_path: Path) -> None:
    """What leads out of the folder is refused: other paths, links, pipes; so is what the template does not allow."""
    async with acp_run(tmp_path, client_files="write") as run:
        work = run.task.work
        (work / "a").write_text("one\ntwo\nthree\n")
        (work / "link").symlink_to("/etc")
        (tmp_path / "secret").write_text("secret")
        (work / "hard").hardlink_to(tmp_path / "secret")
        requests = [
            ("fs/read_text_file", {"path": f"{work}/a", "line": 2, "limit": 1}),
            ("fs/write_text_file", {"path": f"{work}/new/b", "content": "bee"}),
            ("fs/read_text_file", {"path": f"{work}/link/passwd"}),
            ("fs/read_text_file", {"path": f"{work}/../secret"}),
            ("fs/write_text_file", {"path": f"{work}/hard", "content": "overwritten"}),
            ("fs/read_text_file", {"path": "/etc/passwd"}),
            ("terminal/create", {"command": "ls"}),
        ]
        await run.start(
            steps(
                *(
                    f"request: {number} {method} {json.dumps(params)}"
                    for number, (method, params) in enumerate(requests)
                )
            )
        )
        await run.until_state("idle")
        answers = [
            each.get("error", {}).get("code") or each["result"] for each in run.received() if "method" not in each
        ]
        assert answers == [{"content": "two\n"}, {}, -32002, -32002, -32002, -32002, -32601]
        assert (work / "new/b").read_text() == "bee"
        assert (tmp_path / "secret").read_text() == "secret"


def test_a_file_with_another_name_elsewhere_is_read_only_if_it_is_the_agents(tmp_path: Path) -> None:
    """A runner that may read every file does not read one of another user for an agent that has linked it."""
    (tmp_path / "elsewhere").write_text("secret")
    work = tmp_path / "work"
    work.mkdir()
    linked = work / "linked"
    linked.hardlink_to(tmp_path / "elsewhere")
    owner = linked.stat().st_uid
    for uid in (None, owner):
        assert files.read_text(work, str(linked), None, None, uid) == "secret"
    with pytest.raises(files.NotAllowed, match="belongs to another user"):
        files.read_text(work, str(linked), None, None, owner + 1)
    (tmp_path / "elsewhere").unlink()
    assert files.read_text(work, str(linked), None, None, owner + 1) == "secret"


@pytest.mark.parametrize(("method", "answer"), [("read", {"content": "one"}), ("write", -32602)])
async def test_a_cancelled_turn_changes_no_file(tmp_path: Path, method: str, answer: object) -> None:
    """What the agent writes through the runner after an interrupt is refused; it can still read."""
    async with acp_run(tmp_path, client_files="write") as run:
        file = run.task.work / "a"
        file.write_text("one")
        params = json.dumps({"path": str(file), "content": "two"})
        await run.start(f"once-cancelled: request: 1 fs/{method}_text_file {params}")
        await eventually(lambda: "session/prompt" in run.received_methods())
        assert await run.follower.interrupt() == "stopped"
        assert file.read_text() == "one"
        (response,) = [each for each in run.received() if "method" not in each]
        assert (response.get("error", {}).get("code") or response["result"]) == answer


async def test_lines_that_are_no_messages_are_counted_and_logged_once(tmp_path: Path) -> None:
    """A banner, garbage and a line of 10 MB do no harm; a second response and a repeated request change nothing."""
    noise = ("garbage: 50", "flood: 10000000", "ask-only: 1 Change a", "ask-only: 1 Change b")
    prompt = steps(*noise, "wait: go", "line: done", "stop: twice")
    async with acp_run(tmp_path, "banner") as run:
        await run.start(prompt)
        await run.until_state("idle", "Change a")
        assert [request.title for request in run.open_requests()] == ["Change a"]
        run.touch("go")
        await run.until_state("idle", "done")
        (notice,) = run.texts("notice")
        assert "Welcome to the agent!" in notice
        assert await run.send("line: still here") is None
        await run.until_state("idle", "still here")


async def test_garbage_without_end_ends_the_agent(tmp_path: Path) -> None:
    """After 100 lines in a row that are no messages, the agent is ended and has failed."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("garbage: 100", "hang"))
        await run.until_ended()
        assert run.state[0] == "failed"
        assert "100 lines in a row" in run.state[1]


async def test_an_interrupt_ends_the_turn(tmp_path: Path) -> None:
    """The turn is cancelled, whatever the agent then claims; without a turn there is nothing to do."""
    for traits in ((), ("lie",)):
        async with acp_run(tmp_path, *traits) as run:
            await run.start(steps("tool: 1 Run make", "hang"))
            await run.until_state("working", "Run make")
            assert await run.follower.interrupt() == "stopped"
            await run.until_state("idle", "interrupted")
            assert await run.follower.interrupt() == "ended"
            assert await run.send("line: go on") is None
            await run.until_state("idle", "go on")


async def test_an_interrupt_ends_a_prompt_that_is_just_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until that turn is in flight: otherwise the turn would begin after the interrupt, and go on."""
    is_recorded = hold_prompt(monkeypatch)
    async with acp_run(tmp_path) as run:
        await run.start("hang")
        await eventually(lambda: InputDelivery.DELIVERING in run.journal.inputs.values())
        assert run.state[0] == "working"
        assert run.follower.is_at_work
        interrupt = asyncio.create_task(run.follower.interrupt())
        await asyncio.wait({interrupt}, timeout=0.2)
        is_recorded.set()
        assert await interrupt == "stopped"
        await run.until_state("idle", "interrupted")
        await eventually(lambda: not run.follower.is_at_work)  # once what gives the prompt knows that its turn is over


async def test_an_input_that_is_recorded_while_the_agent_ends_begins_no_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not delivered, and the state after the agent's end stands."""
    monkeypatch.setattr(session, "SETTLE_TIMEOUT", TIMEOUT)
    async with acp_run(tmp_path) as run:
        await run.start("line: one")
        await run.until_state("idle", "one")
        await eventually(lambda: run.journal.was_given("line: one"))
        is_recorded = hold_prompt(monkeypatch)
        sending = asyncio.create_task(run.send("line: two"))
        await eventually(lambda: InputDelivery.DELIVERING in run.journal.inputs.values())
        os.kill(json.loads(run.task.run(1).started.read_text())["agent"], signal.SIGKILL)
        await run.until_ended()
        is_recorded.set()
        assert await sending == "The agent is not running."
        assert run.state[0] == "failed"
        assert run.outbox.checkpoint["turn"] is None


async def test_an_input_that_waits_is_given_by_the_follower_that_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in which it waits for the end of the turn fails, and does not see that any more."""
    async with acp_run(tmp_path) as run:
        await run.start("wait: go\nline: one")
        await run.until_state("working")
        await eventually(lambda: run.journal.was_given("wait: go\nline: one"))
        sending, failed = asyncio.create_task(run.send("line: two")), run.follower
        await eventually(failed._delivery.locked)
        monkeypatch.setattr(failed._reading, "read", lambda: 1 / 0)
        await eventually(lambda: run.follower is not failed)
        run.touch("go")
        assert await asyncio.wait_for(sending, TIMEOUT) is None
        await run.until_state("idle", "two")
        assert [text.strip() for text in run.texts()] == ["one", "two"]


@pytest.mark.parametrize("traits", [(), ("ignore-sigint",), ("ignore-sigint", "ignore-sigterm")])
async def test_an_interrupt_always_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traits: tuple[str, ...]
) -> None:
    """An agent that ignores it gets SIGINT, SIGTERM and SIGKILL; it was interrupted, and has not failed."""
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", 0.5)
    monkeypatch.setattr(cancelling, "INTERRUPT_TIMEOUT", 0.5)
    async with acp_run(tmp_path, "ignore-cancel", *traits) as run:
        await run.start("hang")
        await run.until_state("working")
        agent = json.loads(run.task.run(1).started.read_text())["agent"]
        assert await run.follower.interrupt() == "stopped"
        await run.until_ended()
        assert not is_alive(agent)
        assert run.reports("agent.exit")[-1]["why"] == "interrupted"
        await run.until_state("idle", "Resume the task")


async def test_an_input_that_waits_is_not_counted_as_given_to_an_agent_that_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner records nothing of it, so that the worker keeps it for the next agent."""
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", 0.5)
    monkeypatch.setattr(cancelling, "INTERRUPT_TIMEOUT", 0.5)
    async with acp_run(tmp_path, "ignore-cancel", "ignore-sigint", "ignore-sigterm") as run:
        await run.start("hang")
        await run.until_state("working")
        await eventually(lambda: run.journal.was_given("hang"))
        waits = asyncio.create_task(run.send("line: two"))
        assert await run.follower.interrupt() == "stopped"
        await run.until_ended()
        assert await waits is not None
        assert [*run.journal.inputs] == [run.journal.prompt_id]


async def test_a_turn_has_a_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that exceeds it is cancelled, and an agent that ignores this is ended and has failed."""
    monkeypatch.setattr(cancelling, "CANCEL_TIMEOUT", 0.5)
    monkeypatch.setattr(cancelling, "INTERRUPT_TIMEOUT", 0.5)
    async with acp_run(tmp_path, turn_timeout="1s") as run:
        await run.start("hang")
        await run.until_state("idle", "interrupted")
        assert any("time limit" in text for text in run.texts("notice"))
    async with acp_run(tmp_path, "ignore-cancel", turn_timeout="1s") as run:
        await run.start("hang")
        await run.until_ended()
        assert run.state[0] == "failed"


@pytest.mark.parametrize(
    ("last", "words"),
    [("exit: 3", "exit status 3"), ("exit: 0", "in the middle of its turn")],
)
async def test_an_agent_that_ends_in_its_turn_has_failed(tmp_path: Path, last: str, words: str) -> None:
    """Whatever its exit status, a turn that it did not end has failed; its last words come from its stderr."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("stderr: out of luck", "line: hm", last, "hang"))
        await run.until_ended()
        assert run.state[0] == "failed"
        assert words in run.state[1]
        assert "out of luck" in run.reports("agent.exit")[-1]["words"]


async def test_an_agent_that_does_not_read_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did not take from its stdin in time was not delivered for certain, and it has failed."""
    monkeypatch.setattr(connection, "WRITE_TIMEOUT", 5.0)
    async with acp_run(tmp_path, "deaf") as run:
        await run.start("line: " + "x" * 200_000)
        await run.until_ended()
        assert run.state[0] == "failed"
        assert "did not read from its stdin" in run.state[1]
        assert any("may have received a part" in text for text in run.texts("notice")), run.texts("notice")


async def test_a_prompt_that_was_recorded_and_not_submitted_was_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the runner dies between the two, no turn is in flight; the next input is given."""
    async with acp_run(tmp_path) as run:
        await run.start("line: one")
        await run.until_state("idle", "one")
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "submit", lambda _: None)
            lost = asyncio.create_task(run.send("line: lost"))
            await run.until_state("working")
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)
        await run.take_over()
        await run.until_state("idle")
        assert await run.send("line: two") is None
        await run.until_state("idle", "two")
        assert not any("lost" in json.dumps(message) for message in run.received())


async def test_a_follower_that_failed_begins_again_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an unexpected error the same runner follows on from the last record, and tells nothing twice."""
    apply, failures = Conversation.apply, iter([OSError(28, "No space left on device")])

    def fail_once(conversation: Conversation, update: object) -> None:
        if "three" in str(update) and (error := next(failures, None)):
            raise error
        apply(conversation, update)

    monkeypatch.setattr(Conversation, "apply", fail_once)
    async with acp_run(tmp_path) as run:
        await run.start(steps("say: one ", "wait: go", "say: two ", "say: three ", "line: done"))
        await eventually(lambda: run.texts() == ["one "])
        run.touch("go")
        await run.until_state("idle", "done")
        assert next(failures, None) is None
        assert run.texts() == ["one two three done\n"]


async def test_an_agent_that_closes_its_stdin_is_ended(tmp_path: Path) -> None:
    """An input for it is not delivered, and it has failed: nobody can speak to it any more."""
    async with acp_run(tmp_path) as run:
        await run.start(steps("close-stdin: 0", "line: deaf"))
        await run.until_state("idle", "deaf")
        assert await run.send("line: one") in {"The agent is not running.", None}  # its last read may still get it
        while not run.exits:
            await run.send("line: two")
        assert run.state[0] == "failed"
        assert "The agent has closed its stdin." in run.state[1]


@pytest.mark.parametrize(
    ("trait", "method"), [("resume", "session/resume"), ("load", "session/load"), ("", "session/new")]
)
async def test_a_new_build_continues_the_session(tmp_path: Path, trait: str, method: str) -> None:
    """It is continued where the agent can, and its replay is not told again; else the log says that it begins anew."""
    async with acp_run(tmp_path, *filter(None, [trait])) as run:
        await run.start("line: one")
        await run.until_state("idle", "one")
        session = run.journal.acp_session
        assert run.session is not None
        await run.session.stop()
        await run.start("line: one")
        await eventually(lambda: run.journal.ready_reported)
        assert run.received_methods()[3:] == ["initialize", method]
        assert await run.send("line: two") is None
        await run.until_state("idle", "two")
        assert (run.journal.acp_session == session) == (method != "session/new")
        assert not any("replayed" in each["content"] for each in run.entries())
        assert any("begins a new one" in text for text in run.texts("notice")) == (method == "session/new")


@pytest.mark.parametrize("number", [1, 2])
async def test_a_session_is_continued_though_its_runner_died_as_it_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The checkpoint has the session before the journal does; the next runner puts it there, for the next build."""
    save = AcpRun._save

    async def save_unless_ready(run: AcpRun) -> None:
        if run.build == number and run.journal.ready_reported:
            await asyncio.Event().wait()
        await save(run)

    async with acp_run(tmp_path, "load", "forgetful") as run:  # so each build begins a session
        if number == 2:
            await run.start("line: one")
            await run.until_state("idle", "one")
            assert run.session is not None
            await run.session.stop()
        before = run.journal.acp_session
        with monkeypatch.context() as patch:
            patch.setattr(AcpRun, "_save", save_unless_ready)
            await run.start("line: here")
            await eventually(lambda: run.outbox.checkpoint.get("session") not in {None, before})
        await run.take_over()
        await run.until_state("idle", "here")
        session = run.outbox.checkpoint["session"]
        assert run.session is not None
        await run.session.stop()
        await run.start("line: again")
        await run.until_state("idle", "again")
        (*_, loads) = [each for each in run.received() if each.get("method") == "session/load"]
        assert loads["params"]["sessionId"] == session


async def test_a_session_that_the_agent_forgot_begins_anew(tmp_path: Path) -> None:
    """If the agent refuses to continue, a new session is opened, and the log says why."""
    async with acp_run(tmp_path, "load", "forgetful") as run:
        await run.start("line: one")
        await run.until_state("idle", "one")
        assert run.session is not None
        await run.session.stop()
        await run.start("line: again")
        await run.until_state("idle", "again")
        assert run.received_methods()[3:] == ["initialize", "session/load", "session/new", "session/prompt"]
        assert any("cannot continue" in text for text in run.texts("notice"))


async def test_a_diff_is_cut_visibly(tmp_path: Path) -> None:
    """The data of a tool call stay below their limit, and say how much of a diff is missing."""
    async with acp_run(tmp_path) as run:
        await run.start("edit: 1 50000")
        await run.until_state("idle")
        data = run.entries()[1]["data"]
        assert data["locations"] == [{"path": "/a", "line": 3}]
        assert data["diff"]["path"] == "/a"
        assert data["diff"]["old"].endswith(" more characters)")
        assert len(json.dumps(data, ensure_ascii=False)) <= 16_500


async def test_an_agent_that_ends_at_once_was_given_its_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shim's acknowledgement counts, also if it is seen only after the end."""
    acknowledged = Connection.acknowledged
    async with acp_run(tmp_path) as run:
        monkeypatch.setattr(Connection, "acknowledged", lambda self: acknowledged(self) if run.exits_now() else {})
        await run.start("exit: 0")
        await run.until_ended()
        assert run.journal.was_given("exit: 0")
        assert [delivery.value for delivery in run.journal.inputs.values()] == ["delivered"]


async def test_a_prompt_whose_delivery_was_interrupted_is_reported_as_no_input(tmp_path: Path) -> None:
    """The worker knows no input with its id; the inputs that it knows are reported as failed."""
    async with acp_run(tmp_path) as run:
        await run.start("line: one")
        await run.until_state("idle", "one")
        await eventually(lambda: run.journal.was_given("line: one"))
        (prompt_id,), input_id = run.journal.inputs, uuid4()
        for each in (prompt_id, input_id):
            run.journal.record_input(each, InputDelivery.DELIVERING)
        assert run.inputs().fail_interrupted()
        assert [report["input_id"] for report in run.reports("task.input")] == [str(input_id)]


@pytest.mark.parametrize("instant", ["runner.agents.acp.connection.Connection.submit", "runner.outbox.Outbox.append"])
async def test_a_prompt_that_was_never_given_is_given_by_the_next_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str
) -> None:
    """Its runner dies before the prompt is recorded, or before it is submitted: nothing else would ever give it."""
    async with acp_run(tmp_path) as run:
        with monkeypatch.context() as patch:
            send, died = AcpFollower._send_prompt, asyncio.Event()

            def die(*_: object, **__: object) -> None:
                died.set()
                _die()

            def send_and_die(follower: AcpFollower, text: str) -> int:
                patch.setattr(f"taskherd.{instant}", die)
                return send(follower, text)

            patch.setattr(AcpFollower, "_send_prompt", send_and_die)
            await run.start("line: one")
            async with asyncio.timeout(TIMEOUT):
                await died.wait()
            assert InputDelivery.DELIVERING in run.journal.inputs.values()
        await run.take_over()
        await run.until_state("idle", "one")
        assert run.received_methods().count("session/prompt") == 1
        assert [each["content"].strip() for each in run.entries()] == ["line: one", "one"]
        await eventually(lambda: run.journal.was_given("line: one"))


async def test_a_prompt_counts_as_given_if_only_its_line_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent ends between the acknowledgement of the line and the record that its prompt was given."""

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(AcpFollower, "_wait_written", never)
    prompt = steps("wait: go", "exit: 0")
    async with acp_run(tmp_path) as run:
        await run.start(prompt)
        await eventually(lambda: "session/prompt" in run.received_methods() and not run.follower._connection.lines)
        run.touch("go")
        await run.until_ended()
        assert run.journal.was_given(prompt)


async def test_an_agent_that_has_answered_its_prompt_was_given_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its response says so before the shim's acknowledgement is seen, so that the next build does not give it again."""
    monkeypatch.setattr(Connection, "acknowledged", lambda _: {})
    async with acp_run(tmp_path) as run:
        await run.start("line: one")
        await run.until_state("idle", "one")
        await eventually(lambda: run.journal.was_given("line: one"), 5)
        assert await run.send("line: two") is None
        await run.until_state("idle", "two")
