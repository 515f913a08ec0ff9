"""RabbitMQ: reconnecting connections, topology, consuming, publishing with confirms, dead letters."""
