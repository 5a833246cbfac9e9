"""Certificates for the tests that need TLS, and all that a connection can travel on."""

import ssl
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from nurseries.serving import Certificates


@attrs.frozen
class TestCertificates:
    """A certificate authority, files that it signed, and a client that trusts it."""

    authority: trustme.CA
    files: Certificates
    client: ssl.SSLContext

    def renew(self) -> None:
        """Write a new certificate to the same files."""
        certificate = self.authority.issue_cert("127.0.0.1", "localhost")
        certificate.private_key_pem.write_to_path(self.files.key)
        certificate.cert_chain_pems[0].write_to_path(self.files.certificate)


@pytest.fixture
def certificates(tmp_path: Path) -> TestCertificates:
    authority = trustme.CA()
    client = ssl.create_default_context()
    authority.configure_trust(client)
    made = TestCertificates(
        authority, Certificates(tmp_path / "certificate.pem", tmp_path / "key.pem"), client
    )
    made.renew()
    return made


@pytest.fixture(params=["tcp", "ipv6", "unix", "tls", "tls over unix"])
def transport(
    request: pytest.FixtureRequest, certificates: TestCertificates, tmp_path: Path
) -> dict[str, Any]:
    """What `serving` needs to be reached in one of the ways there are."""
    options: dict[str, Any] = {}
    if "unix" in request.param:
        options |= {"host": None, "unix_path": tmp_path / "house.sock"}
    elif request.param == "ipv6":
        options["host"] = "::1"
    if "tls" in request.param:
        options |= {"certificates": certificates.files, "client_tls": certificates.client}
    return options
