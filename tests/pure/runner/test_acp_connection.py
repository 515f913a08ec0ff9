"""The messages to and from an agent that speaks ACP, without one: what is open, what is lost, what is no message."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never

import pytest

from taskherd.runner.agents.acp.connection import (
    METHOD_NOT_FOUND,
    AgentCall,
    AgentResponse,
    BadLine,
    Connection,
    Incoming,
    Notification,
)
from taskherd.runner.agents.acp.lines import MAX_LINE, READ_BYTES, LineReader, LineWriter
from taskherd.runner.workspaces.folders import RunFolder

KIB = 1024


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return the folder of a run that has begun."""
    run = RunFolder(tmp_path)
    run.stdin.mkdir()
    run.output.mkdir()
    return run


def write(folder: RunFolder, *lines: str | bytes, at: int = 0) -> None:
    """Let the agent write these lines to its segment that starts there."""
    with (folder.output / f"{at:020d}").open("ab") as file:
        for line in lines:
            file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")


def received(folder: RunFolder, *lines: object, connection: Connection | None = None) -> list[Incoming]:
    """Return what a connection receives when the agent writes these messages."""
    connection = connection or Connection(folder, {})
    write(folder, *(each if isinstance(each, str) else json.dumps(each) for each in lines))
    return list(connection.receive())


def submitted(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Return the messages for the agent, by the names of their files."""
    found = {}
    for path in sorted(folder.stdin.iterdir()):
        message = json.loads(path.read_bytes())
        assert message.pop("jsonrpc") == "2.0"
        found[path.name] = message
    return found


def end(folder: RunFolder, number: int, suffix: str) -> None:
    """Let the shim do something with a line."""
    (folder.stdin / str(number)).rename(folder.stdin / f"{number}{suffix}")


def again(folder: RunFolder, connection: Connection) -> Connection:
    """Return the connection of the next runner."""
    return Connection(folder, json.loads(json.dumps(connection.checkpoint())))


def test_what_an_agent_writes_is_decoded(folder: RunFolder) -> None:
    """Requests, notifications and responses; blank lines are none, and what fits nothing is bad."""
    connection = Connection(folder, {})
    for method in ("a", "b", "c", "d", "e"):
        connection.call(method, {}, 10)
    long = "i" * 254
    assert received(
        folder,
        {"id": 1, "method": "m", "params": {"a": 1}},
        {"id": long, "method": "m"},
        {"id": long + "i", "method": "m"},
        {"id": 1, "method": "m", "params": [1]},
        {"id": True, "method": "m"},
        {"id": 1.5, "method": "m"},
        {"id": None, "method": "m"},
        "  ",
        {"method": "n", "params": {"b": 2}},
        {"method": "n", "params": None},
        {"method": "n", "params": [1]},
        {"id": 0, "result": {"c": 3}},
        {"id": 0, "result": {}},
        {"id": 1, "result": [4]},
        {"id": 2, "error": {"code": 5, "message": "no", "data": 6}},
        {"id": 3, "error": "never"},
        {"id": 4, "error": {}, "result": {}},
        {"id": 4, "method": 7, "result": {}},
        {"id": "4", "result": {}},
        {"id": 4},
        [8],
        "x" * 201,
        connection=connection,
    ) == [
        AgentCall(1, "m", {"a": 1}),
        AgentCall(long, "m", {}),
        no_message({"id": long + "i", "method": "m"}),
        AgentCall(1, "m", {}, False),  # noqa: FBT003 - its only one
        no_message({"id": True, "method": "m"}),
        no_message({"id": 1.5, "method": "m"}),
        no_message({"id": None, "method": "m"}),
        Notification("n", {"b": 2}),
        Notification("n", {}),
        no_message({"method": "n", "params": [1]}),
        AgentResponse(0, 0, "a", {"c": 3}, None),
        BadLine("it answers no open request", json.dumps({"id": 0, "result": {}})),
        AgentResponse(1, 1, "b", {}, None),
        AgentResponse(2, 2, "c", None, {"code": 5, "message": "no", "data": 6}),
        AgentResponse(3, 3, "d", None, {"code": 0, "message": "never"}),
        no_message({"id": 4, "error": {}, "result": {}}),
        no_message({"id": 4, "method": 7, "result": {}}),
        BadLine("it answers no open request", json.dumps({"id": "4", "result": {}})),
        no_message({"id": 4}),
        no_message([8]),
        BadLine("it is no JSON", "x" * 200),
    ]
    assert [call["method"] for call in connection.calls.values()] == ["e"]


def no_message(message: object) -> BadLine:
    """Return what stands for a line that is JSON and no message."""
    return BadLine("it is no JSON-RPC message", json.dumps(message)[:200])


def test_the_numbers_of_errors_are_those_of_the_protocols() -> None:
    """Those of JSON-RPC 2.0, and of ACP."""
    from taskherd.runner.agents.acp import connection  # noqa: PLC0415 - all its names

    names = ("METHOD_NOT_FOUND", "INVALID_PARAMS", "INTERNAL_ERROR", "AUTH_REQUIRED", "RESOURCE_NOT_FOUND")
    assert [getattr(connection, name) for name in names] == [-32601, -32602, -32603, -32000, -32002]


def test_what_is_recorded_is_given_when_it_is_submitted(folder: RunFolder) -> None:
    """Each message once, in its own file, which only its owner reads."""
    connection = Connection(folder, {})
    assert not connection.has_recorded
    assert [connection.call("a", {"x": 1}, 100), connection.call("b", {}, math.inf, write_within=5)] == [0, 1]
    connection.notify("c", {})
    assert connection.answer("r", {"ok": True}) == 3
    connection.refuse(7, METHOD_NOT_FOUND, "no")
    assert (connection.has_recorded, submitted(folder)) == (True, {})
    connection.submit()
    assert not connection.has_recorded
    assert submitted(folder) == {
        "0": {"id": 0, "method": "a", "params": {"x": 1}},
        "1": {"id": 1, "method": "b", "params": {}},
        "2": {"method": "c", "params": {}},
        "3": {"id": "r", "result": {"ok": True}},
        "4": {"id": 7, "error": {"code": -32601, "message": "no"}},
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.stdin.iterdir()} == {0o600}
    now = time.monotonic()
    write_by = [line["deadline"] - now for line in connection.lines.values()]
    assert [round(each, -1) for each in write_by] == [60, 0, 60, 60, 60]
    assert 0 < write_by[1] <= 5
    assert 90 < connection.calls[0]["deadline"] - now <= 100
    for path in folder.stdin.iterdir():
        path.unlink()
    connection.submit()
    assert submitted(folder) == {}


def test_a_shim_is_told_of_a_line(folder: RunFolder) -> None:
    """Through its FIFO, which is closed again; without one nothing is said."""
    writer = LineWriter(folder)
    writer.submit(0, b"{}")
    os.mkfifo(folder.input)
    reading = os.open(folder.input, os.O_RDONLY | os.O_NONBLOCK)
    writer.submit(1, b"[]")
    assert os.read(reading, 10) == b"\n"
    assert os.read(reading, 10) == b"", "nobody has it open"
    os.close(reading)
    assert (folder.stdin / "1").read_bytes() == b"[]\n"


def test_lines_end_written_or_not(folder: RunFolder) -> None:
    """Each is acknowledged once; its file stays until it is forgotten."""
    connection = Connection(folder, {})
    for _ in range(3):
        connection.notify("n", {})
    connection.submit()
    for number, suffix in ((0, ".done"), (1, ".failed"), (2, ".open")):
        end(folder, number, suffix)
    assert connection.acknowledged() == {0: True, 1: False}
    assert connection.acknowledged() == {}
    assert [*connection.lines] == [2]
    for number in (0, 1, 2, 3):
        connection.writer.forget(number)
    assert [*submitted(folder)] == ["2.open"]
    assert connection.writer.content(2) == b'{"jsonrpc":"2.0","method":"n","params":{}}\n'
    assert connection.writer.content(0) == b""


def test_an_agent_has_so_many_answers_to_read(folder: RunFolder) -> None:
    """Up to 64, or 4 MiB; what the runner itself asks does not count, and nothing does once the agent has ended."""
    connection = Connection(folder, {})
    rooms = []
    for number in range(64):
        connection.notify("n", {})
        rooms.append(connection.has_room)
        connection.answer(number, {})
    rooms.append(connection.has_room)
    del connection.lines[1]
    assert [*rooms, connection.has_room] == [True] * 64 + [False, True]
    large = Connection(folder, {})
    large.answer(1, {})
    for size, has_room in ((4 * KIB * KIB - 1, True), (4 * KIB * KIB, False)):
        large.lines[0]["size"] = size
        assert large.has_room is has_room
    large.close()
    assert large.has_room
    sizes = Connection(folder, {})
    line = sizes.answer(1, {"text": "ä"})
    assert sizes.lines[line]["size"] == len('{"jsonrpc":"2.0","id":1,"result":{"text":"ä"}}'.encode())
    sizes.lines[line] = {"answers": 1}
    assert sizes.has_room


def test_an_agent_that_has_ended_is_given_no_answers(folder: RunFolder) -> None:
    """Other messages are still recorded, as everything is before that."""
    connection = Connection(folder, {})
    connection.close()
    assert connection.answer(1, {}) == 0
    connection.refuse(2, -1, "no")
    assert (connection.lines, connection.has_recorded) == ({}, False)
    connection.notify("n", {})
    assert [*connection.lines] == [2]


def test_a_call_is_taken_back_unless_the_shim_has_begun(folder: RunFolder) -> None:
    """Whether it was submitted or only recorded; then it is as if it was never made."""
    connection = Connection(folder, {})
    connection.call("submitted", {}, 10)
    connection.call("begun", {}, 10)
    connection.submit()
    connection.call("recorded", {}, 10)
    end(folder, 1, ".open")
    assert [connection.take_back(number) for number in (0, 1, 2)] == [True, False, True]
    assert ([*connection.calls], [*connection.lines]) == ([1], [1])
    connection.submit()
    assert [*submitted(folder)] == ["1.open"]


def test_the_next_runner_finds_what_was_not_submitted(folder: RunFolder) -> None:
    """That was never given, and its calls were never made; what is known to have ended is forgotten."""
    connection = Connection(folder, {})
    connection.call("made", {}, 10)
    connection.notify("ended", {})
    connection.submit()
    end(folder, 1, ".done")
    connection.acknowledged()
    connection.call("lost", {}, 10)
    connection.notify("lost", {})
    connection.answer(7, {"kept": 1}, keep=True)
    connection.answer(8, {"kept": 0})
    follower = again(folder, connection)
    follower.call("new", {}, 10)
    lost = follower.lost_lines()
    assert [*lost] == [2, 3, 4, 5]
    assert lost[3]["notifies"] == "lost"
    assert (lost[4]["answers"], lost[4]["result"]) == (7, {"kept": 1})
    assert (lost[5]["answers"], "result" in lost[5]) == (8, False)
    assert ([*follower.calls], [*follower.lines], follower.unrecorded) == ([0, 2], [0, 6], [])
    assert [*submitted(folder)] == ["0"]
    assert follower.lost_lines() == {}
    write(folder, json.dumps({"id": 0, "result": {}}))
    assert [*follower.receive()] == [AgentResponse(0, 0, "made", {}, None)]


def test_the_next_runner_finds_what_no_record_knows(folder: RunFolder) -> None:
    """What the shim has not begun to write is taken back, and the numbers and ids of the rest are not used again."""
    connection = Connection(folder, {})
    connection.call("recorded", {}, 10)
    checkpoint = json.loads(json.dumps(connection.checkpoint()))
    connection.call("lost", {}, 10)
    connection.answer("r", {})
    connection.notify("n", {})
    connection.call("not begun", {}, 10)
    connection.answer(5, {})
    connection.submit()
    for number, suffix in ((1, ".open"), (2, ".done"), (3, ".failed"), (5, ".open")):
        end(folder, number, suffix)
    (folder.stdin / "5.open").write_text("torn")
    follower = Connection(folder, checkpoint)
    methods = [message.get("method") or message["id"] for message in follower.unrecorded]
    assert methods == ["lost", "r", "n"]
    assert [*follower.lines] == [0, 1, 2, 3, 5]
    assert "4" not in submitted_names(folder)
    assert follower.call("next", {}, 10) == 2
    assert follower.calls[2]["line"] == 6


def test_what_no_record_knows_is_found_once_it_can_be_read(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor it is not known, and not taken for nothing."""
    for number in (1, 2):
        (folder.stdin / f"{number}.open").write_text(json.dumps({"id": number, "result": {}}))

    def fail(*_: object, **__: object) -> Never:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        follower = Connection(folder, {})
        with pytest.raises(OSError, match="Too many open files"):
            assert follower.unrecorded
        assert follower.lines == {}
    assert [message["id"] for message in follower.unrecorded] == [1, 2]
    assert [*follower.lines] == [1, 2]
    folder.stdin.joinpath("1.open").unlink()
    assert follower.writer.content(1) == b""


def submitted_names(folder: RunFolder) -> list[str]:
    """Return the names of the files of lines."""
    return sorted(path.name for path in folder.stdin.iterdir())


def test_a_request_that_was_answered_before_is_ignored_once(folder: RunFolder) -> None:
    """The agent's own next one with that id counts, also for the next runner."""
    connection = Connection(folder, {})
    connection.ignore_call("a")
    connection.ignore_call(1)
    ask = {"id": "a", "method": "m"}
    follower = again(folder, connection)
    assert received(folder, ask, {"method": "n"}, ask, connection=follower) == [
        Notification("n", {}), AgentCall("a", "m", {}),
    ]  # fmt: skip
    assert follower.checkpoint()["given"] == [1]
    assert again(folder, follower).reader.offset == follower.reader.offset > 0


def lines_of(reader: LineReader) -> list[bytes | None]:
    """Return all lines that there are now."""
    found: list[bytes | None] = []
    before = -1
    while reader.position != before:
        before = reader.position
        found += reader.read()
    return found


def test_only_whole_lines_count_as_read(folder: RunFolder) -> None:
    """The beginning of one is read again by the next runner; what was read whole is deleted."""
    write(folder, "one", "")
    with (folder.output / f"{0:020d}").open("ab") as file:
        file.write(b"tw")
    reader = LineReader(folder, 0, skipping=False)
    assert reader.has_more
    assert lines_of(reader) == [b"one", b""]
    assert (reader.offset, reader.position, reader.line_bytes, reader.has_more) == (5, 7, 0, False)
    write(folder, "o", at=7)
    write(folder, "three", at=9)
    follower = LineReader(folder, reader.offset, skipping=reader.skipping)
    for each in (reader, follower):
        assert each.has_more
        assert lines_of(each) == [b"two", b"three"]
        assert (each.offset, each.line_bytes) == (15, 5)
    follower.discard_read()
    assert [path.name for path in folder.output.iterdir()] == [f"{9:020d}"]


def test_a_line_of_4_mib_is_the_longest(folder: RunFolder) -> None:
    """A longer one is left out as a whole, without keeping it; the next runner goes on with that."""
    most = 4 * KIB * KIB
    assert most == MAX_LINE
    assert READ_BYTES == 256 * KIB
    write(folder, b"a" * most, b"b" * (most + 1), b"c" * (3 * most), "short")
    reader = LineReader(folder, 0, skipping=False)
    found: list[bytes | None] = []
    while len(found) < 2:
        found += reader.read()
    assert (found, reader.line_bytes) == ([b"a" * most, None], 0)
    while not reader.skipping:
        assert list(reader.read()) == []
    assert reader.offset == reader.position > 2 * most
    assert list(reader.read()) == []
    assert reader.offset == reader.position > 2 * most + READ_BYTES  # nothing of the line is kept
    follower = LineReader(folder, reader.offset, skipping=True)
    assert lines_of(follower) == [None, b"short"]
    assert (follower.skipping, follower.line_bytes, follower.has_more) == (False, 5, False)


def test_a_line_with_a_gap_is_left_out(folder: RunFolder) -> None:
    """The disk was full, and bytes of it are missing; what comes after its end is read."""
    (folder.output / f"{0:020d}").write_bytes(b"one\ntw")
    write(folder, "o", "three", at=20)
    reader = LineReader(folder, 0, skipping=False)
    assert lines_of(reader) == [b"one", None, b"three"]
    assert reader.offset == reader.position == 28


def test_no_time_passes_while_nothing_is_read(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is anything late then; what an agent has written meanwhile is in time if it was before."""
    now = 1000.0
    monkeypatch.setattr("taskherd.runner.agents.acp.connection.time", SimpleNamespace(monotonic=lambda: now))
    connection = Connection(folder, {})
    call = connection.calls[connection.call("a", {}, 5)]
    line = connection.lines[call["line"]]
    now += 4
    with connection.paused():
        now += 100
        assert not connection.is_late(call)
        assert not connection.is_late(line)
    assert (call["deadline"], line["deadline"]) == (1105, 1160)
    now += 1
    assert not connection.is_late(call)
    now += 1
    assert connection.is_late(call)
    connection.allow_catch_up()
    assert (call["deadline"], line["deadline"]) == (1108, 1160)
