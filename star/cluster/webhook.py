"""Notifies the webhook of STAR_WEBHOOK how a pipeline ended: one POST with a JSON body.

The body is the summary of star.cluster.exit_handler. Its field `text` is what chat services show:

    {"run": "5a1c...", "state": "FAILED", "task": "rollout 2/4", "error": "train.jsonl, line 4: not a row", "outcome": "",
     "closed_runs": [], "kept": ["rollout-0011..."],
     "text": "STAR pipeline 5a1c...: FAILED in rollout 2/4: train.jsonl, line 4: not a row"}
"""

from star.errors import InputError
from star.http_client import origin, send
from star.http_exchange import BadStatusError, NoAnswerError

TIMEOUT_SECONDS = 10.0
MAX_BYTES = 2**20  # of the answer, which nobody reads


def notify_webhook(url: str, summary: dict[str, object]) -> None:
    """Sends the summary to the webhook. A webhook that cannot be notified is a line in the log, not an error."""
    # The whole address of a webhook is a secret (it often holds a key), so only its origin is printed.
    try:
        send("POST", url, name="STAR_WEBHOOK", seconds=TIMEOUT_SECONDS, body=summary, max_bytes=MAX_BYTES).checked()
    except BadStatusError as error:
        reason = f"HTTP {error.status}"
    except (InputError, NoAnswerError) as error:
        reason = str(error)
    else:
        print(f"notified the webhook at {origin(url)}", flush=True)
        return
    print(f"the webhook at {origin(url)} could not be notified ({reason}): check STAR_WEBHOOK", flush=True)
