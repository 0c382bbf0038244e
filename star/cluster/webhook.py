"""Notifies the webhook of STAR_WEBHOOK how a pipeline ended: one POST with a JSON body.

The body is the summary of star.cluster.exit_handler. Its field `text` is what chat services show:

    {"run": "5a1c...", "state": "FAILED", "task": "distill", "error": "...", "closed_runs": ["distill"], "kept": ["distill-0011..."],
     "text": "STAR pipeline 5a1c...: FAILED in distill"}
"""

import json
import urllib.error
import urllib.request
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 10.0


def notify_webhook(url: str, summary: dict[str, object]) -> None:
    """Sends the summary to the webhook. A webhook that does not answer is a line in the log, not an error."""
    # The whole address of a webhook is a secret (it often holds a key), so only its host is printed.
    host = urlsplit(url).hostname
    body = json.dumps(summary).encode()
    try:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"}, method="POST")  # noqa: S310 - checked below
        if request.type not in ("http", "https"):
            raise ValueError("the address of a webhook starts with http:// or https://")
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS):  # noqa: S310 - http or https
            print(f"notified the webhook at {host}", flush=True)
    except (OSError, ValueError) as error:
        reason = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        print(f"the webhook at {host} could not be notified ({reason}): check STAR_WEBHOOK", flush=True)
