"""A folder per trial that TensorBoard reads."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from orchestrator.run.trackers.sink import Sink
from orchestrator.store.ledger import TrialRecord


class TensorBoard(Sink):
    """Writes the metrics of every epoch to `tensorboard/<trial>`."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def take(self, trial: TrialRecord) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboard.compat.proto.summary_pb2 import Summary  # noqa: PLC0415
        from tensorboard.summary.writer.event_file_writer import (  # noqa: PLC0415
            EventFileWriter,
        )

        folder = self.run / "tensorboard" / trial.trial_id
        shutil.rmtree(folder, ignore_errors=True)  # a resumed run writes all of its trials again
        writer = EventFileWriter(str(folder))
        for epoch, metrics in sorted(trial.reports.items()):
            values = []
            for name, value in metrics.items():
                values.append(Summary.Value(tag=name, simple_value=value))
            summary = Summary(value=values)
            writer.add_event(Event(wall_time=time.time(), step=epoch, summary=summary))
        writer.close()
