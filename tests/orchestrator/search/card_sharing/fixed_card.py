"""A card that is a number."""

from dataclasses import dataclass

from orchestrator.search.card_sharing.meter import CardSample

GB = 10**9


@dataclass(frozen=True)
class FixedCard:
    """Answers as NVIDIA's library would during a trial that takes 30 of 100 GB and works 40 % of its time.

    What tests claim over it: who gets a card, who shares one, who waits, what the ledger and `plan` keep. All of this
    sees a card through these four numbers alone, so it holds whoever gives them. Not claimed: that a card's numbers
    foretell how trials get on beside each other. Only a card can show that.
    """

    used_bytes: int = 30 * GB
    busy_share: float = 0.4

    def sample(self):
        return CardSample("test card", 100 * GB, self.used_bytes, self.busy_share)
