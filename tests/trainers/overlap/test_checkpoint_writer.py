import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.overlap.late_copies import LateCopies, our_threads
from trainers import checkpoint
from trainers.overlap.checkpoint_writer import CheckpointWriter
from trainers.overlap.overlap_choice import Overlap

BESIDE = Overlap(LateCopies(), 2, writes_beside=True)


def state(epoch, scores, weight):
    history = [{"val_macro_f1": score} for score in scores]
    return {"model": {"weight": weight}, "history": history, "step": epoch}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("overlap", [Overlap(), BESIDE], ids=["waits", "beside"])
def test_what_is_written_is_what_was_there_when_it_was_given(tmp_path, overlap):
    weight = torch.arange(4.0)
    with CheckpointWriter(tmp_path, overlap) as writer:
        for epoch in (1, 2, 3):
            weight += 1
            scores = [0.5, 0.7, 0.6][:epoch]
            if epoch < 3:
                writer.keep_best(epoch, {"weight": weight}, {"precision": "fp32"})
            writer.save(state(epoch, scores, weight), is_last=epoch == 3)
        if overlap.writes_beside:
            weight += 100  # the next epoch goes on while the thread writes
        writer.finish(2)
    assert ["last.pt", "model.json", "weights.safetensors"] == names(tmp_path)
    assert [2.0, 3.0, 4.0, 5.0] == load_file(tmp_path / "weights.safetensors")["weight"].tolist()
    stored = checkpoint.load_state(tmp_path)
    assert [3.0, 4.0, 5.0, 6.0] == stored["model"]["weight"].tolist()


def test_a_young_state_is_left_out_and_the_last_one_is_not(tmp_path, monkeypatch):
    written = []
    save = checkpoint.save_state
    monkeypatch.setattr(
        checkpoint, "save_state", lambda *args: (written.append(args[1]["step"]), save(*args))
    )
    overlap = Overlap(LateCopies(), 2, writes_beside=True, write_every_s=3600)
    with CheckpointWriter(tmp_path, overlap) as writer:
        for epoch in (1, 2, 3, 4):
            writer.keep_best(epoch, {"weight": torch.full((1,), float(epoch))}, {})
            scores = [0.1 * (n + 1) for n in range(epoch)]
            writer.save(state(epoch, scores, torch.ones(1)), is_last=epoch == 4)
        writer.finish(4)
    assert [1, 4] == written
    assert [4.0] == load_file(tmp_path / "weights.safetensors")["weight"].tolist()


@pytest.mark.parametrize("overlap", [Overlap(), BESIDE], ids=["waits", "beside"])
def test_a_full_disk_reaches_the_training(tmp_path, monkeypatch, overlap):
    def full(folder, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_state", full)

    def train():
        with CheckpointWriter(tmp_path, overlap) as writer:
            for epoch in (1, 2):
                writer.save(state(epoch, [0.5], torch.ones(1)), is_last=epoch == 2)
            writer.finish(1)

    with pytest.raises(OSError, match="No space left"):
        train()


@pytest.mark.parametrize("cut", ["weights", "state", "tidying"])
def test_a_state_always_finds_its_weights_wherever_the_process_was_killed(
    tmp_path, monkeypatch, cut
):
    class Killed(BaseException):
        pass

    def save(epoch, scores):
        with CheckpointWriter(tmp_path, Overlap()) as writer:
            writer.load()
            writer.keep_best(epoch, {"weight": torch.full((1,), float(epoch))}, {})
            writer.save(state(epoch, scores, torch.ones(1)), is_last=False)

    save(1, [0.5])

    def killed(*args, **kwargs):
        raise Killed

    place = {"weights": "save_weights", "state": "save_state", "tidying": "remove_weights"}[cut]
    monkeypatch.setattr(checkpoint, place, killed)
    with pytest.raises(Killed):
        save(2, [0.5, 0.6])
    monkeypatch.undo()
    with CheckpointWriter(tmp_path, Overlap()) as writer:
        found = writer.load()
        best = checkpoint.best_epoch(found["history"])
        assert best == (2 if cut == "tidying" else 1)
        writer.finish(best)
    assert [float(best)] == load_file(tmp_path / "weights.safetensors")["weight"].tolist()


def test_a_state_whose_weights_are_gone_is_not_gone_on_with(tmp_path, capfd):
    with CheckpointWriter(tmp_path, Overlap()) as writer:
        writer.keep_best(1, {"weight": torch.ones(1)}, {})
        writer.save(state(1, [0.5], torch.ones(1)), is_last=False)
    (tmp_path / "weights-1.safetensors").unlink()
    assert CheckpointWriter(tmp_path, Overlap()).load() is None
    assert "weights-1.safetensors is missing beside it" in capfd.readouterr().err


def test_the_thread_ends_with_the_training(tmp_path):
    with CheckpointWriter(tmp_path, BESIDE) as writer:
        writer.save(state(1, [0.5], torch.ones(1)), is_last=True)
    assert not our_threads()
    assert 1 == checkpoint.load_state(tmp_path)["step"]
