"""A conversation with an agent as a runner reports one: messages, thoughts, tool calls with diffs, a plan, notices."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from taskherd.messages.limits import MAX_ELEMENTS
from tests.harness.api import ApiHarness
from tests.harness.worker import make_report

BEFORE = """import time

import pytest

from shop.checkout import Checkout


@pytest.fixture
def checkout():
    return Checkout(timeout=30)


def test_checkout_expires(checkout):
    started = time.time()
    checkout.begin()
    assert checkout.expires_at - started == 30


def test_checkout_is_empty(checkout):
    assert checkout.items == []
"""
AFTER = BEFORE.replace(
    "import time\n\nimport pytest\n\n", "import pytest\n\nfrom shop.clock import FrozenClock\n"
).replace(
    "    started = time.time()\n    checkout.begin()\n    assert checkout.expires_at - started == 30\n",
    '    clock = FrozenClock("2026-11-26T09:41:00Z")\n    checkout.begin(clock)\n'
    "    assert checkout.expires_at - clock.now() == 30\n",
)

Entry = dict[str, Any]


def tool(title: str, kind: str, text: str = "", status: str = "completed", **data: Any) -> Entry:
    """Return the entry of a tool call."""
    content = title if not text else f"{title}\n{text}"
    return {
        "type": "output",
        "content": content,
        "kind": "tool_call",
        "title": title,
        "status": status,
        "data": {"kind": kind, **data},
    }


def said(content: str, kind: str = "message") -> Entry:
    """Return the entry of something that the agent said."""
    return {"type": "output", "content": content, "kind": kind}


STEPS = (
    ("Find out when the test fails", "completed"),
    ("Make it fail every time", "completed"),
    ("Pin the clock", "in_progress"),
    ("Run the tests a hundred times", "pending"),
    ("Open a pull request", "pending"),
)
PLAN: Entry = {
    "type": "output",
    "kind": "plan",
    "content": "\n".join(text for text, _ in STEPS),
    "data": {"entries": [{"content": text, "status": status, "priority": "medium"} for text, status in STEPS]},
}

CONVERSATION: tuple[Entry, ...] = (
    {
        "type": "input",
        "content": "Fix the flaky checkout test in the shop repository and open a pull request. "
        "It fails about once in fifty runs, always in CI and never on my machine.",
    },
    said(
        "**Looking at the test first**\nThe name suggests a timeout, so I expect the clock to be read twice.", "thought"
    ),
    said("I'll look at the test and at what it checks."),
    tool("tests/test_checkout.py", "read", "19 lines", locations=[{"path": "tests/test_checkout.py", "line": 1}]),
    tool("src/shop/checkout.py", "read", "84 lines", locations=[{"path": "src/shop/checkout.py", "line": 12}]),
    tool(
        "expires_at", "search", "src/shop/checkout.py:31\nsrc/shop/checkout.py:58\ntests/test_checkout.py:17\n3 matches"
    ),
    said(
        "The test reads the wall clock twice: once itself, and once in `Checkout.begin`. When a second passes in"
        " between, `expires_at - started` is 31. I can reproduce it with a frozen second:\n\n"
        '```python\nclock = FrozenClock("2026-11-26T09:41:00Z")\nclock.advance(seconds=1)\n```\n'
        "There is an issue about it already: https://github.com/acme/shop/issues/1199"
    ),
    tool(
        "pytest tests/test_checkout.py -q --count 50",
        "execute",
        "FAILED tests/test_checkout.py::test_checkout_expires[17]\nassert 31.0 == 30\n1 failed, 99 passed in 4.2 s",
        status="failed",
    ),
    PLAN,
    tool(
        "tests/test_checkout.py",
        "edit",
        diff={"path": "tests/test_checkout.py", "old": BEFORE, "new": AFTER},
        locations=[{"path": "tests/test_checkout.py"}],
    ),
    tool(
        "src/shop/clock.py",
        "edit",
        diff={
            "path": "src/shop/clock.py",
            "old": "",
            "new": "class FrozenClock:\n    def __init__(self, at):\n        self._at = at\n\n"
            "    def now(self):\n        return self._at\n",
        },
    ),
    tool("pytest tests/test_checkout.py -q", "execute", "....\n14 passed in 3.1 s"),
    {"type": "output", "kind": "notice", "content": "taskherd: the runner was restarted; the agent went on meanwhile."},
    said(
        "All pass. Before I run it a hundred times: `Checkout` is also used by the mobile API, which passes its own"
        " clock. I can either *pin the clock* in the tests only, or *mock the network* there too."
    ),
)


async def converse(
    harness: ApiHarness, task: uuid.UUID, entries: tuple[Entry, ...] = CONVERSATION, build: int = 1
) -> None:
    """Report a conversation whose last entry is a minute old, and wait until it is stored."""
    begin = datetime.now(UTC) - timedelta(minutes=1, seconds=40 * len(entries))
    logged = [
        {"id": number, "time": (begin + timedelta(seconds=40 * number)).isoformat(), **entry}
        for number, entry in enumerate(entries)
    ]
    for seq, first in enumerate(range(0, len(logged), MAX_ELEMENTS), 1):
        part = logged[first : first + MAX_ELEMENTS]
        await harness.worker.report(make_report("task.log", task, build_number=build, seq=seq, entries=part))
    await harness.worker.until_row("SELECT count(*) FROM task_logs WHERE task_id = $1", task, is_=len(entries))
