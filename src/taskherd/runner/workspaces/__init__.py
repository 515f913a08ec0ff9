"""The workspace of a task: its folder, environment, processes and cgroup."""
