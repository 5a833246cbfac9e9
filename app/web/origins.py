"""Which pages may open a socket: those of this server itself, and those that the settings name."""

from __future__ import annotations

from urllib.parse import urlsplit


def allowed_origin(origin: str | None, host: str | None, allowed: tuple[str, ...]) -> bool:
    """Say whether a page of `origin` may open a socket here.

    No `Origin` means no browser, and a browser is what the check is against (RFC 6455, 10.2). `null` is what
    sandboxed frames and files send; it stands for nobody, so it is refused.

    Args:
        origin: the header as it was sent.
        host: the `Host` header, which names this server as the page's browser sees it.
        allowed: origins from the settings, such as `https://chat.example.org`.
    """
    if origin is None:
        return True
    if origin in allowed:
        return True
    parts = urlsplit(origin)
    own = (
        parts.scheme in {"http", "https"}
        and parts.netloc != ""
        and origin == f"{parts.scheme}://{parts.netloc}"
    )
    return own and host is not None and parts.netloc.lower() == host.lower()
