"""Two seconds of red and silence, pushed by FFmpeg's own WHIP muxer: python whip_push.py URL TOKEN SECONDS.

A process of its own: the muxer waits for the server's answer with Python's lock held. FFmpeg's own certificate is
on secp224r1, which OpenSSL refuses: it is given one on prime256v1 (docs/obs.md).
"""

from __future__ import annotations

import datetime
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate on prime256v1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "whip")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    written = folder / "cert.pem", folder / "key.pem"
    written[0].write_bytes(certificate.public_bytes(pem))
    kind = serialization.PrivateFormat.TraditionalOpenSSL
    written[1].write_bytes(key.private_bytes(pem, kind, serialization.NoEncryption()))
    return written


def push(url: str, token: str, seconds: float, folder: Path) -> None:
    certificate, key = write_certificate(folder)
    options = {"cert_file": str(certificate), "key_file": str(key), "authorization": token}
    with av.open(url, "w", format="whip", options=options) as sink:
        video = sink.add_stream(
            "libx264", rate=30, options={"preset": "ultrafast", "tune": "zerolatency", "bf": "0", "g": "30"}
        )
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        video.profile = "Baseline"
        audio = sink.add_stream("libopus", rate=48_000, layout="stereo")
        image = np.full((240, 320, 3), (200, 40, 40), np.uint8)
        start, sound = time.monotonic(), 0
        for number in range(round(30 * seconds)):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = number
            sink.mux(video.encode(picture))
            while sound * 30 <= (number + 1) * 48_000:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 1920), np.int16), format="s16", layout="stereo"
                )
                silence.sample_rate, silence.pts = 48_000, sound
                sink.mux(audio.encode(silence))
                sound += 960
            time.sleep(max(0.0, start + (number + 1) / 30 - time.monotonic()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        push(sys.argv[1], sys.argv[2], float(sys.argv[3]), Path(scratch))
