"""What the page is told, as JSON."""

from __future__ import annotations

from pydantic import BaseModel


class Endpoint(BaseModel):
    """One that the repository publishes.

    Attributes:
        kind: "rank" or "recommend".
        model: name of the scorer behind it.
    """

    name: str
    kind: str
    model: str


class Customer(BaseModel):
    """bought: titles of what they took last, the latest first."""

    id: str
    bought: list[str]
    items: int


class Start(BaseModel):
    """What can be asked.

    Attributes:
        note: which data it is.
        examples: queries to begin with.
        no_customers: why none can be picked; "" where some can.
    """

    note: str
    endpoints: list[Endpoint]
    examples: list[str]
    customers: list[Customer]
    no_customers: str


class Item(BaseModel):
    """A product. about: brand, price and ratings in one line."""

    title: str
    about: str


class Times(BaseModel):
    """Milliseconds of one search; they add up to the whole.

    Attributes:
        client_ms: of the call, without what the server counts: the client, the network and the server's own passing on.
        queue_ms, compute_ms: over the endpoint's steps, as the server counts them; None where it counted nothing.
    """

    first_stage_ms: float
    client_ms: float
    queue_ms: float | None = None
    compute_ms: float | None = None


class Degraded(BaseModel):
    """Why this is not the full ranking.

    Attributes:
        step: as the client calls it, such as "first_stage".
        words: for a reader.
        reason: the client's.
    """

    step: str
    words: str
    reason: str


class Answer(BaseModel):
    """Both orders of one request.

    Attributes:
        model: the scorer that answered; "" where none did.
        items: of all candidates, by id.
        first_stage, ranked: item ids, best first. A filter may leave items out of the second.
        scores: of ``ranked``; None for an item that the server could not score.
    """

    model: str
    request_id: str
    degraded: Degraded | None
    items: dict[str, Item]
    first_stage: list[str]
    ranked: list[str]
    scores: list[float | None]
    times: Times


class Part(BaseModel):
    """A word, field or item of a history.

    Attributes:
        adds: to the score.
        rest: whether it stands for all weaker ones together.
    """

    label: str
    adds: float
    rest: bool = False


class Why(BaseModel):
    """A score in parts: ``score`` = ``baseline`` (nothing told) + the parts."""

    ranker: str
    score: float
    baseline: float
    parts: list[Part]
