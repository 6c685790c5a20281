"""What ended sessions used does not stay, also while others go on."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Generator

import pytest
from client import Client, Tone, serving, until
from penstock.transport import memory
from penstock.transport.memory import Tidier


class Ring:
    """Refers to itself, as a session's objects do to each other."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def by_hand() -> Generator[None]:
    """The collector does not run by itself."""
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


def ring() -> weakref.ref[Ring]:
    return weakref.ref(Ring())


@pytest.mark.usefixtures("by_hand")
def test_what_a_session_leaves_goes_while_others_run_and_what_was_set_aside_when_none_does(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(memory, "AFTER_S", 0.01)

    async def main() -> None:
        busy = True
        looks = 0

        def seen(phase: str, info: dict[str, int]) -> None:
            nonlocal looks
            looks += phase == "start"

        tidier = Tidier(lambda: busy)
        held = Ring()
        before = weakref.ref(held)
        tidier.begin()
        del held
        gc.callbacks.append(seen)
        try:
            after = ring()
            for _ in range(20):
                tidier.ended()
            await until(lambda: looks > 0)
            await asyncio.sleep(0.05)
            assert (after(), looks) == (None, 1), "one look for sessions that end together"
            assert before() is not None, "set aside: no look takes time for it"
            busy = False
            tidier.ended()
            await until(lambda: before() is None)
        finally:
            gc.callbacks.remove(seen)
        tidier.end()
        assert gc.get_freeze_count() == 0
        tidier.ended()
        left = ring()
        await asyncio.sleep(0.05)
        assert left() is not None, "nothing is done once the server has ended"

    asyncio.run(main())


@pytest.mark.net
@pytest.mark.usefixtures("by_hand")
def test_a_session_that_has_ended_is_gone_while_another_goes_on():
    async def main() -> None:
        async with serving() as server:
            server.tidier.begin()
            clients = [Client(), Client()]
            for client in clients:
                client.pc.addTrack(Tone())
                await client.connect(server.url)
            stays, goes = clients
            gone = weakref.ref(server.sessions.live[goes.session])
            graph = weakref.ref(server.sessions.live[goes.session].session)
            await server.sessions.live[goes.session].close("test")
            await until(lambda: gone() is None and graph() is None)
            assert stays.session in server.sessions.live
            await asyncio.gather(*(client.pc.close() for client in clients))

    asyncio.run(main())
