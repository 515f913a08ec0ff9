"""What an agent may ask its client for, and with which parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.pure.runner.acp_life import SESSION, AcpLife

READ, WRITE = "fs/read_text_file", "fs/write_text_file"


async def ask(life: AcpLife, method: str, **params: Any) -> tuple[int, str] | dict[str, Any]:
    """Return the answer to a request, or the code and the words of an error."""
    life.write({"id": "q", "method": method, "params": params})
    await life.step()
    (answer,) = life.take()
    if "error" in answer:
        return answer["error"]["code"], answer["error"]["message"]
    result: dict[str, Any] = answer["result"]
    return result


@pytest.mark.parametrize(
    ("files", "reads", "writes"), [("none", False, False), ("read", True, False), ("write", True, True)]
)
async def test_files_are_for_agents_whose_template_says_so(
    tmp_path: Path, files: str, *, reads: bool, writes: bool
) -> None:
    """Others do not know the methods; nothing else is known either, nor are commands."""
    life = AcpLife(tmp_path, client_files=files)
    await life.open()
    path = life.work / "a"
    path.write_text("one\ntwo\nthree\n")
    for method, is_known, params, result in (
        (READ, reads, {"line": 2, "limit": 1}, {"content": "two\n"}),
        (WRITE, writes, {"content": "new"}, {}),
        ("terminal/create", False, {}, {}),
        ("x" * 101, False, {}, {}),
    ):
        answer = await ask(life, method, path=str(path), sessionId=SESSION, **params)
        assert answer == (result if is_known else (-32601, f"Method not found: {method[:100]}"))
    assert path.read_text() == ("new" if writes else "one\ntwo\nthree\n")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (READ, {"path": None}),
        (READ, {"path": 7}),
        (READ, {"line": -1}),
        (READ, {"line": True}),
        (READ, {"line": "1"}),
        (READ, {"limit": -1}),
        (READ, {"limit": 1.0}),
        (READ, {"limit": False}),
        (WRITE, {}),
        (WRITE, {"content": None}),
        (WRITE, {"content": 7}),
        (WRITE, {"path": 7, "content": ""}),
        (WRITE, {"content": "", "line": -1}),
    ],
)
async def test_parameters_of_another_form_are_refused(tmp_path: Path, method: str, params: dict[str, Any]) -> None:
    """Nothing is read or written then."""
    life = AcpLife(tmp_path, client_files="write")
    await life.open()
    path = life.work / "a"
    path.write_text("old")
    answer = await ask(life, method, **{"path": str(path), "sessionId": SESSION, **params})
    assert answer == (-32602, "the parameters do not fit the schema")
    assert path.read_text() == "old"


async def test_who_asks_is_in_the_session(tmp_path: Path) -> None:
    """A request may leave it out. What is outside of the folder is not found."""
    life = AcpLife(tmp_path, client_files="read")
    await life.open()
    path = life.work / "a"
    path.write_text("text")
    for limit, session, answer in (
        (None, {}, {"content": "text"}),
        (0, {"sessionId": SESSION}, {"content": ""}),
        (1, {"sessionId": "other"}, (-32602, "there is no such session")),
        (1, {"sessionId": None}, (-32602, "there is no such session")),
    ):
        assert await ask(life, READ, path=str(path), limit=limit, **session) == answer
    refused = await ask(life, READ, path="/etc/passwd")
    assert refused == (-32002, f"'/etc/passwd' is not in the task's folder {life.work}")


@pytest.mark.parametrize(
    ("params", "words"),
    [([1], "the parameters are no object"), ({"x": [1] * 10**5}, "the parameters have over 10000 parts")],
)
async def test_parameters_are_an_object_that_is_not_too_large(tmp_path: Path, params: object, words: str) -> None:
    """Others count as events of another form."""
    life = AcpLife(tmp_path, client_files="read")
    await life.open()
    life.write({"id": 1, "method": READ, "params": params})
    await life.step()
    (answer,) = life.take()
    assert answer["error"] == {"code": -32602, "message": words}
    assert life.context.metrics.runner_agent_events_bad._value.get() == 1


async def test_in_a_turn_that_is_cancelled_files_are_only_read(tmp_path: Path) -> None:
    """The agent is to end it."""
    life = AcpLife(tmp_path, client_files="write")
    await life.open()
    await life.begin()
    path = life.work / "a"
    assert await ask(life, WRITE, path=str(path), content="text") == {}
    life.follower._turn.cancelled = True
    refused = (-32602, "a file is not written in a turn that is cancelled")
    assert await ask(life, WRITE, path=str(path), content="other") == refused
    assert await ask(life, READ, path=str(path)) == {"content": "text"}
