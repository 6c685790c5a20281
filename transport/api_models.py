"""What the HTTP API takes and gives, as models: they check bodies and make the OpenAPI description."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .desk import MAX_TEXT


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Offer(BaseModel):
    """An SDP offer. With `resume` the client comes back to its session over another connection."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    sdp: str
    type: Literal["offer"] = "offer"
    graph: str | None = Field(
        default=None, description="its name, as in GET /graphs; the default one when left out"
    )
    resume: str | None = Field(
        default=None, max_length=128, description="the token of the answer that opened it"
    )
    after: int = Field(default=0, ge=0, description="the number `n` of the last words that the client has")


class StartGraph(_In):
    """Start a graph that needs no client."""

    graph: str = Field(max_length=64, description="its name, as in GET /graphs")
    source: str = Field(
        default="",
        max_length=2048,
        description="what its file.in reads; the server's allow_source names what it may be",
    )


class NodeParams(_In):
    """Change live parameters of one node; all or nothing."""

    node: str = Field(max_length=64)
    values: dict[str, Any] = Field(max_length=64)


class Line(_In):
    """One line of text."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)


class Interrupt(_In):
    """Stop what is under way in a scope; in all scopes when none is named."""

    scope: str | None = Field(default=None, max_length=64)


class Error(BaseModel):
    error: str = Field(description="what is wrong and what is accepted, in words")


class Answer(BaseModel):
    session: str
    sdp: str
    type: Literal["answer"]
    resume: str = Field(default="", description="with it the client may come back for a while")
    resumed: bool = False


class IceServer(BaseModel):
    urls: list[str]
    username: str = ""
    credential: str = ""


class IceServers(BaseModel):
    iceServers: list[IceServer] = Field(description="as RTCPeerConnection takes them")
    ttl_s: int = Field(description="how long the credentials last")


class Nothing(BaseModel):
    """{}"""


class Done(BaseModel):
    ok: Literal[True] = True


class SessionRow(BaseModel):
    id: str
    graph: str
    kind: Literal["client", "headless"]
    state: str
    remote: str
    up_s: float
    restarts: int
    viewers: int = Field(description="who watch it by WHEP, beside its own client")


class SessionList(BaseModel):
    sessions: list[SessionRow]


class SessionDetail(SessionRow):
    nodes: list[dict[str, Any]] = Field(description="name, use, params, schema (JSON Schema), live")


class Started(BaseModel):
    session: str


class ParamValues(BaseModel):
    node: str
    params: dict[str, Any]


class GraphRow(BaseModel):
    name: str
    title: str
    about: str
    default: bool
    takes: list[Literal["audio", "text", "video"]] = Field(description="what it reads of a client")
    gives: list[Literal["audio", "text", "video"]] = Field(description="what it sends to one")
    captions: bool = Field(description="it sends what it hears a client say as text")
    error: str = Field(
        description="why it could not start when last tried; empty when nothing is known against it"
    )


class GraphList(BaseModel):
    graphs: list[GraphRow]


class GraphDetail(GraphRow):
    slo_ms: dict[str, float]
    nodes: list[dict[str, Any]] = Field(description="name, use, inputs, outputs, params, schema, budget_ms")


class ModelRow(BaseModel):
    name: str
    stage: str = Field(description="the stage that takes it")
    about: str
    licence: str
    gb: float
    here: bool = Field(description="pulled, with `penstock models pull`")


class ModelList(BaseModel):
    models: list[ModelRow]


class Figures(BaseModel):
    nodes: list[dict[str, Any]]
    pools: dict[str, Any] = Field(description="by name, of all sessions together")
    session: dict[str, Any]


class Health(BaseModel):
    status: str
    sessions: int | None = Field(
        default=None, description="told to those with a token, where tokens are asked for"
    )
    parked: int | None = Field(default=None, description="sessions whose client is away")
    broken: dict[str, str] | None = Field(
        default=None, description="of /health/ready: graphs that cannot start, and why; the others can"
    )
