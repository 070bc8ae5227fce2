"""Prometheus metrics of the suggestion service: points, seconds per call, refusals and fallbacks."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from retune.errors import InputError
from retune.web import Page, Server


class Metrics:
    """The counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._points = Counter(
            "retune_suggested_points", "Points proposed", ["algorithm", "origin"], registry=self.registry
        )
        self._seconds = Histogram(
            "retune_suggest_seconds",
            "Seconds per GetSuggestions",
            ["algorithm"],
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 40),
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "retune_fallbacks",
            "Calls answered by something simpler: the reason is an exception, or solver where NOMAD failed",
            ["algorithm", "reason"],
            registry=self.registry,
        )
        self._refused = Counter("retune_refused", "Experiments refused as invalid", registry=self.registry)

    def suggested(self, algorithm: str, origins: Mapping[str, int], seconds: float) -> None:
        """Record an answered call: its seconds, and its points by their origin."""
        for origin, count in origins.items():
            self._points.labels(algorithm, origin).inc(count)
        self._seconds.labels(algorithm).observe(seconds)

    def fell_back(self, algorithm: str, reason: str) -> None:
        """Count a call whose algorithm failed or took too long."""
        self._fallbacks.labels(algorithm, reason).inc()

    def refused(self) -> None:
        """Count an invalid experiment."""
        self._refused.inc()

    def serve(self, port: int) -> None:
        """Serve the metrics over HTTP.

        Raises:
            InputError: if the port is taken.

        """
        registry = self.registry

        class Handler(Page):
            def do_GET(self) -> None:
                self.send(CONTENT_TYPE_LATEST, generate_latest(registry))

        try:
            server = Server(("::", port), Handler)
        except OSError as error:
            raise InputError(
                f"`--metrics-port` must be free, but {port} cannot be bound: {error}; name another port",
                "retune serve",
            ) from error
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
