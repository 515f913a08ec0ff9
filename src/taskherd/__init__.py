"""taskherd keeps the truth about every AI agent task: a worker, an API and a runner."""
