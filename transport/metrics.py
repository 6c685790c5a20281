"""`/metrics` for Prometheus, worked out when it is scraped: the data path only counts.

Labels are graph, node and broker, not session: their number is bounded by the graph files. What ended sessions
counted is added up, so that counters never fall.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..pipeline.clock import SECOND
from ..pipeline.pools import DevicePool
from ..pipeline.watchdog import LoopWatchdog
from .desk import Desk
from .headless import HeadlessSession
from .live_session import LiveSession
from .mqtt import MqttLink
from .viewers import Viewers

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TOTALS = {
    "frames": "Frames taken in",
    "drops": "Frames lost to full queues and gaps",
    "late": "Frames and rows past their deadline",
    "flushed": "Frames voided by a barge-in",
    "restarts": "Times the stage was restarted",
}


class Metrics(Collector):
    """pools: the daemon's, by name. watchdog: the one that watches its loop."""

    def __init__(
        self,
        desk: Desk,
        pools: Callable[[], Mapping[str, DevicePool]],
        watchdog: LoopWatchdog,
        viewers: Viewers,
    ) -> None:
        self.opened = 0
        self.refusals: Counter[int] = Counter()  # HTTP answers of 400 and above, by status
        self.links: Sequence[MqttLink] = ()
        self._desk = desk
        desk.on_opened.append(self._count)
        desk.on_closed.append(self._keep)
        self._pools = pools
        self._watchdog = watchdog
        self._viewers = viewers
        self._ended: Counter[tuple[str, str, str]] = Counter()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _count(self, _: LiveSession | HeadlessSession) -> None:
        self.opened += 1

    def _keep(self, live: LiveSession | HeadlessSession) -> None:
        """A session has ended: add its counts to the totals."""
        for row in live.session.stats()["nodes"]:
            for name in TOTALS:
                self._ended[(live.graph, row["name"], name)] += row[name]

    def collect(self) -> Iterator[Metric]:
        running = self._desk.running()
        per_graph = Counter(live.graph for live in running)
        sessions = GaugeMetricFamily("penstock_sessions", "Running sessions", labels=["graph"])
        for graph, n in per_graph.items():
            sessions.add_metric([graph], n)
        yield sessions
        yield CounterMetricFamily("penstock_sessions_opened", "Sessions opened", value=self.opened)
        yield GaugeMetricFamily(
            "penstock_viewers", "Who watch running sessions by WHEP", value=len(self._viewers.live)
        )
        yield from self._comings()
        yield from self._nodes(running)
        yield from self._loop()
        yield from self._pool_figures()
        if self.links:
            yield from self._brokers()

    def _comings(self) -> Iterator[Metric]:
        """Clients that were lost and came back, and requests that were refused."""
        sessions = self._desk.sessions
        parked = sum(bool(live.parked_at) for live in sessions.live.values())
        yield GaugeMetricFamily(
            "penstock_sessions_parked", "Sessions whose client is away and may come back", value=parked
        )
        yield CounterMetricFamily(
            "penstock_sessions_resumed", "Times a client came back", value=sessions.resumed
        )
        yield CounterMetricFamily(
            "penstock_sessions_evicted", "Parked sessions that gave way to new ones", value=sessions.evicted
        )
        refused = CounterMetricFamily(
            "penstock_http_refusals", "Requests refused, by status", labels=["status"]
        )
        for status, count in sorted(self.refusals.items()):
            refused.add_metric([str(status)], count)
        yield refused

    def _nodes(self, running: list[LiveSession | HeadlessSession]) -> Iterator[Metric]:
        labels = ["graph", "node"]
        totals = Counter(self._ended)
        fps: Counter[tuple[str, str]] = Counter()
        age: dict[tuple[str, str], float] = {}
        level: Counter[tuple[str, str]] = Counter()
        for live in running:
            for row in live.session.stats()["nodes"]:
                at = (live.graph, row["name"])
                fps[at] += row["fps"]
                level[at] = max(level[at], row["level"])
                age[at] = max(age.get(at, 0.0), row["age_p95_ms"])
                for name in TOTALS:
                    totals[(*at, name)] += row[name]
        rung = GaugeMetricFamily(
            "penstock_node_rung", "How far down its degrade ladder, the worst session", labels=labels
        )
        for at, value in level.items():
            rung.add_metric(at, value)
        yield rung
        rate = GaugeMetricFamily("penstock_node_fps", "Frames per second, all sessions", labels=labels)
        for at, value in fps.items():
            rate.add_metric(at, value)
        yield rate
        ages = GaugeMetricFamily(
            "penstock_node_age_p95_seconds",
            "Age of frames when taken, the worst session's p95",
            labels=labels,
        )
        for at, value in age.items():
            ages.add_metric(at, value / 1000)
        yield ages
        for name, about in TOTALS.items():
            family = CounterMetricFamily(f"penstock_node_{name}", about, labels=labels)
            for (graph, node, what), value in totals.items():
                if what == name:
                    family.add_metric([graph, node], value)
            yield family

    def _loop(self) -> Iterator[Metric]:
        watchdog = self._watchdog
        lag = watchdog.lag / SECOND
        yield GaugeMetricFamily("penstock_loop_lag_seconds", "How late the loop's last beat was", value=lag)
        longest = watchdog.longest / SECOND
        yield GaugeMetricFamily("penstock_loop_longest_block_seconds", "Longest block", value=longest)
        yield CounterMetricFamily("penstock_loop_blocks", "Times the loop was blocked", value=watchdog.blocks)
        late = "Times the loop was late as it had no processor or not the interpreter"
        yield CounterMetricFamily("penstock_loop_starved", late, value=watchdog.starved)

    def _brokers(self) -> Iterator[Metric]:
        figures = {name: Counter[str]() for name in ("connected", "waiting", "sent", "lost")}
        for link in self.links:
            where = f"{link.broker.host}:{link.broker.port}"
            for name, counts in figures.items():
                counts[where] += getattr(link, name)
        families: tuple[GaugeMetricFamily | CounterMetricFamily, ...] = (
            GaugeMetricFamily("penstock_mqtt_connected", "Connections to the broker", labels=["broker"]),
            GaugeMetricFamily("penstock_mqtt_waiting", "Messages that wait for it", labels=["broker"]),
            CounterMetricFamily("penstock_mqtt_sent", "Messages that it took", labels=["broker"]),
            CounterMetricFamily("penstock_mqtt_lost", "Messages that found no room", labels=["broker"]),
        )
        for family, counts in zip(families, figures.values(), strict=True):
            for where, value in counts.items():
                family.add_metric([where], value)
            yield family

    def _pool_figures(self) -> Iterator[Metric]:
        pools = {name: pool.stats() for name, pool in self._pools().items()}
        for key, about in (
            ("utilisation", "Share of what the device can do that rows took in the last seconds"),
            ("admitted", "Share of it that is promised to sessions"),
            ("waiting", "Rows and calls that wait"),
            ("restarts", "Worker processes that were replaced"),
        ):
            gauge = GaugeMetricFamily(f"penstock_pool_{key}", about, labels=["pool"])
            for name, stats in pools.items():
                gauge.add_metric([name], stats[key])
            yield gauge
        ends = CounterMetricFamily("penstock_pool_rows", "Rows by how they ended", labels=["pool", "end"])
        sizes = CounterMetricFamily(
            "penstock_pool_forwards", "Forwards by rows in one", labels=["pool", "rows"]
        )
        for name, stats in pools.items():
            for end, n in stats["rows"].items():
                ends.add_metric([name, end], n)
            for rows, n in stats["batches"].items():
                sizes.add_metric([name, rows], n)
        yield ends
        yield sizes
        labels = ["pool", "work", "figure"]
        family = GaugeMetricFamily("penstock_pool", "Counts of a pool; busy is in ns", labels=labels)
        for name, pool in self._pools().items():
            for work, stats in (("calls", pool.threads.stats), ("rows", pool.rows.stats)):
                figures: Mapping[str, object] = asdict(stats)
                for figure, value in figures.items():
                    if isinstance(value, int):
                        family.add_metric([name, work, figure], value)
        yield family
