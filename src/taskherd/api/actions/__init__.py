"""Task actions: jobs that do one thing to many tasks, executed by the API processes."""
