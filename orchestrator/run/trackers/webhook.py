"""A message to an address when a run ends: JSON, signed where there is a secret.

A process of its own sends it, so that an address that does not answer holds up nothing:
`python -m orchestrator.run.trackers.webhook RUN_FOLDER STATE`.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

from ruamel.yaml import YAML

from orchestrator.base.json_types import Json
from orchestrator.run.trackers.sink import Sink
from orchestrator.store.event_types import DriverStarted, StageEnded
from orchestrator.store.ledger import State, TrialRecord, read, replay
from orchestrator.store.run_dir import RunPaths
from orchestrator.store.run_files.records import as_record
from orchestrator.store.run_files.scores import Score
from orchestrator.store.run_files.selection import Selection

SECRET = "ORCHESTRATOR_NOTIFY_SECRET"  # noqa: S105 - the name of a variable
"""The environment variable with the secret that signs messages."""
SIGNATURE = "X-Orchestrator-Signature"
"""The header `sha256=<HMAC of the body in hexadecimal>`; absent where there is no secret."""
_PAUSES_S = (0.0, 2.0, 10.0)  # before each attempt
_TIMEOUT_S = 10.0
_NOT_SENT = (OSError, http.client.HTTPException)


class Webhook(Sink):
    """Starts the sender when a driver leaves the run."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def take(self, trial: TrialRecord) -> None:
        """Do nothing: messages are about runs."""

    def end(self, state: State) -> None:
        with (self.run / "track.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", __spec__.name, str(self.run), state.state],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # it may outlive the mirror
            )


def message(run: Path, state: str) -> Json:
    """Return what is told of a run: how it ended, what failed, its trials and its score."""
    paths = RunPaths(run)
    events = read(paths.events)
    counts = Counter(trial.status for trial in replay(events).trials.values())
    failure = StageEnded(stage="", outcome="")
    for event in events:
        if isinstance(event, DriverStarted):
            failure = StageEnded(stage="", outcome="")
        elif isinstance(event, StageEnded) and event.outcome == "FAILED":
            failure = event
    selection = as_record(Selection, paths.read_json("selection"))
    macro_f1 = _span(selection.ensemble.oof.macro_f1)
    score = _span(selection.ensemble.oof.headline)
    return {
        "event": "run_ended",
        "run_id": paths.run_id,
        "state": state,
        "time": round(time.time(), 3),
        "failed_stage": failure.stage or None,
        "reason": failure.note,
        "trials": {name.lower(): counts[name] for name in ("COMPLETE", "PRUNED", "FAILED")},
        "members": list(selection.members),
        "macro_f1": macro_f1,
        "score": {"name": selection.score, **score} if score else None,
    }


def _span(score: Score | None) -> Json | None:
    """Return a score with the ends of its interval."""
    return score.model_dump(include={"estimate", "low", "high"}) if score else None


def send(url: str, body: bytes, secret: str | None) -> None:
    """Post a message, with a few attempts.

    Raises:
        OSError, HTTPException: none of them was answered with success.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "robust-vote"}
    if secret:
        headers[SIGNATURE] = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - the spec takes http(s) only
    for attempt, pause_s in enumerate(_PAUSES_S, 1):
        time.sleep(pause_s)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
                return
        except _NOT_SENT:
            if attempt == len(_PAUSES_S):
                raise


def main(run: Path, state: str) -> int:
    """Send the message of a run; return 1 if nobody took it."""
    spec = YAML(typ="safe", pure=True).load((run / "resolved.yaml").read_text(encoding="utf-8"))
    url = spec["track"]["notify"]
    body = json.dumps(message(run, state), ensure_ascii=False).encode()
    try:
        send(url, body, os.environ.get(SECRET))
    except _NOT_SENT as error:
        sys.stderr.write(f"track.notify: {type(error).__name__}: {error}; nobody was told\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
