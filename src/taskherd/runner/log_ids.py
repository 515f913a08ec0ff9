"""Ids of log entries: each source of entries has its own range, so that no entry replaces one of another source.

An entry with the id of an earlier one replaces it, which is how a changed message of AgentAPI updates its entry.

- From 0: lines of an agent's output (a counter), messages of AgentAPI (its own ids), or what an agent tells over ACP (a
  counter).
- From ``FIRST_ERROR_ID``: errors of AgentAPI (a counter).
- From ``FIRST_NOTICE_ID``: notices by the runner (plus milliseconds since the epoch, which no two notices share).
- ``LAST_OUTPUT_ID``: the last output of an agent whose output is not its log, after it ended.
- From ``FIRST_INPUT_ID``: prompt and inputs of an agent that reports its own status and log (a counter).
"""

FIRST_ERROR_ID = 2**40
FIRST_NOTICE_ID = 2**41
LAST_OUTPUT_ID = 2**42
FIRST_INPUT_ID = 2**43
