"""The workspace of a task on the runner: its folder, environment, processes and cgroup."""
