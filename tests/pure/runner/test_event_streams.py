"""What the events of Claude Code and Codex lead to, without a process: entries, calls, usage, and their bounds."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskherd.domain.reports import AgentState, Cost, LogEntry, Transition
from taskherd.messages.limits import MAX_TOKENS
from taskherd.runner.agents.event_stream import stream as event_stream
from taskherd.runner.agents.event_stream.claude import MAX_BLOCKS, ClaudeStream
from taskherd.runner.agents.event_stream.codex import CodexStream
from taskherd.runner.agents.event_stream.stream import STARTED, AgentEventStream
from taskherd.runner.agents.usage_numbers import as_cost, is_count
from taskherd.runner.agents.words import MAX_WORDS, last_sentence
from taskherd.runner.journal import Journal
from taskherd.runner.outbox import Budget, Outbox
from taskherd.runner.reporter import Reporter, SequenceGenerator
from tests.pure.messages.samples import NOW


@pytest.fixture
def reporter(tmp_path: Path) -> Reporter:
    """Return a reporter whose reports nobody sends."""
    journal = Journal(task_id=UUID(int=5), task_name="a")
    outbox = Outbox(tmp_path / "outbox.jsonl", Budget(10**9), lambda _: None)
    sequence = SequenceGenerator(journal, lambda: NOW, lambda: None)
    start = Transition.START
    return Reporter(journal, 1, transition=start, runner="r", outbox=outbox, sequence=sequence, now=lambda: NOW)


def claude(*events: dict[str, Any], checkpoint: dict[str, Any] | None = None) -> ClaudeStream:
    """Return Claude's stream after these events."""
    stream = ClaudeStream(checkpoint or {}, {})
    for event in events:
        stream.apply(event)
    return stream


def codex(*events: dict[str, Any], checkpoint: dict[str, Any] | None = None) -> CodexStream:
    """Return Codex's stream after these events."""
    stream = CodexStream(checkpoint or {}, {})
    for event in events:
        stream.apply(event)
    return stream


def assistant(*blocks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return a message of Claude's model."""
    return {"type": "assistant", "message": {"content": [*blocks], **more.pop("message", {})}, **more}


def call(number: int, name: str = "Bash", **given: Any) -> dict[str, Any]:
    """Return the block of a tool call."""
    return {"type": "tool_use", "id": f"call-{number}", "name": name, "input": given}


def result(number: int, content: object = "done", **more: Any) -> dict[str, Any]:
    """Return the result of a tool call."""
    block = {"type": "tool_result", "tool_use_id": f"call-{number}", "content": content, **more}
    return {"type": "user", "message": {"content": [block]}}


def item(moment: str = "completed", identifier: str = "i", **fields: Any) -> dict[str, Any]:
    """Return Codex's event of an item."""
    return {"type": f"item.{moment}", "item": {"id": identifier, **fields}}


def shown(stream: AgentEventStream, reporter: Reporter) -> list[tuple[int, str | None, str | None, str]]:
    """Return id, kind, status and content of the entries that have changed."""
    return [(entry.id, entry.kind, entry.status, entry.content) for entry in stream.take_entries(reporter)]


def test_a_call_is_shown_when_it_begins_and_replaced_when_it_ends(reporter: Reporter) -> None:
    """The entry keeps its id; what has not changed is not told again."""
    stream = claude(assistant(call(1, command="make\n  test"), call(2, "Task")))
    assert shown(stream, reporter) == [
        (0, "tool_call", "in_progress", "Bash: make test"),
        (1, "tool_call", "in_progress", "Task"),
    ]
    assert shown(stream, reporter) == []
    stream.apply(result(1, [{"type": "text", "text": "ok"}, "no block", {"type": "image"}]))
    stream.apply(result(2, None, is_error=True))
    assert shown(stream, reporter) == [
        (0, "tool_call", "completed", "Bash: make test\nok\n"),
        (1, "tool_call", "failed", "Task (failed)"),
    ]
    stream.apply(result(1))
    stream.apply(result(3))
    assert shown(stream, reporter) == [], "a call that is not known, or any more, is left out"


@pytest.mark.parametrize(
    ("name", "given", "title", "kind"),
    [
        ("Bash", {"description": "Run it", "command": "make"}, "Bash: make", "execute"),
        ("Read", {"file_path": "/a"}, "Read: /a", "read"),
        ("NotebookEdit", {"notebook_path": "/n", "file_path": ""}, "NotebookEdit: /n", "edit"),
        ("Grep", {"pattern": "x", "path": "/a"}, "Grep: x", "search"),
        ("WebFetch", {"url": "u", "query": "q"}, "WebFetch: u", "fetch"),
        ("WebSearch", {"query": "q"}, "WebSearch: q", "fetch"),
        ("Write", {"file_path": "/w"}, "Write: /w", "edit"),
        ("Task", {"description": "Look"}, "Task: Look", "other"),
        ("Other", {"nothing": 1}, "Other", "other"),
    ],
)
def test_a_call_is_named_after_what_it_is_about(
    reporter: Reporter, name: str, given: dict[str, Any], title: str, kind: str
) -> None:
    """The most telling input of the tool; its kind is one of ACP's."""
    (entry,) = claude(assistant(call(1, name, **given))).take_entries(reporter)
    assert (entry.title, json.loads(entry.data or "")) == (title, {"kind": kind})


def test_of_a_message_with_very_many_blocks_the_first_are_shown(reporter: Reporter) -> None:
    """Each is an entry, and a line of 4 MiB has room for 100,000; of more the runner would be full."""
    blocks = [{"type": "text", "text": f"{number}"} for number in range(MAX_BLOCKS + 1)]
    texts = [text for *_, text in shown(claude(assistant(*blocks)), reporter)]
    assert texts == [f"{number}" for number in range(MAX_BLOCKS)]


@pytest.mark.parametrize(("count", "size"), [(127, 16 * 1024), (MAX_BLOCKS, 2_000)])
def test_words_are_looked_for_once_for_an_event(monkeypatch: pytest.MonkeyPatch, count: int, size: int) -> None:
    """In its last 2,000 characters: a line of 4 MiB has room for two million lines without words."""
    sizes = list[int]()

    def counted(text: str, default: str = "") -> str:
        sizes.append(len(text))
        return last_sentence(text, default)

    monkeypatch.setattr(event_stream, "last_sentence", counted)
    claude(assistant(*[{"type": "text", "text": "\n" * size}] * count))
    claude({"type": "result", "subtype": "success", "result": "\n" * size * count})
    codex(item(type="agent_message", text="\n" * size * count))
    assert sizes == [MAX_WORDS] * 3


def test_the_words_of_a_message_are_those_of_its_last_block_with_words() -> None:
    """However much without words follows within 2,000 characters; beyond that the words before it stay."""
    stream = claude(assistant({"type": "text", "text": "First."}, {"type": "text", "text": "I fix it"}, call(1)))
    assert stream.last_words == "I fix it"
    stream.apply(assistant({"type": "text", "text": "All **tests** pass."}, {"type": "text", "text": "-" * 1_900}))
    assert stream.last_words == "All **tests** pass."
    stream.apply(assistant({"type": "text", "text": "Never told."}, {"type": "text", "text": "-" * MAX_WORDS}))
    assert stream.last_words == "All **tests** pass."
    stream.apply(assistant(call(2)))
    assert stream.last_words == "All **tests** pass."


def test_the_latest_64_open_calls_are_remembered(reporter: Reporter) -> None:
    """The end of an older one is not shown any more; that of the oldest remembered one is."""
    stream = claude(assistant(*(call(number) for number in range(65))))
    stream.take_entries(reporter)
    stream.apply(result(0))
    assert shown(stream, reporter) == []
    stream.apply(result(1))
    assert [entry[0] for entry in shown(stream, reporter)] == [1]
    full = claude(assistant(*(call(number) for number in range(64))), result(0))
    assert shown(full, reporter)[0][:3] == (0, "tool_call", "completed")


def test_texts_of_an_agent_are_cut(reporter: Reporter) -> None:
    """Messages, thoughts and notices at 16 Ki characters, results of tools at 4 Ki, titles at 200."""
    stream = claude(
        assistant(
            {"type": "text", "text": "m" * (16 * 1024 + 1)},
            {"type": "thinking", "thinking": "t" * (16 * 1024 + 1)},
            call(1, command="c" * 300),
            {"type": "image"},
        ),
        result(1, "r" * (4 * 1024 + 1)),
    )
    contents = [(entry[1], len(entry[3])) for entry in shown(stream, reporter)]
    assert contents == [("message", 16 * 1024), ("thought", 16 * 1024), ("tool_call", 200 + 1 + 4 * 1024)]
    noticed = codex({"type": "error", "message": "e" * (16 * 1024)})
    assert [(entry[1], len(entry[3])) for entry in shown(noticed, reporter)] == [("notice", 16 * 1024)]
    assert noticed.last_words == "e" * 200


@pytest.mark.parametrize("make", [claude, codex])
def test_a_session_has_a_short_id(make: Any) -> None:
    """Up to 200 characters; what is none is left out, and the one before it kept."""

    def begun(session: object) -> dict[str, Any]:
        return {
            claude: {"type": "system", "subtype": "init", "session_id": session},
            codex: {"type": "thread.started", "thread_id": session},
        }[make]

    assert make(begun("s" * 200)).session == "s" * 200
    for wrong in ("s" * 201, "", 7, None):
        assert make(begun("first"), begun(wrong)).session == "first"


def test_a_turn_begins_and_ends(reporter: Reporter) -> None:
    """What is open is closed at its end, and a failure is said to people."""
    begin = {"type": "system", "subtype": "init", "session_id": "s"}
    stream = claude({"type": "system", "subtype": "other"}, {"type": "unknown"})
    assert (stream.in_turn, stream.state, stream.activity) == (False, "", STARTED)
    stream.apply(begin)
    assert (stream.in_turn, stream.state, stream.activity) == (True, AgentState.WORKING, STARTED)
    stream.apply(assistant({"type": "text", "text": "I look.\n\n```\n"}, call(1, command="a"), call(2, command="b")))
    assert stream.activity == "Bash: b"
    stream.apply(result(2))
    assert stream.activity == "Bash: a"
    stream.take_entries(reporter)
    stream.apply({"type": "result", "subtype": "success", "result": "All done.\n"})
    assert shown(stream, reporter) == [(1, "tool_call", None, "Bash: a")]
    assert (stream.in_turn, stream.state, stream.activity) == (False, AgentState.IDLE, "All done.")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"subtype": "error_max_turns"}, "error_max_turns"),
        ({"subtype": "success", "is_error": True, "result": "No credit"}, "No credit"),
        ({"subtype": "success", "is_error": True, "result": ""}, "success"),
        ({"subtype": "error", "result": 7}, "error"),
    ],
)
def test_a_turn_of_claude_fails(reporter: Reporter, fields: dict[str, Any], why: str) -> None:
    """The log and the last words say why."""
    stream = claude({"type": "result", **fields})
    text = f"The agent could not carry out its turn: {why}"
    assert (stream.state, stream.last_words) == (AgentState.FAILED, text)
    assert shown(stream, reporter) == [(0, "notice", None, f"taskherd: {text}")]


def test_the_next_runner_goes_on_from_the_checkpoint(reporter: Reporter) -> None:
    """Ids of entries, open calls, the session, the state and the last words are kept, as JSON."""
    first = claude(
        {"type": "system", "subtype": "init", "session_id": "s"},
        assistant({"type": "text", "text": "Now."}, call(1, command="a"), message={"usage": {"input_tokens": 3}}),
    )
    again = claude(checkpoint=json.loads(json.dumps(first.checkpoint())))
    assert again.checkpoint() == first.checkpoint()
    assert (again.session, again.in_turn, again.state, again.last_words) == ("s", True, "working", "Now.")
    again.apply(result(1))
    again.begin_turn("More")
    assert shown(again, reporter) == [(1, "tool_call", "completed", "Bash: a\ndone"), (2, None, None, "More")]
    assert (again.last_words, again.activity) == ("", STARTED)


def test_the_context_is_that_of_the_main_agent(reporter: Reporter) -> None:
    """Messages of subagents do not count; the numbers of the latest message are added."""
    usage = {
        "input_tokens": 1,
        "cache_read_input_tokens": 20,
        "cache_creation_input_tokens": 300,
        "output_tokens": 4000,
    }
    stream = claude(
        assistant(message={"usage": {**usage, "service_tier": 5}}),
        assistant(message={"usage": {"input_tokens": 7}}, parent_tool_use_id="call-1"),
        assistant(message={"usage": "none"}),
        {"type": "result", "subtype": "success"},
    )
    (report,) = stream.take_usage(reporter)
    assert (getattr(report, "context_used"), getattr(report, "context_size")) == (4321, None)  # noqa: B009 - of a report
    assert stream.take_usage(reporter) == []


def test_the_usage_of_each_model_is_told(reporter: Reporter) -> None:
    """Up to 15 models, and one report without a model for the context; then the cost is not told a second time."""
    models = {
        f"m{number}\u202e": {
            "inputTokens": number, "outputTokens": -1, "cacheReadInputTokens": True,
            "cacheCreationInputTokens": 8, "costUSD": 0.25, "contextWindow": 1000 + number,
        }
        for number in range(17)
    }  # fmt: skip
    stream = claude({"type": "result", "subtype": "success", "modelUsage": models, "total_cost_usd": 9})
    told: list[Any] = [*stream.take_usage(reporter)]
    assert [report.model for report in told] == [*(f"m{number}" for number in range(15)), None]
    assert (told[3].input_tokens, told[3].output_tokens, told[3].cache_read_tokens) == (3, None, None)
    assert (told[3].cache_write_tokens, told[3].cost) == (8, Cost(Decimal("0.25"), "USD"))
    assert (told[-1].context_size, told[-1].cost) == (1014, None)
    nothing = claude({"type": "result", "subtype": "success", "modelUsage": [], "total_cost_usd": None})
    assert nothing.take_usage(reporter) == []


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0, True), (MAX_TOKENS, True), (MAX_TOKENS + 1, False), (-1, False), (True, False), (1.0, False), ("1", False)],
)
def test_which_numbers_of_tokens_count(value: object, counts: bool) -> None:  # noqa: FBT001 - a case
    """Those that a report can hold."""
    assert is_count(value) is counts


@pytest.mark.parametrize(
    ("amount", "currency", "cost"),
    [
        (0, "USD", "0.000000000"),
        (0.0000000015, "EUR", "0.000000002"),
        (999_999_999_999, "USD", "999999999999.000000000"),
        (10**12, "USD", None),
        (-0.01, "USD", None),
        (True, "USD", None),
        ("1", "USD", None),
        (1, "XXY", None),
        (1, None, None),
    ],
)
def test_which_costs_count(amount: object, currency: object, cost: str | None) -> None:
    """Those that a report can hold, with nine digits."""
    assert as_cost(amount, currency) == (None if cost is None else Cost(Decimal(cost), str(currency)))


@pytest.mark.parametrize(
    ("fields", "title", "kind"),
    [
        ({"type": "command_execution", "command": "bash -lc 'make  test'"}, "make test", "execute"),
        ({"type": "command_execution", "command": "bash -x 'make'"}, "bash -x 'make'", "execute"),
        ({"type": "command_execution", "command": "sh -c 'a' b"}, "sh -c 'a' b", "execute"),
        ({"type": "file_change", "changes": [{"path": "a", "kind": "add"}]}, "Write: a", "edit"),
        (
            {"type": "file_change", "changes": [{"path": "a", "kind": "add"}, {"path": "b", "kind": "delete"}]},
            "Edit: a, b",
            "edit",
        ),
        ({"type": "file_change", "changes": [{"path": "a", "kind": "delete"}]}, "Delete: a", "delete"),
        ({"type": "web_search"}, "Search: ", "fetch"),
        ({"type": "collab_tool_call", "tool": "wait"}, "wait", "other"),
    ],
)
def test_what_codex_does_has_a_title(reporter: Reporter, fields: dict[str, Any], title: str, kind: str) -> None:
    """A command is shown without the shell around it, changes by what they do to the files."""
    (entry,) = codex(item("started", **fields)).take_entries(reporter)
    assert (entry.title, json.loads(entry.data or "")["kind"]) == (title.strip(), kind)


def test_codex_counts_from_where_its_session_stood(reporter: Reporter) -> None:
    """Input does not include what came from caches; a session that begins anew counts in full."""

    def told(**usage: int) -> dict[str, Any]:
        return {"type": "turn.completed", "usage": usage}

    stream = codex(
        {"type": "thread.started", "thread_id": "s"},
        told(input_tokens=100, cached_input_tokens=30, cache_write_input_tokens=20, output_tokens=7),
        told(input_tokens=150, cached_input_tokens=40, cache_write_input_tokens=20, output_tokens=9),
    )
    (report,) = stream.take_usage(reporter)
    assert {name: getattr(report, name) for name in COUNTERS} == dict(zip(COUNTERS, (90, 9, 40, 20), strict=True))
    again = CodexStream({}, json.loads(json.dumps(stream.checkpoint())))
    again.apply({"type": "thread.started", "thread_id": "s"})
    again.apply(told(input_tokens=160, cached_input_tokens=40, cache_write_input_tokens=20, output_tokens=9))
    (risen,) = again.take_usage(reporter)
    assert {name: getattr(risen, name) for name in COUNTERS} == dict(zip(COUNTERS, (10, 0, 0, 0), strict=True))


def test_a_turn_of_codex_begins_and_ends(reporter: Reporter) -> None:
    """A failure is told in words, which may be in JSON; the same error is told once in a turn."""
    stream = codex({"type": "error", "message": "No network"})
    assert (stream.in_turn, stream.state) == (False, "")
    stream.apply({"type": "turn.started"})
    assert (stream.in_turn, stream.state) == (True, AgentState.WORKING)
    for message in ("No network", "No network", "Busy", '{"error": {"message": "No credit"}}', '{"error": "x"}'):
        stream.apply({"type": "error", "message": message})
    notices = [text.removeprefix("taskherd: the agent says: ") for *_, text in shown(stream, reporter)]
    assert notices == ["No network", "No network", "Busy", "No credit", '{"error": "x"}']
    assert stream.last_words == '{"error": "x"}'
    stream.apply({"type": "turn.completed", "usage": {}})
    assert (stream.in_turn, stream.state) == (False, AgentState.IDLE)
    stream.apply({"type": "turn.completed", "usage": {"input_tokens": 5}})
    (report,) = stream.take_usage(reporter)
    assert [getattr(report, name) for name in COUNTERS] == [5, None, 0, 0]
    stream.apply({"type": "turn.failed", "error": {"message": '{"error": {"message": 7}}'}})
    assert (stream.in_turn, stream.state) == (False, AgentState.FAILED)
    assert stream.last_words == "The agent could not carry out its turn: 7"


def test_calls_of_codex_have_results(reporter: Reporter) -> None:
    """The output of a command, the texts of a tool, or its error; one that was declined has failed, too."""
    command = {"type": "command_execution", "command": "make"}
    tool = {"type": "mcp_tool_call", "server": "herd", "tool": "look"}
    texts = {"content": [{"type": "text", "text": "one"}, 5, {"type": "image"}, {"text": "two"}]}
    items: list[tuple[dict[str, Any], str]] = [
        ({**command, "aggregated_output": "built\n\n", "status": "completed"}, "make\nbuilt"),
        ({**command, "aggregated_output": None, "status": "failed"}, "make (failed)"),
        ({**command, "status": "declined"}, "make (failed)"),
        ({**tool, "result": texts}, "herd: look\none\n\ntwo"),
        ({**tool, "result": {"content": None}}, "herd: look"),
        ({**tool, "result": None, "error": {"message": "gone"}, "status": "failed"}, "herd: look (failed)\ngone"),
        ({**tool, "result": texts, "error": "gone"}, "herd: look\none\n\ntwo"),
        ({"type": "web_search", "query": "q"}, "Search: q"),
        ({"type": "collab_tool_call", "tool": "spawn", "prompt": "Look\nhere"}, "spawn Look here"),
    ]
    stream = codex(*(item(identifier=f"i{number}", **fields) for number, (fields, _) in enumerate(items)))
    entries = shown(stream, reporter)
    assert [(number, text) for number, _, _, text in entries] == [(n, text) for n, (_, text) in enumerate(items)]
    statuses = [status for _, _, status, _ in entries]
    assert statuses == ["failed" if number in {1, 2, 5} else "completed" for number in range(len(items))]


def test_a_plan_of_codex_is_one_entry(reporter: Reporter) -> None:
    """Each update replaces it, also by the next runner; another plan is another entry. Long ones are cut."""
    steps = [{"text": "Look", "completed": True}, {"text": "Change", "completed": False}]
    stream = codex(item("started", "p", type="todo_list", items=steps[:1]), item("updated", "i", type="reasoning"))
    (entry,) = stream.take_entries(reporter)
    assert (entry.id, entry.kind, entry.content) == (0, "plan", "[x] Look")
    planned = {"content": "Look", "status": "completed", "priority": "medium"}
    assert json.loads(entry.data or "") == {"entries": [planned]}
    again = codex(
        item("updated", "p", type="todo_list", items=steps), checkpoint=json.loads(json.dumps(stream.checkpoint()))
    )
    (entry,) = again.take_entries(reporter)
    assert (entry.id, entry.content) == (0, "[x] Look\n[ ] Change")
    further = {"content": "Change", "status": "pending", "priority": "medium"}
    assert json.loads(entry.data or "") == {"entries": [planned, further]}
    long = [{"text": "y" * 101, "completed": False}] * 31
    again.apply(item(identifier="other", type="todo_list", items=long))
    again.apply(item(identifier="m", type="agent_message", text="Done"))
    plan, message = again.take_entries(reporter)
    assert (plan.id, plan.content, message.id) == (1, "\n".join([f"[ ] {'y' * 100}"] * 30), 2)
    assert [each["content"] for each in json.loads(plan.data or "")["entries"]] == ["y" * 100] * 30


COUNTERS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def test_only_what_is_complete_is_said(reporter: Reporter) -> None:
    """A message or thought that has begun is not shown yet; an error is in any case."""
    stream = codex(
        item("started", type="agent_message", text="So"),
        item("updated", type="reasoning", text="I thi"),
        item("started", type="error", message="Slow"),
        item(type="reasoning", text="I think."),
        item(type="agent_message", text="Solved."),
        item(type="something_new"),
        {"type": "something.new"},
    )
    entries: list[LogEntry] = stream.take_entries(reporter)
    assert [(entry.kind, entry.content) for entry in entries] == [
        ("notice", "taskherd: the agent says: Slow"),
        ("thought", "I think."),
        ("message", "Solved."),
    ]
    assert stream.last_words == "Solved."
