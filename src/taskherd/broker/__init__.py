"""RabbitMQ: connections that come back, topology, fast consuming, confirmed publishing, dead letters."""
