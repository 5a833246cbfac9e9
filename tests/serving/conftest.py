"""Certificates for the tests that need TLS."""

import ssl
from pathlib import Path

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
