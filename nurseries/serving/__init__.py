"""One port that survives any peer: HTTP for an ASGI application, WebSockets for a handler, on Trio.

`Listener` binds and routes; `ServingLimits` holds every deadline and bound; a `WebSocketHandler` gets a
`Handshake`, answers it, and serves the `WebSocket`. See docs/serving.md.
"""

from nurseries.serving.asgi import ASGIApp, ClientDisconnected
from nurseries.serving.bodies import BodyLimit
from nurseries.serving.connection import ServingStatistics
from nurseries.serving.dialogue import SocketClosed
from nurseries.serving.handshake import Handshake
from nurseries.serving.headers import Headers
from nurseries.serving.limits import ServingLimits
from nurseries.serving.listener import Listener, WebSocketHandler
from nurseries.serving.messages import Binary
from nurseries.serving.tls import Certificates
from nurseries.serving.websocket import WebSocket

__all__ = [
    "ASGIApp",
    "Binary",
    "BodyLimit",
    "Certificates",
    "ClientDisconnected",
    "Handshake",
    "Headers",
    "Listener",
    "ServingLimits",
    "ServingStatistics",
    "SocketClosed",
    "WebSocket",
    "WebSocketHandler",
]
