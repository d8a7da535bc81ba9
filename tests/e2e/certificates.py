"""Certificates to sign with and to serve with, made anew each time."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pyhanko.keys import load_cert_from_pemder
from pyhanko.sign.signers import SimpleSigner
from pyhanko_certvalidator import ValidationContext


def signer_and_trust(folder: Path) -> tuple[SimpleSigner, ValidationContext]:
    """A signer, and the context that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pressrun's tests")])
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        ["data_encipherment", "key_agreement", "key_cert_sign", "crl_sign", "key_encipherment", "encipher_only"], False
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.KeyUsage(digital_signature=True, content_commitment=True, decipher_only=False, **usage), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    signer = SimpleSigner.load(str(folder / "key.pem"), str(folder / "certificate.pem"))
    trust = ValidationContext(trust_roots=[load_cert_from_pemder(str(folder / "certificate.pem"))])
    return signer, trust


@dataclass
class ServerCertificate:
    """What a server of localhost needs for TLS, and what its clients trust."""

    chain: Path
    key: Path
    authority: Path


def server_certificate(folder: Path) -> ServerCertificate:
    """A certificate for localhost, of an authority of its own."""
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pressrun's tests' authority")])

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    root = certificate(issuer, authority).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    leaf = (
        certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), server)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    files = ServerCertificate(folder / "server.pem", folder / "server.key", folder / "authority.pem")
    pem = serialization.Encoding.PEM
    files.chain.write_bytes(leaf.sign(authority, hashes.SHA256()).public_bytes(pem))
    files.authority.write_bytes(root.sign(authority, hashes.SHA256()).public_bytes(pem))
    files.key.write_bytes(server.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return files
