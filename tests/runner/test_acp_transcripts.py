from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from acp import schema

from tests.harness.runner import eventually
from tests.runner.acp import acp_run
from tests.runner.acp_scenarios import SCENARIOS, scenario_of

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.jsonl"))
REPLAY = Path(__file__).parents[1] / "harness" / "replay_agent.py"
REQUESTS: dict[str, Any] = {
    "initialize": schema.InitializeRequest,
    "session/new": schema.NewSessionRequest,
    "session/load": schema.LoadSessionRequest,
    "session/resume": schema.ResumeSessionRequest,
    "session/prompt": schema.PromptRequest,
    "session/cancel": schema.CancelNotification,
}
UNCACHED = {"cache_read_tokens": 0, "cache_write_tokens": 0}
IN_CODEX = {**UNCACHED, "context_size": 258_400, "context_used": 120}
IN_CLAUDE = {**UNCACHED, "context_size": 1_000_000, "context_used": 120}
CLAUDE, CODEX = "claude-agent-acp-0.101.0", "codex-acp-2.6.0"
GEMINI, OPENCODE = "gemini-cli-0.61.0", "opencode-1.18.33"
ONCE = {"input_tokens": 100, "output_tokens": 20}
USAGE: dict[str, dict[tuple[int, str], dict[str, Any]]] = {
    f"{CLAUDE}-person": {(1, ""): {"input_tokens": 400, "output_tokens": 80, "cost": "0.00402", **IN_CLAUDE}},
    f"{CLAUDE}-policy": {(1, ""): {"input_tokens": 400, "output_tokens": 80, "cost": "0.00322", **IN_CLAUDE}},
    f"{CLAUDE}-resume": {
        (1, ""): {**ONCE, "cost": "0.00082", **IN_CLAUDE},
        (2, ""): {**ONCE, "cost": "0.0008", **IN_CLAUDE},
    },
    f"{CODEX}-person": {(1, ""): {"input_tokens": 300, "output_tokens": 60, **IN_CODEX}},
    f"{CODEX}-policy": {(1, ""): {"input_tokens": 400, "output_tokens": 80, **IN_CODEX}},
    f"{CODEX}-resume": {(1, ""): {**ONCE, **IN_CODEX}, (2, ""): {**ONCE, **IN_CODEX}},
    f"{GEMINI}-person": {(1, "gemini-2.5-pro"): {"input_tokens": 400, "output_tokens": 80}},
    f"{GEMINI}-policy": {(1, "gemini-2.5-pro"): {"input_tokens": 300, "output_tokens": 60}},
    f"{GEMINI}-resume": {(1, "gemini-2.5-pro"): ONCE, (2, "gemini-2.5-pro"): ONCE},
    f"{OPENCODE}-person": {(1, ""): {"input_tokens": 200, "output_tokens": 40}},
    f"{OPENCODE}-policy": {(1, ""): {"input_tokens": 200, "output_tokens": 40}},
    f"{OPENCODE}-resume": {(1, ""): ONCE, (2, ""): ONCE},
}
"""What each recorded agent used, by build and model: 100 tokens in and 20 out for each request to the model.

Codex ended its turn with the rejection. Gemini tells nothing of an interrupted turn, and OpenCode neither of that nor
of any request of a turn but the last.
"""
pytestmark = pytest.mark.timeout(180)


def test_each_scenario_was_recorded() -> None:
    """Each scenario has a recording of a real agent."""
    assert {scenario_of(path) for path in TRANSCRIPTS} == SCENARIOS.keys()


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=lambda path: path.stem)
async def test_a_recorded_agent_is_followed(tmp_path: Path, transcript: Path) -> None:
    """What a real agent wrote, byte by byte, leads to the turns, answers, states and usage of when it was recorded."""
    scenario = SCENARIOS[scenario_of(transcript)]
    people = scenario.people() if scenario.people is not None else None
    async with acp_run(tmp_path, people=people, **scenario.run) as run:
        run.argv = [sys.executable, str(REPLAY), str(transcript), str(tmp_path / "position")]
        await scenario.carry_out(run)
        forgets = transcript.stem.startswith("gemini-cli") and "resume" in transcript.stem
        assert [("cannot continue" in text) for text in run.texts("notice")] == [True] * forgets
        await eventually(lambda: run.usage() == USAGE[transcript.stem])


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
