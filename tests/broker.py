"""A real Mosquitto for tests, with TLS by a certificate authority of the test's own where that is asked for."""

from __future__ import annotations

import asyncio
import datetime
import getpass
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
from client import until
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin")


class Authority:
    """Signs certificates for a day. mutual: the broker asks its clients for one."""

    def __init__(self, folder: Path, *, mutual: bool = False) -> None:
        self.mutual = mutual
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"test {id(self)}")])
        self._certificate = self._sign(self._name, self._key, authority=True)
        self.path = folder / f"ca-{id(self)}.pem"
        self.path.write_bytes(self._certificate.public_bytes(Encoding.PEM))

    def issue(self, name: str, folder: Path) -> tuple[Path, Path]:
        """Paths of a certificate for that host or user, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        cert_path, key_path = folder / f"{name}.crt", folder / f"{name}.key"
        cert_path.write_bytes(self._sign(subject, key).public_bytes(Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        )
        return cert_path, key_path

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        )
        return made.sign(self._key, hashes.SHA256())


class RealBroker:
    """A Mosquitto that can be stopped and started again; it remembers sessions and retained messages."""

    def __init__(self, folder: Path, authority: Authority | None = None) -> None:
        if MOSQUITTO is None:
            pytest.skip("needs mosquitto (package mosquitto)")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        passwords = folder / "passwords"
        tool = shutil.which("mosquitto_passwd")
        assert tool is not None
        subprocess.run(
            [tool, "-b", "-c", str(passwords), "penstock", "s3cret"], check=True, capture_output=True
        )
        passwords.chmod(0o644)
        self.authority = authority
        tls = ""
        if authority is not None:
            cert, key = authority.issue("localhost", folder)
            tls = f"cafile {authority.path}\ncertfile {cert}\nkeyfile {key}\nrequire_certificate {str(authority.mutual).lower()}\n"
        self.config = folder / "mosquitto.conf"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\n{tls}allow_anonymous false\npassword_file {passwords}\n"
            f"persistence true\npersistence_location {folder}/\nlog_dest none\nuser {getpass.getuser()}\nmax_queued_messages 0\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        if self.authority is None:
            return f"mqtt://penstock:s3cret@127.0.0.1:{self.port}/house"
        return f"mqtts://penstock:s3cret@localhost:{self.port}/house?ca={self.authority.path}"

    async def start(self) -> None:
        assert MOSQUITTO is not None
        self.process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
            [MOSQUITTO, "-c", str(self.config)], stderr=subprocess.DEVNULL
        )

        def listens() -> bool:
            with socket.socket() as s:
                return s.connect_ex(("127.0.0.1", self.port)) == 0

        await until(listens)

    async def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            await asyncio.to_thread(self.process.wait, 10)
            self.process = None

    def client(self, **more: Any) -> aiomqtt.Client:
        return aiomqtt.Client("127.0.0.1", self.port, username="penstock", password="s3cret", **more)
