"""TLS as the settings ask for it, with certificates that are renewed while the server runs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from nurseries.errors import StartupFailed
from nurseries.serving import Certificates

if TYPE_CHECKING:
    from app.settings import Settings
    from nurseries.serving import Listener

logger = structlog.get_logger(__name__)


def certificates_of(settings: Settings) -> Certificates | None:
    """Return where the certificate is; None for a server without TLS.

    Raises:
        StartupFailed: one of the two files is not named, or they cannot be used together.
    """
    if not settings.tls_certificate and not settings.tls_key:
        return None
    if not settings.tls_certificate or not settings.tls_key:
        raise StartupFailed("tls_certificate and tls_key belong together: set both, or none")
    certificates = Certificates(Path(settings.tls_certificate), Path(settings.tls_key))
    try:
        certificates.context()
    except OSError as error:
        raise StartupFailed(
            f"tls_certificate {settings.tls_certificate} and tls_key {settings.tls_key} cannot be used: {error.strerror or error}"
        ) from error
    return certificates


class Renewal:
    """Reads the certificate files again at SIGHUP, as whoever renews them expects. A broken file changes nothing."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen for the signal until cancelled."""
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                try:
                    self._listener.reload_certificates()
                except OSError as error:
                    logger.warning("the new certificate cannot be used; the old one stays", error=str(error))
                else:
                    logger.info("certificate reloaded")
