"""What agents in workspaces say over HTTP, with the token of their one task and build; it goes on as reports."""
