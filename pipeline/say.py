"""Put words into a running graph from outside: `say` speaks them, as if the graph's agent had.

They go out on the port that feeds the voice, so captions and pages see them as any reply.
"""

from __future__ import annotations

from .frame import AudioFrame, TokenFrame
from .session import Session
from .stage import StageError

UTTERANCES = 1 << 30  # far from the agent's own numbers: a delta must not join another's utterance


def voice_source(session: Session) -> tuple[str, str] | None:
    """(node, port) of the text that the first voice of the graph speaks."""
    for node in session.plan.nodes.values():
        speaks = any(
            issubclass(port.type, AudioFrame) and port.origin == "generated"
            for port in node.cls.ports.outputs.values()
        )
        for edge in node.inputs if speaks else ():
            if TokenFrame in node.cls.ports.inputs[edge.port].types:
                return edge.source_node, edge.source_port
    return None


def say(session: Session, text: str, number: int) -> None:
    """Speak `text` now. number: a new one each time. Raises: StageError when the graph has no voice."""
    source = voice_source(session)
    if source is None:
        raise StageError(f"graph {session.plan.name!r} has no voice that reads text: nothing can be said")
    node, port = source
    scope = session.plan.nodes[node].scope
    frame = TokenFrame(
        pts=session.clock.now(), epoch=session.epochs.get(scope, 0), text=text, utterance=UTTERANCES + number
    )
    session.runners[node].out.post(port, frame)
