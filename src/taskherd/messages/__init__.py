"""The messages of the contract: each type is encoded and decoded in one module, between bytes and domain values.

Reports, commands, replies and work requests are encoded and decoded here, because a component of taskherd is at each
end. Events are only encoded (``events.py``). Invalid reports, commands and work requests are returned as a value, an
``InvalidMessage``, and never raised. ``document.py`` renders the task document, which replies and events contain, and
``asyncapi.py`` the description of all messages.
"""
