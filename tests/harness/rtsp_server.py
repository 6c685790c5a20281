"""An RTSP server for one client at a time: a transport stream as RTP payload 33, interleaved in the TCP connection.

Source: RFC 2326 sections 10 (methods) and 10.12 (interleaved data), RFC 2250 section 2 (MPEG-TS in RTP).
"""

from __future__ import annotations

import itertools
import socket
import struct
import threading
from pathlib import Path

TS = 188
PACKETS = 7  # of TS in one RTP packet
SDP = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=rtpmap:33 MP2T/90000\r\na=control:track\r\n"


class RtspServer:
    """Serves the .ts file `path` over and over, at `rate_bps`, until closed."""

    def __init__(self, path: Path, rate_bps: int = 2_000_000) -> None:
        self._data = path.read_bytes()
        self._pause_s = TS * PACKETS * 8 / rate_bps
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        self.url = f"rtsp://127.0.0.1:{self._listening.getsockname()[1]}/cam"

    def close(self) -> None:
        self._stopped.set()
        self._listening.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client:
                try:
                    self._talk(client)
                except OSError:
                    continue

    def _talk(self, client: socket.socket) -> None:
        file = client.makefile("rb")
        while line := file.readline():
            method = line.split()[0].decode()
            fields: dict[str, str] = {}
            while (row := file.readline().strip()) != b"":
                key, _, value = row.decode().partition(":")
                fields[key.lower()] = value.strip()
            more, body = "", ""
            if method == "DESCRIBE":
                body, more = SDP, f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n"
            elif method == "SETUP":
                more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            elif method == "OPTIONS":
                more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            head = f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\nSession: 1\r\n{more}\r\n"
            client.sendall(head.encode() + body.encode())
            if method == "PLAY":
                self._play(client)
                return

    def _play(self, client: socket.socket) -> None:
        step = TS * PACKETS
        starts = itertools.cycle(range(0, len(self._data) - step + 1, step))
        for number in itertools.count():
            at = next(starts)
            time = int(number * self._pause_s * 90_000) & 0xFFFFFFFF
            packet = struct.pack("!BBHII", 0x80, 33, number & 0xFFFF, time, 7) + self._data[at : at + step]
            client.sendall(struct.pack("!BBH", 0x24, 0, len(packet)) + packet)
            if self._stopped.wait(self._pause_s):
                return
