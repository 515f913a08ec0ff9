"""Development on one machine: private RabbitMQ and PostgreSQL servers, and ``taskherd dev``."""
