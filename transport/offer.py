"""An SDP offer from outside, looked at before any of it is acted on."""

from __future__ import annotations

from aiortc.sdp import SessionDescription

MAX_SECTIONS = 8
MAX_CANDIDATES = 64  # a section; each costs sockets and checks
DIGESTS = ("sha-256", "sha-384", "sha-512")


class OfferError(ValueError):
    """The offer cannot be used; says what is wrong with it."""


def check_offer(sdp: str) -> SessionDescription:
    """Parse and check. Raises: OfferError."""
    if not sdp.startswith("v=0"):
        raise OfferError("the SDP does not begin with v=0")
    try:
        offer = SessionDescription.parse(sdp)
    except Exception as e:
        raise OfferError(f"the SDP cannot be read: {type(e).__name__}: {str(e)[:120]}") from e
    if not offer.media:
        raise OfferError("the SDP has no media section (m= line)")
    if len(offer.media) > MAX_SECTIONS:
        raise OfferError(f"the SDP has {len(offer.media)} media sections; at most {MAX_SECTIONS} are taken")
    mids = [m.rtp.muxId for m in offer.media]
    if len(set(mids)) != len(mids) or not all(mids):
        raise OfferError("each media section needs an a=mid of its own")
    for media in offer.media:
        where = f"media section {media.rtp.muxId!r}"
        if media.kind not in ("audio", "video", "application"):
            raise OfferError(f"{where}: kind {media.kind!r}; audio, video and application are taken")
        if media.ice is None or not media.ice.usernameFragment or not media.ice.password:
            raise OfferError(f"{where}: a=ice-ufrag and a=ice-pwd are missing")
        if media.dtls is None or not media.dtls.fingerprints:
            raise OfferError(f"{where}: a=fingerprint is missing")
        if not any(f.algorithm.lower() in DIGESTS for f in media.dtls.fingerprints):
            raise OfferError(f"{where}: a=fingerprint needs one of {', '.join(DIGESTS)}")
        if len(media.ice_candidates) > MAX_CANDIDATES:
            raise OfferError(f"{where}: more than {MAX_CANDIDATES} candidates")
        if media.kind == "application" and media.profile != "DTLS/SCTP" and media.sctp_port is None:
            raise OfferError(f"{where}: a=sctp-port is missing")
    return offer
