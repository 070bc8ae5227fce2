"""`retune watch`: a live page of a running study."""

from __future__ import annotations

import click

from retune.cli import _options
from retune.cli._say import say


@click.command("watch")
@click.argument("folder", metavar="STUDY_FOLDER")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on, `::` for all of IPv4 and IPv6; the page has no authentication.",
)
@_options.port(8008)
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="STUDY_FOLDER holds many studies: list them, and serve /metrics to Prometheus.",
)
def command(folder: str, host: str, port: int, every: bool) -> None:
    """Serve a live page of a running study: running trials, queue, losses, history, settings, importances, GPUs.

    STUDY_FOLDER is the study's output folder, on disk or in a bucket. For a bucket, running trials are visible
    only on the machine that runs them. Ends on Ctrl-C.

    \b
    Examples:
      retune watch artifacts/support-bot
      retune watch s3://bucket/retune/support-bot --port 0
      retune watch s3://bucket/retune --all
    """
    from retune.errors import InputError
    from retune.report import board, watch

    if note := watch.why_nothing_to_show(folder, every):
        say(f"note: {note}; the page fills once a study writes there", fg="yellow", err=True)
    try:
        server = (board if every else watch).serve(folder, host, port)
    except OSError as error:  # the address cannot be bound; a missing folder is only noted
        raise InputError(
            f"`--host` and `--port` must be an address of this machine that is free, but {host}:{port} cannot be served: "
            f"{error.strerror or error}; --port 0 takes a free port",
            "retune watch",
        ) from error
    named = f"[{host}]" if ":" in host else host
    say(f"watching {folder} on http://{named}:{server.server_port}/")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
