"""`retune watch`: a live page of a running study."""

from __future__ import annotations

import click


@click.command("watch")
@click.argument("folder", metavar="STUDY_FOLDER")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; the page knows no passwords.",
)
@click.option("--port", default=8008, show_default=True, help="Port to listen on; 0 takes a free one.")
def command(folder: str, host: str, port: int) -> None:
    """Serve a page that shows a study while it runs: trials at work, losses, history, settings.

    STUDY_FOLDER is what the study writes to, on disk or in a bucket; of one in a bucket the trials at work are seen
    only on the machine that runs it. Ends on Ctrl-C.

    \b
    Examples:
      retune watch artifacts/support-bot
      retune watch s3://bucket/retune/support-bot --port 0
    """
    from retune.report import watch

    server = watch.serve(folder, host, port)
    click.echo(f"watching {folder} on http://{host}:{server.server_port}/")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
