"""Ids of log entries: each source of entries has its own range, so that no entry replaces one of another source.

An entry with the id of an earlier one replaces it, which is how a changed message of AgentAPI updates its entry.

- From 0: lines of an agent's output (a counter), or messages of AgentAPI (its own ids).
- From ``FIRST_ERROR_ID``: errors of AgentAPI (a counter).
- From ``FIRST_NOTICE_ID``: notices by the runner (plus milliseconds since the epoch, which no two notices share).
"""

FIRST_ERROR_ID = 2**40
FIRST_NOTICE_ID = 2**41
