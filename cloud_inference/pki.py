"""A small certificate authority for one machine, for development and for hubs without a better one.

One folder: `ca.pem` and `ca.key`, the server's `server.pem` and `server.key`. Keys are private files, P-256.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from eyeline.creds import write_private
from eyeline.errors import ConfigError

_CA_LASTS = timedelta(days=3650)
# What browsers and gateways accept at most.
_CERTIFICATE_LASTS = timedelta(days=397)
_RENEW_BEFORE = timedelta(days=60)
# For clocks that are a little behind.
_VALID_SINCE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Files:
    """A certificate, its key, and the authority that vouches for it; all PEM."""

    certificate: Path
    key: Path
    ca: Path


def ensure(folder: Path, names: Sequence[str]) -> Files:
    """The authority and the server's certificate, made or renewed when needed; raises `ConfigError`.

    names: host names and addresses that the certificate is for.
    """
    files = Files(folder / "server.pem", folder / "server.key", folder / "ca.pem")
    ca, ca_key = _authority(folder)
    if not _still_good(files, ca, names):
        _issue(ca, ca_key, files, _subject(names[0]), names, purpose=ExtendedKeyUsageOID.SERVER_AUTH)
    return files


def issue_client(folder: Path, into: Path, name: str, organization: str) -> Files:
    """A client's certificate with this common name and organization, `{name}.pem` and `{name}.key`."""
    into.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca, ca_key = _authority(folder)
    files = Files(into / f"{name}.pem", into / f"{name}.key", folder / "ca.pem")
    _issue(ca, ca_key, files, _subject(name, organization), (), purpose=ExtendedKeyUsageOID.CLIENT_AUTH)
    return files


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    path, key_path = folder / "ca.pem", folder / "ca.key"
    if path.exists() and key_path.exists():
        try:
            key = serialization.load_pem_private_key(key_path.read_bytes(), None)
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError, TypeError) as problem:
            raise ConfigError(f"{folder} holds no usable certificate authority: {problem}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{key_path} is not an elliptic-curve key")
        return certificate, key
    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("Eyeline development CA")
    builder = _builder(name, name, key.public_key(), key.public_key(), _CA_LASTS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(certificates=True), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    _write_key(key_path, key)
    write_private(path, _pem(certificate), 0o644)
    return certificate, key


def _issue(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    files: Files,
    subject: x509.Name,
    names: Sequence[str],
    *,
    purpose: x509.ObjectIdentifier,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(subject, ca.subject, key.public_key(), ca_key.public_key(), _CERTIFICATE_LASTS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if names:
        alternative = x509.SubjectAlternativeName([_general_name(name) for name in names])
        builder = builder.add_extension(alternative, critical=False)
    _write_key(files.key, key)
    write_private(files.certificate, _pem(builder.sign(ca_key, hashes.SHA256())), 0o644)


def _still_good(files: Files, ca: x509.Certificate, names: Sequence[str]) -> bool:
    try:
        found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        serialization.load_pem_private_key(files.key.read_bytes(), None)
        found.verify_directly_issued_by(ca)
        listed = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001  # whatever is wrong with it, a new one mends it
        return False
    wanted = {_general_name(name) for name in names}
    return wanted <= set(listed) and found.not_valid_after_utc - datetime.now(UTC) > _RENEW_BEFORE


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    lasts: timedelta,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID_SINCE)
        .not_valid_after(now + lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str, organization: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]
    if organization is not None:
        parts.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(parts)


def _general_name(name: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(path, pem.decode())
