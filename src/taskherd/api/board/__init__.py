"""The board, the web interface: pages that run in the browser and read the API."""
