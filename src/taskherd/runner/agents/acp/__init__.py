"""Agents that speak the Agent Client Protocol (ACP, version 1) over stdin and stdout; the runner is their client.

- ``lines``: whole lines, in both directions, through the files of the shim
- ``connection``: JSON-RPC: ids, deadlines, which lines are open; all of it survives the runner
- ``reading``: what the agent writes, in groups of messages; it waits while it leaves too much unread
- ``sizes``: which messages have too many parts to be validated
- ``handshake``: from ``initialize`` to an open session
- ``conversation``: what an agent tells becomes log entries and the state's message
- ``permissions``, ``elicitation``: what an agent asks; ``people`` passes it to a person
- ``files``, ``terminals``: files that the agent reads and writes through its client, and commands that it runs
- ``follower``: puts them together; its rules stand at its top
"""
