"""The routes of workspaces, builds and agents, which clients look up by id."""
