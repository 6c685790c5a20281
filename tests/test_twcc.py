"""Arrival reports say, byte for byte as the draft has it, what arrived when."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS
from penstock.transport.twcc import INTERVAL, MAX_SPAN, Arrivals


def parse(report: bytes) -> tuple[int, int, list[int | None], int]:
    """(first number, reference time in ns, arrival in ns of each number or None, how many numbers)."""
    head, kind, length = struct.unpack("!BBH", report[:4])
    assert (head & 0xDF, kind, (length + 1) * 4) == (0x8F, 205, len(report))
    if head & 0x20:
        report = report[: -report[-1]]
    base, count = struct.unpack("!HH", report[12:16])
    reference = int.from_bytes(report[16:19], "big") * 64 * MS
    symbols: list[int] = []
    at = 20
    while len(symbols) < count:
        (chunk,) = struct.unpack("!H", report[at : at + 2])
        at += 2
        if not chunk & 0x8000:
            symbols += [chunk >> 13] * (chunk & 0x1FFF)
        else:
            assert chunk & 0x4000, "two-bit symbols"
            symbols += [chunk >> 12 - 2 * k & 3 for k in range(7)]
    assert not any(symbols[count:])
    clock = reference
    arrivals: list[int | None] = []
    for symbol in symbols[:count]:
        if symbol == 0:
            arrivals.append(None)
            continue
        size, form = (1, "!B") if symbol == 1 else (2, "!h")
        clock += struct.unpack(form, report[at : at + size])[0] * 250_000
        at += size
        arrivals.append(clock)
    assert at == len(report)
    return base, reference, arrivals, count


def test_a_report_is_as_the_draft_draws_it():
    arrivals = Arrivals()
    for number, at in ((10, 128 * MS), (11, 129 * MS), (13, 300 * MS)):
        arrivals.received(number, at, 7)
    assert arrivals.report(400 * MS, 5) == bytes.fromhex(
        "afcd0006"  # version 2, padded, format 15, type 205, 7 words
        "00000005" "00000007" "000a" "0004"  # from, about, first number, how many
        "000002" "00"  # reference time 2·64 ms, report 0
        "d480"  # two-bit symbols: small, small, none, large
        "00" "04" "02ac"  # 0, 4·250 µs, 684·250 µs
        "0002"  # padding
    )  # fmt: skip


def test_nothing_to_tell_is_no_report():
    arrivals = Arrivals()
    assert arrivals.due is None
    assert arrivals.report(0, 1) is None
    arrivals.received(1, 5 * MS, 1)
    assert arrivals.due == 5 * MS + INTERVAL
    assert arrivals.report(60 * MS, 1)
    assert arrivals.due is None
    arrivals.received(2, 70 * MS, 1)
    assert arrivals.due == 60 * MS + INTERVAL


def test_losses_between_two_reports_are_told():
    arrivals = Arrivals()
    arrivals.received(65534, 0, 1)
    arrivals.report(0, 1)
    arrivals.received(1, 10 * MS, 1)
    report = arrivals.report(50 * MS, 1)
    assert report is not None
    base, _, told, _ = parse(report)
    assert (base, told) == (65535, [None, None, 10 * MS])


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 65535),
    st.lists(st.tuples(st.sampled_from([1, 1, 1, 1, 2, 3, 40, -1, -2]), st.integers(0, 9000)), max_size=150),
    st.integers(1, 40),
)
def test_any_arrivals_are_reported_once_and_exactly(first: int, steps: list[tuple[int, int]], every: int):
    arrivals = Arrivals()
    came: dict[int, int] = {}
    told: dict[int, int] = {}
    number, now = first, 1000 * MS
    for k, (step, wait_us) in enumerate(steps):
        number += step
        now += wait_us * 1000
        if number % 65536 not in {n % 65536 for n in came}:
            came[number] = now
            arrivals.received(number % 65536, now, 1)
        if k % every == 0 and (report := arrivals.report(now, 1)) is not None:
            base, _, times, _ = parse(report)
            for j, at in enumerate(times):
                if at is not None:
                    assert (base + j) % 65536 not in told
                    told[(base + j) % 65536] = at
    if (report := arrivals.report(now, 1)) is not None:
        base, _, times, _ = parse(report)
        assert len(report) < 1300
        told |= {(base + j) % 65536: at for j, at in enumerate(times) if at is not None}
    assert set(told) == {n % 65536 for n in came}
    assert all(abs(told[n % 65536] - at) <= 125_000 for n, at in came.items())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 65535), st.integers(0, 10**11)), max_size=300))
def test_hostile_numbers_stay_bounded(packets: list[tuple[int, int]]):
    arrivals = Arrivals()
    for number, at in packets:
        arrivals.received(number, at, 1)
    report = arrivals.report(10**12, 1)
    assert (report is None) == (not packets)
    assert report is None or len(report) < 20 + 3 * MAX_SPAN
