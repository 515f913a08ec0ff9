"""Ids of log entries: each kind of entries has its own range, so that none replaces one of another kind.

An entry with the id of an earlier one replaces it, which is how a changed message of AgentAPI updates its entry.

- From 0: prompt, inputs and output of an agent, in one range. The runner counts, so that nothing is replaced unless it
  means to; the ids of AgentAPI's messages are AgentAPI's own, and ``agents.posted_texts`` keeps inputs as they are.
- From ``FIRST_ERROR_ID``: errors of AgentAPI (a counter).
- From ``FIRST_NOTICE_ID``: notices by the runner (plus milliseconds since the epoch, which no two notices share).
- ``LAST_OUTPUT_ID``: the last output of an agent whose output is not its log, after it ended.
- ``FAILED_START_ID``: why an agent that speaks ACP ended before its session was open.
- From ``FIRST_INPUT_ID``: prompt and inputs of an agent that reports its own status and log (a counter).
- From 2**62, which no runner uses: what agents add over HTTP (``api.agents.log_ids``).
"""

FIRST_ERROR_ID = 2**40
FIRST_NOTICE_ID = 2**41
LAST_OUTPUT_ID = 2**42
FAILED_START_ID = LAST_OUTPUT_ID + 1
FIRST_INPUT_ID = 2**43
