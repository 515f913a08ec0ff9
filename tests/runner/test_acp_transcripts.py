from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from acp import schema

from tests.harness.runner import eventually
from tests.real_agents.protocol import changes_in
from tests.runner.acp import acp_run
from tests.runner.acp_scenarios import SCENARIOS, scenario_of

TRANSCRIPTS = [
    path for path in sorted((Path(__file__).parent / "transcripts").glob("*.jsonl")) if "-exec-" not in path.name
]
REPLAY = Path(__file__).parents[1] / "harness" / "replay_agent.py"
REQUESTS: dict[str, Any] = {
    "initialize": schema.InitializeRequest,
    "session/new": schema.NewSessionRequest,
    "session/load": schema.LoadSessionRequest,
    "session/resume": schema.ResumeSessionRequest,
    "session/prompt": schema.PromptRequest,
    "session/cancel": schema.CancelNotification,
}
Usage: TypeAlias = dict[tuple[int, str], dict[str, Any]]
CLAUDE, CODEX, GEMINI, OPENCODE = "claude-agent-acp-0.101.0", "codex-acp-2.6.0", "gemini-cli-0.61.0", "opencode-1.18.33"


def used(requests: int, *, cached: bool = False, **more: Any) -> dict[str, Any]:
    """Return what a number of requests to the model use, each 100 tokens in and 20 out; ``cached``: caches are told."""
    caches = {"cache_read_tokens": 0, "cache_write_tokens": 0} if cached else {}
    return {"input_tokens": 100 * requests, "output_tokens": 20 * requests, **caches, **more}


def by_claude(build: int, opus: int, haiku: int, cost: str) -> Usage:
    """Return what a build's Claude Code used, with the cost of its session beside the tokens of its models."""
    usage: Usage = {(build, ""): {"cost": cost, "context_used": 120, "context_size": 1_000_000}}
    usage[build, "claude-opus-5-5"] = used(opus, cached=True)
    return usage | ({(build, "claude-haiku-5-5"): used(haiku, cached=True)} if haiku else {})


def by_codex(build: int, requests: int) -> Usage:
    """Return what a build's Codex used; it tells no cost."""
    context = {"context_used": 120, "context_size": 258_400}
    return {(build, ""): context, (build, "scripted"): used(requests, cached=True)}


USAGE: dict[str, Usage] = {
    f"{CLAUDE}-person": by_claude(1, 5, 1, "0.00402"),
    f"{CLAUDE}-policy": by_claude(1, 4, 1, "0.00322"),
    f"{CLAUDE}-resume": by_claude(1, 1, 1, "0.00082") | by_claude(2, 1, 0, "0.0008"),
    f"{CODEX}-person": by_codex(1, 3),
    f"{CODEX}-policy": by_codex(1, 4),
    f"{CODEX}-resume": by_codex(1, 1) | by_codex(2, 1),
    f"{GEMINI}-person": {(1, "gemini-2.5-pro"): used(4)},
    f"{GEMINI}-policy": {(1, "gemini-2.5-pro"): used(3)},
    f"{GEMINI}-resume": {(1, "gemini-2.5-pro"): used(1), (2, "gemini-2.5-pro"): used(1)},
    f"{OPENCODE}-person": {(1, ""): used(2)},
    f"{OPENCODE}-policy": {(1, ""): used(2)},
    f"{OPENCODE}-resume": {(1, ""): used(1), (2, ""): used(1)},
}
"""What each recorded agent used, by build and model.

Claude Code goes on with the cost of its session when it continues it: it told 0.00162 USD after the second build.
"""
pytestmark = pytest.mark.timeout(180)


def test_each_scenario_was_recorded() -> None:
    """Each scenario has a recording of a real agent."""
    assert {scenario_of(path) for path in TRANSCRIPTS} == SCENARIOS.keys()


def works_in(transcript: Path) -> list[bool]:
    """Return when the recorded agent was at work: in its turns, except while a person was asked."""
    changes = changes_in(json.loads(line) for line in transcript.read_text().splitlines())
    return [change.works if scenario_of(transcript) == "person" else change.in_turn for change in changes]


def without_repeats(values: Iterable[bool]) -> list[bool]:
    """Return the values without those that repeat the one before."""
    return [value for value, _ in groupby(values)]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
async def test_a_recorded_agent_is_followed(tmp_path: Path, transcript: Path) -> None:
    """What a real agent wrote, byte by byte, leads to the turns, answers, states and usage of when it was recorded."""
    scenario = SCENARIOS[scenario_of(transcript)]
    async with acp_run(tmp_path, **scenario.run) as run:
        run.argv = [sys.executable, str(REPLAY), str(transcript), str(tmp_path / "position")]
        await scenario.carry_out(run)
        forgets = transcript.stem.startswith("gemini-cli") and "resume" in transcript.stem
        assert [("cannot continue" in text) for text in run.texts("notice")] == [True] * forgets
        await eventually(lambda: run.usage() == USAGE[transcript.stem])
        works = without_repeats(state == "working" for state, _ in run.states())
        assert works == without_repeats(works_in(transcript))
        if transcript.stem == f"{CODEX}-person":  # a rejection ends its turn
            assert run.state == ("idle", "The agent ended its turn because this was rejected: echo never > never")


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
def test_what_we_send_fits_the_schema(transcript: Path) -> None:
    """Each request that a real agent was sent is valid by the protocol's own schema."""
    records = [json.loads(line) for line in transcript.read_text().splitlines()]
    sent = [json.loads(record["text"]) for record in records if record["direction"] == "in"]
    for message in sent:
        if "method" in message:
            REQUESTS[message["method"]].model_validate(message["params"])
        else:
            schema.RequestPermissionResponse.model_validate(message["result"])
    assert sent[0]["method"] == "initialize"
