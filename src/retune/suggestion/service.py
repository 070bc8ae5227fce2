"""The gRPC service: Katib's `api.v1.beta1.Suggestion` and `grpc.health.v1`, for any number of experiments.

An answer is a function of the request alone. The service keeps no state between calls, so restarts, lost replies and
several replicas do no harm. NOMAD runs in a process of its own for each call. If an algorithm fails or takes too long,
the service answers with random points before Katib's deadline.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from retune import search
from retune.errors import InputError
from retune.search import FALLBACK, Observation, Proposal
from retune.suggestion import messages as katib
from retune.suggestion.experiment import ISSUED, Search, search_of, strings
from retune.suggestion.metrics import Metrics
from retune.suggestion.trials import encode_issued, history_of

_LOG = logging.getLogger("retune.suggestion")
_ANSWER_SECONDS = 45.0  # Katib gives up after 60
_STOP_SECONDS = 25.0  # Kubernetes sends SIGKILL 30 seconds after SIGTERM
_WORKERS = 10
_MAX_REQUEST_BYTES = 128 << 20  # a hundred thousand trials of twenty parameters
_MAX_CALLS = 100  # at a time; more are refused, so that the queue is bounded
_MAX_POINTS = 10_000  # in one answer
# Characters: gRPC sends an error's text as a header, and clients accept headers up to 8 KiB
_MAX_ERROR = 4000
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class SuggestionService:
    """The two methods of the service."""

    def __init__(self, answer_seconds: float = _ANSWER_SECONDS, metrics: Metrics | None = None) -> None:
        self._answer_seconds = answer_seconds
        self._metrics = metrics or Metrics()

    def get_suggestions(self, request: Any, context: Any) -> Any:
        """Answer `GetSuggestions` with exactly the requested number of assignments."""
        begun = time.monotonic()
        if not context.is_active():  # the client has given up while the call waited for a thread
            return katib.GetSuggestionsReply()
        search = self._read(request.experiment, context)
        count = request.current_request_number
        if count > _MAX_POINTS:
            self._refuse(
                search.name,
                [f"at most {_MAX_POINTS:,} points are returned at once, but got {count:,}"],
                context,
            )
        before = request.total_request_number - count
        history = history_of(search, request.trials, first=before == 0)
        reply = katib.GetSuggestionsReply()
        origins: Counter[str] = Counter()
        if count > 0:
            issued = before if before >= 0 else None
            proposals = self._search(search, history, count, issued)
            for proposal in proposals:
                origins[re.split("[:,]", proposal.origin)[0]] += 1
                entry = reply.parameter_assignments.add()
                for name, text in strings(search, proposal.assignment).items():
                    entry.assignments.add(name=name, value=text)
            log = encode_issued(search, history, [proposal.assignment for proposal in proposals])
            reply.algorithm.algorithm_name = search.algorithm
            reply.algorithm.algorithm_settings.add(name=ISSUED, value=log)
        seconds = time.monotonic() - begun
        self._metrics.suggested(search.algorithm, origins, seconds)
        _LOG.info(
            "suggested",
            extra={
                "experiment": search.name,
                "algorithm": search.algorithm,
                "count": count,
                "trials": len(request.trials),
                "used": len(history),
                "origins": dict(origins),
                "seconds": round(seconds, 3),
            },
        )
        return reply

    def validate_algorithm_settings(self, request: Any, context: Any) -> Any:
        """Answer `ValidateAlgorithmSettings`: INVALID_ARGUMENT with every problem, or nothing."""
        self._read(request.experiment, context)
        return katib.ValidateAlgorithmSettingsReply()

    def _read(self, experiment: Any, context: Any) -> Search:
        try:
            return search_of(experiment)
        except InputError as error:
            self._refuse(experiment.name, error.problems, context)
            raise  # `abort` has raised; for the type checker

    def _refuse(self, name: str, problems: list[str], context: Any) -> None:
        """End the call with INVALID_ARGUMENT and all problems: at most 40 of them, shortened to fit a header."""
        self._metrics.refused()
        each = max(_MAX_ERROR // max(len(problems), 1), 100)
        shown = [_shortened(problem, each) for problem in problems[:40]]
        _LOG.warning("refused", extra={"experiment": _shortened(name, 100), "problems": shown})
        text = str(InputError(shown, f"experiment {_shortened(name, 100)!r}"))
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)

    def _search(
        self, study_search: Search, history: list[Observation], count: int, issued: int | None
    ) -> list[Proposal]:
        """Return `count` proposals; random ones if the algorithm fails or takes too long."""
        arguments = (
            study_search.space,
            study_search.objective,
            study_search.settings,
            history,
            count,
            0,
            issued,
        )
        try:
            proposals = _within(
                self._answer_seconds, lambda: search.explain(study_search.algorithm, *arguments)
            )
        except Exception as error:
            # Katib ends an Experiment for good when its suggestion service returns an error
            reason = type(error).__name__
            self._metrics.fell_back(study_search.algorithm, reason)
            _LOG.exception("random points instead", extra={"experiment": study_search.name, "reason": reason})
            return self._random(study_search, history, count, issued, reason)
        failed = sorted({p.origin for p in proposals if p.origin.startswith(FALLBACK)})
        if failed:
            self._metrics.fell_back(study_search.algorithm, "solver")
            _LOG.warning(
                "a simpler search instead", extra={"experiment": study_search.name, "reason": failed}
            )
        return proposals

    def _random(
        self, study_search: Search, history: list[Observation], count: int, issued: int | None, reason: str
    ) -> list[Proposal]:
        settings = {key: value for key, value in study_search.settings.items() if key == "seed"}
        arguments = (study_search.space, study_search.objective, settings, history, count, 0, issued)
        origin = f"{FALLBACK}: random, {study_search.algorithm} failed: {reason}"
        return [Proposal(p.assignment, origin) for p in search.explain("random", *arguments)]


def _shortened(text: str, characters: int) -> str:
    """Return `text` or its beginning; in a header a character beyond ASCII takes up to nine (three escaped bytes)."""
    characters = characters if text.isascii() else characters // 9
    return text if len(text) <= characters else f"{text[:characters]}..."


def _within(seconds: float, work: Callable[[], list[Proposal]]) -> list[Proposal]:
    """Return the result of `work`, or raise its error.

    It runs in a daemon thread of its own: work that never ends must not use up the threads of later calls, nor keep the
    process from exiting.

    Raises:
        TimeoutError: if it takes longer than `seconds`.
    """
    future: Future[list[Proposal]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="search", daemon=True).start()
    return future.result(seconds)


def start(host: str = "[::]", port: int = 6789, metrics: Metrics | None = None) -> tuple[grpc.Server, int]:
    """Start serving; return the server and its port (a free one if `port` is 0).

    Raises:
        InputError: if the port is taken.
    """
    service = SuggestionService(metrics=metrics)
    options = [
        ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),  # else a second service could bind the same port, and calls would alternate
    ]
    server = grpc.server(ThreadPoolExecutor(_WORKERS), options=options, maximum_concurrent_rpcs=_MAX_CALLS)
    handlers = {
        "GetSuggestions": _handler(service.get_suggestions, katib.GetSuggestionsRequest),
        "ValidateAlgorithmSettings": _handler(
            service.validate_algorithm_settings, katib.ValidateAlgorithmSettingsRequest
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(katib.SERVICE, handlers),))
    checks = health.HealthServicer()
    for name in ("", katib.HEALTH_SERVICE, katib.SERVICE):
        checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise InputError(
            f"`--host` and `--port` must be an address of this machine that is free, but {host}:{port} cannot be bound",
            "retune serve",
        )
    server.start()
    return server, bound


def _handler(method: Callable[[Any, Any], Any], request: Any) -> Any:
    return grpc.unary_unary_rpc_method_handler(
        method,
        request_deserializer=request.FromString,
        response_serializer=lambda reply: reply.SerializeToString(),
    )


def serve(host: str, port: int, metrics_port: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT; print the address when ready, finish the calls under way at the end."""
    _log_as_json()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    metrics = Metrics()
    server, bound = start(host, port, metrics)
    if metrics_port is not None:
        metrics.serve(metrics_port)
    print(f"serving on {host}:{bound}", flush=True)
    ended.wait()
    server.stop(_STOP_SECONDS).wait()


class _JsonLines(logging.Formatter):
    """Formats log records as one line of JSON each: time, level, message and the fields given as `extra`."""

    _KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in self._KNOWN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _log_as_json() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
