"""The messages of the contract: each type is encoded and decoded in one module, between bytes and domain values.

Reports, commands, replies and work requests are encoded and decoded here, because a component of taskherd is at each
end. Events are only encoded (``events.py``). Invalid input is returned as a value, never raised; the exception is
``replies.decode_reply``. ``document.py`` renders the task document, and ``asyncapi.py`` the description of it all.
"""
