"""Peers and wires. The catalogue maps `use:` names of live ends, sources and sinks to classes."""

CATALOG = {
    "webrtc.in": "webrtc_stages:WebRtcIn",
    "webrtc.out": "webrtc_stages:WebRtcOut",
    "file.in": "file_in:FileIn",
    "file.out": "file_out:FileOut",
    "media.record": "record_stage:Record",
    "synthetic.in": "synthetic:SyntheticIn",
}
