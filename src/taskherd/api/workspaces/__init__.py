"""Workspaces, their builds and agents: looked up by id, told from the tasks that they belong to."""
