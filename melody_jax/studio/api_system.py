"""/api/info, /healthz and /metrics: what the studio plays, whether it works, and what it has done."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from melody_jax import __version__
from melody_jax.models.functional import count
from melody_jax.studio.api_common import Studio
from melody_jax.studio.api_requests import MAX_COUNT
from melody_jax.studio.jobs import JobQueue
from melody_jax.studio.machine import machine_memory, memory_bytes
from melody_jax.studio.security import App, Message, Receive, Scope, Send


class SystemApi:
    """The routes about the studio itself."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.registry = CollectorRegistry()
        self.registry.register(QueueCollector(studio.queue))
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "melody_studio_http_requests",
            "Answered requests of the API",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.parameters = count(studio.queue.system.params)
        self.router = APIRouter(tags=["studio"])
        self.router.add_api_route("/info", self.info, methods=["GET"])

    def info(self) -> dict[str, Any]:
        """The release that plays, the memory and speed of this machine, the length of the queue, and the limits.

        `real_time_factor` is seconds of music per second of work, of the last take or of a warm-up; null before.
        """
        queue = self.studio.queue
        stats = queue.stats()
        return {
            "version": __version__,
            "release": queue.release.name,
            "system": queue.release.system,
            "distilled": queue.release.distilled,
            "model_hash": queue.system.hash,
            "sample_rate": queue.system.sample_rate,
            "channels": queue.system.channels,
            "window_seconds": queue.system.window_seconds,
            "parameters": self.parameters,
            "memory_bytes": memory_bytes(),
            "machine_memory_bytes": machine_memory(),
            "real_time_factor": stats.real_time_factor,
            "warm": stats.warm,
            "queued": stats.queued,
            "running": stats.running,
            "takes": len(queue.project),
            "limits": {"count": MAX_COUNT, **dataclasses.asdict(queue.limits), **self.studio.limits},
        }

    def healthz(self) -> JSONResponse:
        """Whether the worker runs: 200, or 503."""
        alive = self.studio.queue.stats().alive
        return JSONResponse({"status": "ok" if alive else "the worker has ended"}, 200 if alive else 503)

    def metrics(self) -> Response:
        """Counts in Prometheus' text format."""
        data = generate_latest(self.registry)
        return Response(data, media_type="text/plain; version=0.0.4; charset=utf-8")


class QueueCollector(Collector):
    """The counts of a queue as metrics."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue

    def collect(self) -> Iterable[Metric]:
        """The metrics as they are now."""
        stats = self.queue.stats()
        jobs = CounterMetricFamily("melody_studio_jobs", "Jobs that have ended, by how", labels=["state"])
        for state in ("done", "failed", "cancelled", "refused"):
            jobs.add_metric([state], getattr(stats, state))
        yield jobs
        gauges = {
            "queued": ("Jobs that wait", stats.queued),
            "running": ("Jobs that run", stats.running),
            "warm": ("Whether the programs of the warm-up are compiled", float(stats.warm)),
            "takes": ("Takes of the project", len(self.queue.project)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"melody_studio_{name}", text, value)
        counters = {
            "music_seconds": ("Length of all takes that were made", stats.music_seconds),
            "work_seconds": ("Time that they took", stats.work_seconds),
        }
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"melody_studio_{name}", text, value)


class CountRequests:
    """ASGI middleware that counts answers by method, route and status; the ids in an address are no labels."""

    def __init__(self, app: App, counter: Counter) -> None:
        self.app = app
        self.counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request on, and counts its answer."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                self.counter.labels(scope["method"], route, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)
