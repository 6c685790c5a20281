"""The laboratory's policy loses, delays and doubles as it was told, and its relay carries real sessions."""

import asyncio
import itertools
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from client import Client, Tone, serving, until, within
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MonotonicClock
from penstock.pipeline.errors import GraphError
from penstock.pipeline.stage import StageError
from penstock.transport.impairment import REORDER_MS, Conditions, Link, Step, parse_share, read
from penstock.transport.netlab import Netlab, read_file, serve
from penstock.transport.relay import with_candidate


@settings(max_examples=50, deadline=None)
@given(
    loss=st.floats(0, 1),
    burst=st.floats(1, 8),
    jitter=st.floats(0, 50),
    rate=st.sampled_from([0, 100_000, 2_000_000]),
    reorder=st.floats(0, 1),
    duplicate=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_each_datagram_arrives_or_is_counted_as_lost_and_the_seed_decides(
    loss: float, burst: float, jitter: float, rate: int, reorder: float, duplicate: float, seed: int
):
    conditions = Conditions(
        loss=loss, burst=burst, jitter_ms=jitter, rate_bps=rate, reorder=reorder, duplicate=duplicate
    )
    links = [Link(conditions, seed=seed), Link(conditions, seed=seed)]
    fates = [[link.offer(5.0 * k, 1000) for k in range(100)] for link in links]
    assert fates[0] == fates[1]
    counts = links[0].counts
    assert counts["offered"] == 100 == counts["delivered"] + counts["lost"] + counts["queue"]
    assert sum(map(len, fates[0])) == counts["delivered"] + counts["duplicated"]
    assert all(at >= 5.0 * k for k, ats in enumerate(fates[0]) for at in ats)


def test_jitter_keeps_the_order_and_reordering_breaks_it():
    calm = Link(Conditions(jitter_ms=50, delay_ms=10), seed=1)
    arrivals = [calm.offer(float(k), 100)[0] for k in range(200)]
    assert arrivals == sorted(arrivals)
    assert max(b - a for a, b in itertools.pairwise(arrivals)) > 1
    wild = Link(Conditions(reorder=0.1), seed=1)
    late = [wild.offer(float(k), 100)[0] - k for k in range(200)]
    assert set(late) == {0.0, REORDER_MS}


@pytest.mark.parametrize(("loss", "burst"), [(0.05, 1.0), (0.05, 4.0), (0.3, 8.0)])
def test_bursts_have_the_asked_share_and_length(loss: float, burst: float):
    link = Link(Conditions(loss=loss, burst=burst), seed=3)
    lost = [not link.offer(float(k), 100) for k in range(100_000)]
    runs = [len(list(run)) for gone, run in itertools.groupby(lost) if gone]
    assert sum(lost) / len(lost) == pytest.approx(loss, rel=0.12)
    assert sum(runs) / len(runs) == pytest.approx(max(burst, 1 / (1 - loss)), rel=0.12)


def test_a_rate_delays_then_overflows_its_queue():
    link = Link(Conditions(rate_bps=800_000, queue_ms=50))
    fates = [link.offer(0.0, 972) for _ in range(20)]  # 10 ms each with headers
    assert [at for ats in fates for at in ats] == pytest.approx([10.0 * (k + 1) for k in range(6)])
    assert link.counts["queue"] == 14
    assert link.offer(1000.0, 972) == pytest.approx([1010.0])


def test_a_script_changes_the_network_in_time():
    up, down = read(
        {
            "up": {"delay": "25ms", "loss": "0%"},
            "script": [
                {"at": "1s", "up": {"blackout": True}},
                {"at": "2s", "up": {"blackout": False, "hold": True}},
                {"at": "2.5s", "up": {"hold": False}, "down": {"delay": "5ms"}},
            ],
        }
    )
    assert up.offer(0, 10) == [25]
    assert up.offer(1500, 10) == []
    held = up.offer(2000, 10) + up.offer(2400, 10)
    assert held == pytest.approx([2500, 2500], abs=0.01)
    assert held[0] < held[1], "in order"
    assert up.offer(2600, 10) == [2625]
    assert (down.offer(0, 10), down.offer(2600, 10)) == ([0], [2605])
    assert Link(Conditions(), [Step(0, {"hold": True})]).offer(10, 10) == [1000]


def test_a_script_that_begins_anew_delays_nothing():
    # once a packet before the restart held up all after it for as long as the relay had been there
    link = Link(Conditions(delay_ms=5), [Step(3500, {"blackout": True})])
    assert link.offer(3000, 100) == [3005]
    link.restart(3000)
    assert link.offer(10, 100) == [pytest.approx(15)]
    assert link.offer(3600, 100) == []


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"up": {"loss": "often"}}, "'often' is not a share; write 5% or 0.05"),
        ({"up": {"delay": "25"}}, "'25' is not a duration"),
        ({"sideways": {}}, "sideways"),
        ({"script": [{"up": {}}]}, "script.0.at"),
    ],
)
def test_a_fault_in_a_description_is_named(written: dict[str, object], words: str):
    with pytest.raises(StageError, match=words.replace("(", r"\(")):
        read(written)


def test_every_fault_of_a_file_is_told_with_its_place(tmp_path: Path):
    file = tmp_path / "bad.yaml"
    file.write_text(
        """up: {los: 5%, delay: 25}
down: {loss: often}
script:
  - {at: 10s, up: {blackout: maybe}}
  - {down: {rate: 2M}}
  - {at: soon}
sideways: 1
"""
    )
    with pytest.raises(GraphError) as caught:
        read_file(file)
    told = [line.removeprefix(f"{file}:") for line in str(caught.value).splitlines()]
    for place, words in (
        ("1:6: ", "'up' has no key 'los'; did you mean 'loss'? accepted: loss, burst, delay"),
        ("1:15: ", "'up': delay: "),
        ("2:8: ", "down.loss: 'often' is not a share; write 5% or 0.05"),
        ("4:20: ", "'up': blackout: "),
        ("5:5: ", "a step says when: at: 10s"),
        ("6:6: ", "'soon'"),
        ("7:1: ", "a network has no key 'sideways'; accepted: up, down, script"),
    ):
        assert any(line.startswith(place) and words in line for line in told), (place, told)
    file.write_text("up: {loss: 5%, delay: 25ms}\nscript:\n  - {at: 10s, up: {blackout: true}}\n")
    up, _ = read(read_file(file))
    assert up.conditions.loss == 0.05


def test_shares():
    assert parse_share("5%") == 0.05
    assert parse_share("0.05") == 0.05
    with pytest.raises(ValueError, match="120%"):
        parse_share("120%")


def test_an_sdp_names_the_relay_alone():
    sdp = "v=0\r\nm=audio 9 X 0\r\na=candidate:1 1 udp 1 10.0.0.1 5 typ host\r\na=ice-ufrag:x\r\na=ice-pwd:y\r\n"
    told = with_candidate(sdp, "127.0.0.1", 4242)
    assert told.count("a=candidate:") == 1
    assert "a=candidate:1 1 udp 2130706431 127.0.0.1 4242 typ host\r\na=end-of-candidates\r\n" in told
    assert "10.0.0.1" not in told


@pytest.mark.net
def test_a_session_through_the_laboratory_takes_its_relay():
    async def main() -> None:
        async with serving() as server:
            lab = Netlab(server.url, {"up": {"delay": "5ms"}, "down": {"loss": "1%"}}, MonotonicClock())
            runner = web.AppRunner(lab.app(), access_log=None, shutdown_timeout=0.5)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            client = Client()
            client.pc.addTrack(Tone())
            await client.connect(url)
            await within(client.tracks["audio"].recv())
            (relay,) = lab.relays
            assert relay.up.counts["delivered"] > 5
            assert relay.down.counts["offered"] > 5
            assert not relay.is_idle(10**9)
            async with aiohttp.ClientSession() as http:
                async with http.get(f"{url}/health") as health:
                    assert (await health.json())["sessions"] == 1
                async with http.get(f"{url}/nothing/there") as refused:
                    assert refused.status == 404
                async with http.post(f"{url}/session", data=b"v=0 garbage") as refused:
                    assert refused.status == 415
            await client.pc.close()
            await until(lambda: not server.sessions.live)
            await runner.cleanup()

    asyncio.run(main())


@pytest.mark.net
def test_a_server_that_is_not_there_is_named(caplog: pytest.LogCaptureFixture):
    async def main() -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        laboratory = asyncio.create_task(serve("http://127.0.0.1:1", {}, port=0, on_ready=ready.set_result))
        url = await within(ready)
        async with (
            aiohttp.ClientSession() as http,
            http.get(url) as answer,
        ):
            assert answer.status == 502
            assert "http://127.0.0.1:1 does not answer" in await answer.text()
        laboratory.cancel()
        with pytest.raises(StageError, match="'ftp://x' is not a server's URL"):
            Netlab("ftp://x", {}, MonotonicClock())
        with pytest.raises(
            StageError, match="--port 8090: http://localhost:8090 would be the laboratory itself"
        ):
            await serve("http://localhost:8090", {}, port=8090)
        assert "http://127.0.0.1:1 does not answer: Connection refused" in caplog.text

    asyncio.run(main())
