"""Tools of MCP servers (https://modelcontextprotocol.io), through the protocol's official SDK.

    settings.py     which servers there are, and how they are reached
    child.py        a server that is a child process, spoken to over its pipes
    remote.py       a server that is reached over HTTP
    link.py         one connection, owned by one request or one socket, that fails alone
    toolbox.py      what a request gets: the tools of its servers, called through its own links

The SDK takes a second to import, so it is imported where there is a server to connect to.
"""
