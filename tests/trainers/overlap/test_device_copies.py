"""What is kept of a state on its way to the host."""

import torch

from tests.trainers.overlap.late_copies import LateCopies
from trainers.overlap.device_copies import pack, read_all


def test_packed_tensors_come_back_with_their_types_shapes_and_layouts():
    image = torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last)
    tensors = [
        torch.arange(3.0),
        image,
        torch.tensor(7),
        torch.arange(12.0).reshape(3, 4).T,  # neither contiguous nor channels last
        torch.tensor(0.5),
        torch.zeros(0),
    ]
    packed = pack(tensors)
    assert 2 == len(packed.flats)
    unpacked = packed.unpack(packed.flats)
    for before, after in zip(tensors, unpacked, strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert torch.equal(before, after)
    assert image.stride() == unpacked[1].stride()
    starts = {tensor.untyped_storage().data_ptr() for tensor in unpacked if tensor.numel()}
    assert 5 == len(starts)  # safetensors refuses tensors that share memory


def test_a_tree_is_kept_as_it_was():
    history = [{"loss": 1.0}]
    weight = torch.ones(2)
    tree = {"model": {"weight": weight}, "history": history, "pair": (weight, None), "step": 3}
    fetch = read_all(LateCopies(), tree)
    weight += 1
    history.append({"loss": 2.0})
    kept = fetch()
    assert [1.0, 1.0] == kept["model"]["weight"].tolist() == kept["pair"][0].tolist()
    assert ([{"loss": 1.0}], 3, None) == (kept["history"], kept["step"], kept["pair"][1])
