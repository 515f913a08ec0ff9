"""Routes for agents: authenticate by agent token and publish what the agent sends as reports."""
