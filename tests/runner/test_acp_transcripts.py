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
CLAUDE, GEMINI = "claude-agent-acp-0.23.1", "gemini-cli-0.61.0"
USAGE: dict[str, dict[tuple[int, str], dict[str, Any]]] = {
    f"{CLAUDE}-person": {
        (1, ""): {"input_tokens": 400, "output_tokens": 80, "cost": "0.0024", "context_size": 200_000, **UNCACHED},
    },
    f"{CLAUDE}-policy": {
        (1, ""): {"input_tokens": 300, "output_tokens": 60, "cost": "0.0024", "context_size": 200_000, **UNCACHED},
    },
    f"{CLAUDE}-resume": {
        (1, ""): {"input_tokens": 100, "output_tokens": 20, "cost": "0.0006", "context_size": 200_000, **UNCACHED},
        (2, ""): {"input_tokens": 100, "output_tokens": 20, "cost": "0.0006", "context_size": 200_000, **UNCACHED},
    },
    f"{GEMINI}-person": {(1, "gemini-2.5-pro"): {"input_tokens": 400, "output_tokens": 80}},
    f"{GEMINI}-policy": {(1, "gemini-2.5-pro"): {"input_tokens": 300, "output_tokens": 60}},
    f"{GEMINI}-resume": {
        (1, "gemini-2.5-pro"): {"input_tokens": 100, "output_tokens": 20},
        (2, "gemini-2.5-pro"): {"input_tokens": 100, "output_tokens": 20},
    },
}
"""What each recorded agent used, by build and model: each turn has 100 tokens in and 20 out for a request to the model.

Claude's third turn of ``policy`` was interrupted: it told its cost, and no tokens.
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
