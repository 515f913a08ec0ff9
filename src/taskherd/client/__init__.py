"""A synchronous Python client of the HTTP API, built on the standard library.

``http.Client`` sends requests, ``tasks`` has one function for each thing to do with a task, ``events`` follows a stream
of changes. Every function raises ``errors.ClientError`` if it fails, and every wait has a timeout::

    from taskherd.client import http, tasks

    client = http.Client("http://127.0.0.1:7080", token)
    for task in tasks.list_tasks(client, {"owner": "me", "status": "active"}, limit=20):
        print(task["name"], task["current_state"])
"""
