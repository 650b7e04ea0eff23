"""What is measured of a card, over a meter that needs none."""

from orchestrator.cluster.connection import local_gpus
from orchestrator.search.card_sharing.capacity import CardUse
from orchestrator.search.card_sharing.meter import CardSample, CardWatch, NvmlMeter
from orchestrator.search.trial_process import Child
from tests.orchestrator.search.card_sharing.fixed_card import GB, FixedCard


class Series:
    """Gives samples one after another."""

    def __init__(self, *samples):
        self.samples = list(samples)

    def sample(self):
        return self.samples.pop(0)


def test_the_peak_and_the_mean_count():
    samples = [CardSample("c", 100, used, busy) for used, busy in [(10, 0.0), (40, 1.0), (20, 0.5)]]
    watch = CardWatch(Series(*samples))
    for _ in samples:
        watch.sample()
    assert CardUse("c", 100, 40, 0.5) == watch.use()


def test_without_a_sample_nothing_is_known():
    watch = CardWatch(Series(None, None))
    watch.sample()
    watch.sample()
    assert watch.use() is None


def test_a_machine_without_a_driver_has_no_samples():
    if not local_gpus():
        assert NvmlMeter().sample() is None


def test_a_worker_looks_at_the_card_while_its_trial_works():
    import time

    def body(spec, report):
        time.sleep(0.7)
        report(1, {"val_macro_f1": 0.5})

    watch = CardWatch(FixedCard())
    child = Child(body)
    child.on_check = watch.sample
    child.start(None, "a")
    child.next()
    child.kill()
    assert CardUse("test card", 100 * GB, 30 * GB, 0.4) == watch.use()
