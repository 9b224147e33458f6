"""Certificates that a test makes up, and servers that have them."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def certificate(directory: Path, address: str = "127.0.0.1", *, days: int = 1) -> Path:
    """The file of a new certificate, signed by itself, and its key; it ends in so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    number = x509.random_serial_number()
    # No two have the same name, or one of them would be looked at for the other.
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{number:x}")])
    names = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(address))])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), number)
        .not_valid_before(end - timedelta(days=30))
        .not_valid_after(end)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
    )
    path = directory / f"{number:x}.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def speaking_tls(certificate: Path) -> ssl.SSLContext:
    """As a server with this certificate does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context
