"""``taskherd task totals`` and ``task overview``: what Home shows, on the command line, with a real API."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from taskherd.observability import logs
from tests.api.test_command_line import Shell
from tests.harness.api import ApiHarness
from tests.harness.asking import active, asked
from tests.harness.worker import make_report

ESCAPES = "\x1b[2J"


@pytest.fixture(autouse=True)
def quiet() -> None:
    """Keep the log of the worker, which runs in the same process, out of the output of commands."""
    logs.configure("warning", "auto")


async def report_state(harness: ApiHarness, task_id: uuid.UUID, state: str) -> None:
    """Report an agent's state, and wait until it is shown."""
    report = make_report("app.status", task_id, state=state, message=f"I am {state}", build_number=1)
    await harness.worker.report(report)
    await harness.worker.until(lambda: harness.worker.state(task_id).get("message") == f"I am {state}")


async def some_of_each(harness: ApiHarness) -> None:
    """Create tasks of alice for each section, one of bob, and a request."""
    for name, state in (("waits", "idle"), ("fails", "failed"), ("works", "working"), ("done", "complete")):
        task_id = await active(harness, name=name)
        await report_state(harness, task_id, state)
    await active(harness, name="silent")
    await asked(harness, await active(harness, name="asks"), title=f"Which {ESCAPES}branch?")
    await harness.create(harness.alice, name="queued")
    await harness.create(harness.bob, name="of-bob")


def sections(text: str) -> dict[str, list[list[str]]]:
    """Return the words of the rows below each heading, without those of the columns."""
    found = {}
    for block in text.strip().split("\n\n"):
        heading, *rows = block.splitlines()
        found[heading] = [row.split() for row in rows]
    return found


async def test_totals_are_told_in_words(api_harness: ApiHarness) -> None:
    """How many tasks match, by status, state and health, and how many need a person; what is 0 is left out."""
    await some_of_each(api_harness)
    shell, admin = Shell(api_harness), Shell(api_harness, "carol")
    body: dict[str, Any] = (await api_harness.alice.get("/task-totals")).json()
    assert await shell.json("totals") == body
    assert (await admin.json("totals"))["total"] == body["total"] + 1 == 8
    assert (await admin.json("totals", "--query", "owner:bob"))["total"] == 1
    lines = dict(line.split(maxsplit=1) for line in (await shell.run("totals", COLUMNS="60")).stdout.splitlines())
    assert lines == {
        "total": "7",
        "working": "1",
        "status": "pending 1, active 6",
        "state": "working 1, idle 1, complete 1, failed 1, none 3",
        "health": lines["health"],
        "attention": "waiting 1, idle 1, failed 1",
    }
    assert "healthy" in lines["health"]
    nothing = await Shell(api_harness, "mallory").run("totals")
    assert (nothing.stdout, nothing.exit_code) == ("total  0\n", 0)
    assert (await shell.code("totals", "--query", "color:red"))[0] == 6
    assert (await shell.code("totals", TASKHERD_TOKEN="wrong"))[0] == 4


async def test_an_overview_tells_what_needs_a_person_what_runs_and_what_ended(api_harness: ApiHarness) -> None:
    """Each task once, what is asked first; JSON is the API's answer."""
    shell = Shell(api_harness)
    empty = await shell.run("overview")
    assert (empty.stdout, "Nothing needs a person" in empty.stderr) == ("total  0\n", True)
    await some_of_each(api_harness)
    body = (await api_harness.alice.get("/task-overview", params={"q": "owner:me"})).json()
    printed = await shell.json("overview", "--query", "owner:me")
    assert {**printed, "position": 0} == {**body, "position": 0}
    text = (await shell.run("overview")).stdout
    found = sections(text)
    assert [(row[0], row[1]) for row in found["Needs a person"][1:]] == [
        ("alice/asks", "asks"),
        ("alice/waits", "idle"),
        ("alice/fails", "failed"),
    ]
    assert found["Needs a person"][0] == ["TASK", "WHY", "FOR", "MESSAGE"]
    assert [(row[0], row[1]) for row in found["Runs"][1:]] == [
        ("alice/works", "working"),
        ("alice/silent", "active"),
        ("alice/queued", "pending"),
    ]
    assert [row[:2] + row[3:] for row in found["Ended"][1:]] == [["alice/done", "complete", "I", "am", "complete"]]
    assert "branch?" in text
    assert "\x1b" not in text
    narrow = (await shell.run("overview", COLUMNS="60")).stdout.splitlines()
    assert max(map(len, narrow)) <= 60
    bobs = (await Shell(api_harness, "carol").run("overview", "--query", "owner:bob")).stdout
    assert [row[0] for row in sections(bobs)["Runs"][1:]] == ["bob/of-bob"]
    code, stderr = await shell.code("overview", "--query", "state:idle")
    assert (code, "leave out state" in stderr) == (6, True)


async def test_an_overview_says_where_the_rest_is(api_harness: ApiHarness) -> None:
    """The command that lists all of a group that has more tasks than an overview."""
    for number in range(13):
        await api_harness.create(name=f"queued-{number}")
    for words, terms in (((), "status:pending"), (("--query", "owner:me"), "'owner:me status:pending'")):
        result = await Shell(api_harness).run("overview", *words)
        assert len(sections(result.stdout)["Runs"]) == 13
        assert f"taskherd task list --query {terms} --sort created\n" in result.stderr
