"""Sound and picture captured together get the same time, whatever way each took."""

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND
from penstock.transport.capture_clock import CaptureClock, MinWindow, SenderClock
from penstock.transport.reception import Reception

WALL = 1_700_000_000 * SECOND  # their clock when ours is 0


def run(audio_delay: int, video_delay: int, *, reports: bool, ppm: int = 0) -> list[int]:
    """10 s of both; returns video pts − audio pts of what was captured at the same moment, ns."""
    sender = SenderClock()
    audio, video = CaptureClock(sender), CaptureClock(sender)
    skews: list[int] = []
    for k in range(500):
        captured = k * 20 * MS
        media_audio = captured * (1_000_000 + ppm) // 1_000_000 + 7 * SECOND  # each track has its own origin
        media_video = captured + 3 * SECOND
        if reports and k % 50 == 10:
            for track, media, delay in ((audio, media_audio, audio_delay), (video, media_video, video_delay)):
                track.report(WALL + captured, media, captured + delay)
        audio.heard(media_audio, captured + audio_delay + k % 7 * MS)
        video.heard(media_video, captured + video_delay + k % 5 * 3 * MS)
        pts = audio.at(media_audio)
        assert pts <= captured + audio_delay + k % 7 * MS
        skews.append(video.at(media_video) - pts)
    return skews


def test_reports_take_the_skew_between_tracks_away():
    assert max(abs(s) for s in run(10 * MS, 90 * MS, reports=False)[100:]) >= 79 * MS
    assert max(abs(s) for s in run(10 * MS, 90 * MS, reports=True)[100:]) <= MS


def test_a_drifting_sound_card_keeps_within_the_step():
    assert max(abs(s) for s in run(10 * MS, 60 * MS, reports=True, ppm=100)[100:]) <= 10 * MS


def test_tracks_without_a_clock_in_common_keep_their_own():
    sender = SenderClock()
    a, b = CaptureClock(sender), CaptureClock(sender)
    a.report(WALL, 0, 0)
    b.report(WALL + 3600 * SECOND, 0, 0)
    a.heard(0, 10 * MS)
    b.heard(0, 20 * MS)
    assert (a.at(0), b.at(0)) == (10 * MS, 20 * MS)
    assert a.is_synchronized


def test_a_source_slower_than_its_timestamps_does_not_look_ever_older():
    """A busy machine's camera: 10 % fewer seconds in its timestamps than in the world."""
    for reports in (False, True):
        clock = CaptureClock()
        ages: list[int] = []
        for k in range(900):
            now, media = k * 33 * MS, k * 30 * MS
            if reports and k % 30 == 0:
                clock.report(WALL + now, media, now)
            clock.heard(media, now)
            ages.append(now - clock.at(media))
        assert max(ages) < 500 * MS, "the default `stale` of webrtc.in"


def test_a_slower_route_is_learned_and_a_faster_one_at_once():
    window = MinWindow()
    for k in range(100):
        window.add(50 * MS, k * 100 * MS)
    window.add(20 * MS, 10 * SECOND)
    assert window.value == 20 * MS
    for k in range(101, 250):
        window.add(50 * MS, k * 100 * MS)
    assert window.value == 50 * MS


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.booleans()), min_size=2, max_size=80))
def test_times_never_run_back(steps: list[tuple[int, bool]]):
    clock = CaptureClock()
    last = -1
    for k, (delay, report) in enumerate(steps):
        captured = k * 20 * MS
        if report:
            clock.report(WALL + captured + delay * MS // 10, captured, captured + delay * MS)
        clock.heard(captured, captured + delay * MS)
        pts = clock.at(captured)
        assert last <= pts
        assert pts <= captured + delay * MS or pts == last
        last = pts


def test_a_receiver_report_counts_as_rfc_3550_does():
    reception = Reception(90_000)
    for k in range(100):
        if k % 4:
            reception.add(65_536 + k, k * 3000, k * 33_333_333)
    reception.sender_report(0x0123456789ABCDEF, SECOND)
    report = reception.report(7, 2 * SECOND)
    assert (report.highest_sequence, report.packets_lost) == (99, 24)  # the first one sets the base
    assert report.fraction_lost == (24 << 8) // 99
    assert report.jitter <= 1
    assert (report.lsr, report.dlsr) == (0x456789AB, 65536)
    reception.add(65_536 + 100, 300_000, 100 * 33_333_333 + 10 * MS)
    later = reception.report(7, 3 * SECOND)
    assert later.fraction_lost == 0
    assert later.jitter == 56  # 900 ticks / 16
