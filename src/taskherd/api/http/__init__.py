"""The HTTP layer: server, endpoints, authentication, rate limit, responses, OpenAPI, SSE and WebSockets."""
