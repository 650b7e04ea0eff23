"""What every tracker does."""

from __future__ import annotations

from abc import ABC, abstractmethod

from orchestrator.store.ledger import State, TrialRecord


class Sink(ABC):
    """Takes what happens in a run, in the order of the ledger."""

    @abstractmethod
    def take(self, trial: TrialRecord) -> None:
        """Take a trial that has ended."""

    def end(self, state: State) -> None:  # noqa: B027 - most trackers have nothing to do then
        """Take that the driver has left the run; another driver may go on with it.

        Args:
            state: after all events; `state.state` is how the driver ended.
        """
