"""Development on one machine: private RabbitMQ and PostgreSQL, `taskherd dev`, the demo."""
