"""Claude Code's own stream of events: ``claude -p --output-format stream-json --verbose``."""
