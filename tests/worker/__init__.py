"""Laws of the whole worker, through real RabbitMQ and PostgreSQL."""
