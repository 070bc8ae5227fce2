"""`retune serve`: the suggestion service."""

from __future__ import annotations

import os

import click

from retune.cli import _options


@click.command()
@_options.port(6789)
@click.option("--host", default="[::]", show_default=True, help="Address to listen on.")
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    help="Port for Prometheus metrics over HTTP; none by default.",
)
@click.option("--die-with-parent", is_flag=True, help="Exit when the parent process exits.")
def command(port: int, host: str, metrics_port: int | None, die_with_parent: bool) -> None:
    """Serve the search algorithms over gRPC, to Katib or to a local study.

    Uses no files and keeps no state. Prints `serving on HOST:PORT` when ready, logs JSON lines to stderr, and ends on
    SIGTERM after finishing active calls.

    \b
    Examples:
      retune serve                             as Katib expects it, port 6789
      retune serve --host 127.0.0.1 --port 0   on a free local port
    """
    # Before NumPy is imported: its threads would take memory, and calls at the same time would undo each other's
    # `retune.search.linear_algebra.one_thread`
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # a port that is taken is reported as an error of ours
    from retune import processes
    from retune.suggestion.service import serve

    if die_with_parent:
        processes.die_with_parent()
    serve(host, port, metrics_port)
