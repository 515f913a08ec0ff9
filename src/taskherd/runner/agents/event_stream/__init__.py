"""Agents that write a stream of events of their own to their stdout: one JSON object a line.

- ``stream``: what all streams lead to: entries of the log, the state, the session
- ``claude``: ``claude -p --output-format stream-json --verbose``
- ``codex``: ``codex exec --json``
- ``follower``: follows an agent through its stream; its rules stand at its top
"""
