"""Notifications by a webhook that accepts Slack's JSON (Slack, Mattermost, Discord's ``/slack``, …).

A message that cannot be sent never fails a run; the failure is reported in one line. The address is a secret, so only its
scheme and host are ever printed.
"""

from __future__ import annotations

import html
import json
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 10.0


def notifier(url: str | None, report: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that sends a message; without an address it does nothing.

    Args:
        url: the webhook's address.
        report: called with one line if a message could not be sent.
    """

    def send(text: str) -> None:
        if not url:
            return
        try:
            body = json.dumps({"text": html.escape(text, quote=False)}).encode()  # <!channel> calls all
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):
                pass
        except Exception as error:  # a bad address raises ValueError, a broken reply HTTPException, …
            report(f"note: the webhook at {masked(url)} could not be notified: {_explain(error, url)}")

    return send


def masked(url: str) -> str:
    """Return an address without its secret part."""
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            port = f":{parts.port}" if parts.port else ""
            return f"{parts.scheme}://{parts.hostname}{port}/***"
    except ValueError:
        pass
    return "***"


def _explain(error: Exception, url: str) -> str:
    reason = getattr(error, "reason", None) or type(error).__name__
    code = getattr(error, "code", None)
    text = f"{code} {reason}" if code else str(reason)
    secrets = [url, url.partition("://")[2].partition("/")[2]]
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text
