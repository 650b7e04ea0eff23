import threading

import numpy as np
import pytest
import torch

from tests.trainers.overlap.late_copies import LateCopies, our_threads
from trainers.objectives.losses import Targets
from trainers.overlap.feeder import Batch, feed


def batch(number):
    rows = np.array([number, number + 1])
    target = Targets(torch.tensor([[number], [number]]), torch.ones(2, 1))
    return Batch(rows, torch.full((2, 3), float(number + 1)), {"joint": target})


def test_batches_arrive_whole_in_order_and_are_sent_by_one_other_thread():
    copies = LateCopies()
    arrived = list(feed((batch(n) for n in range(20)), copies))
    assert list(range(20)) == [int(each.rows[0]) for each in arrived]
    for number, each in enumerate(arrived):
        assert each.x.eq(number + 1).all()
        assert each.targets["joint"].codes.eq(number).all()
        assert each.targets["joint"].weight.eq(1).all()
    assert 20 == copies.n_sent
    assert 1 == len(copies.senders)
    assert threading.main_thread().name not in copies.senders


def test_at_most_two_batches_are_on_their_way():
    begun = []

    def made():
        for number in range(10):
            begun.append(number)
            yield batch(number)

    for number, _ in enumerate(feed(made(), LateCopies())):
        assert len(begun) <= number + 3  # the one in hand and two more


def test_without_copies_the_batches_are_handed_on_as_they_are():
    batches = [batch(n) for n in range(3)]
    for wanted, each in zip(batches, feed((each for each in batches), None), strict=True):
        assert wanted is each
        assert not our_threads()


def test_an_error_of_the_loader_reaches_the_loop():
    def broken():
        yield batch(0)
        raise OSError("the store is gone")

    fed = feed(broken(), LateCopies())
    assert 0 == next(fed).rows[0]
    with pytest.raises(OSError, match="the store is gone"):
        next(fed)


def test_a_loop_that_ends_early_leaves_no_thread_and_closes_its_loader():
    copies = LateCopies()
    closed = []

    def endless():
        try:
            while True:
                yield batch(0)
        finally:
            closed.append(True)

    fed = feed(endless(), copies)
    next(fed)
    fed.close()
    assert [True] == closed
    assert not our_threads()


@pytest.mark.gpu
def test_copies_to_a_card_and_back_are_exact_and_keep_their_strides():
    from trainers.overlap.device_copies import CudaCopies

    copies = CudaCopies("cuda")
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 255, (32, 96, 96, 3), dtype=np.uint8) for _ in range(30)]
    batches = (Batch(np.arange(32), torch.from_numpy(x).permute(0, 3, 1, 2)) for x in photos)
    readings = []
    for each in feed(batches, copies):
        assert each.x.is_contiguous(memory_format=torch.channels_last)
        readings.append(copies.read(each.x + 0))
    for wanted, reading in zip(photos, readings, strict=True):
        np.testing.assert_array_equal(wanted, reading.array().transpose(0, 2, 3, 1))
