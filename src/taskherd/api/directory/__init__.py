"""The routes of the directory: users, organizations, templates."""
