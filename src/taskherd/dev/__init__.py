"""Development on one machine: private RabbitMQ and PostgreSQL and `taskherd dev`."""
