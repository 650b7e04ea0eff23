"""A background network rewritten so that onnxruntime computes the same mask in less time.

As exported, a U-2-Net costs a processor a fifth more than its convolutions. onnxruntime keeps values in blocks of 16
channels, and every operation that it cannot do on blocks has them laid out anew before and after.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

U2NETS = frozenset({"u2netp", "u2net"})
"""Files known by their hash (Qin et al. 2020, U-2-Net): the first output is the mask, the other six are for training."""
_BLOCK = 4  # squared, the 16 channels of a block


def lean(file: Path) -> bytes:
    """Rewrite a U-2-Net so that it gives its first output, up to rounding, and costs less on a processor.

    Args:
        file: an ONNX model of fixed input size.

    Returns:
        An ONNX model with one output.
    """
    import onnx  # noqa: PLC0415 - only those who prepare need it

    model = onnx.shape_inference.infer_shapes(_folded(file))
    graph = model.graph
    del graph.output[1:]
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    joins = {node.output[0]: node for node in graph.node if node.op_type == "Concat"}
    n_uses = Counter(name for node in graph.node for name in node.input)
    nodes: list[Any] = []
    for node in graph.node:
        shape, settings = shapes.get(node.input[0]), _settings(node)
        if node.op_type == "Resize":
            nodes += _scaled(node, shape, weights)
        elif node.op_type != "Conv" or settings["group"] != 1 or node.input[1] not in weights:
            nodes += [node]
        elif node.input[0] in joins and n_uses[node.input[0]] == 1:
            nodes += _split(node, joins[node.input[0]], shapes, weights)
        else:
            nodes += _blocked(node, shape, weights)
    nodes = _needed(nodes, [graph.output[0].name])
    names = {name for node in nodes for name in node.input} & weights.keys()
    for field, kept in (
        (graph.node, nodes),
        (
            graph.initializer,
            [onnx.numpy_helper.from_array(weights[name], name) for name in sorted(names)],
        ),
        (graph.value_info, []),
    ):
        del field[:]
        field.extend(kept)
    return bytes(model.SerializeToString())


def _folded(file: Path) -> Any:
    """Return the model with everything computed that does not depend on the photo: the sizes of all values."""
    import onnx  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _settings(node: Any) -> dict[str, Any]:
    import onnx  # noqa: PLC0415

    return {"group": 1} | {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def _scaled(node: Any, shape: list[int] | None, weights: dict[str, NDArray[Any]]) -> Iterator[Any]:
    """Enlarge by whole numbers instead of to a size, which onnxruntime does on blocks."""
    import onnx  # noqa: PLC0415

    settings = _settings(node)
    sizes = weights.get(node.input[3]) if len(node.input) == 4 else None
    wanted = b"pytorch_half_pixel", b"linear"
    if (
        sizes is None
        or not shape
        or (settings["coordinate_transformation_mode"], settings["mode"]) != wanted
    ):
        yield node
        return
    scales = (sizes / np.array(shape)).astype(np.float32)
    if (scales % 1).any() or sizes.min(initial=2, where=[False, False, True, True]) < 2:
        yield node
        return
    name = f"{node.output[0]}_scales"
    weights[name] = scales
    yield onnx.helper.make_node(
        "Resize",
        [node.input[0], node.input[1], name],
        list(node.output),
        mode="linear",
        coordinate_transformation_mode="half_pixel",  # differs from pytorch's in outputs of a single pixel
    )


def _split(
    node: Any, join: Any, shapes: dict[str, list[int]], weights: dict[str, NDArray[Any]]
) -> Iterator[Any]:
    """Convolve what was joined by channels part after part into one sum: nothing is copied to be joined."""
    import onnx  # noqa: PLC0415

    parts = [shapes.get(name) for name in join.input]
    if _settings(join)["axis"] != 1 or len(parts) != 2 or not parts[0]:
        yield node
        return
    kernel, out = weights[node.input[1]], node.output[0]
    for number, part in enumerate(np.split(kernel, [parts[0][1]], axis=1)):
        name = f"{out}_kernel_{number}"
        weights[name] = np.ascontiguousarray(part)
        inputs = [join.input[number], name, *(node.input[2:] if number == 0 else ())]
        half = onnx.helper.make_node("Conv", inputs, [f"{out}_{number}"])
        half.attribute.extend(node.attribute)
        yield half
    yield onnx.helper.make_node("Add", [f"{out}_0", f"{out}_1"], [out])


def _blocked(node: Any, shape: list[int] | None, weights: dict[str, NDArray[Any]]) -> Iterator[Any]:
    """Compute a map of one channel as the 16 channels of its 4 x 4 blocks; alone, it costs as much as 16 such maps."""
    import onnx  # noqa: PLC0415

    kernel, settings, out = weights[node.input[1]], _settings(node), node.output[0]
    plain = settings["strides"] == settings["dilations"] == [1, 1] and settings["pads"] == [
        1,
        1,
        1,
        1,
    ]
    if (
        kernel.shape[0] != 1
        or kernel.shape[2:] != (3, 3)
        or not plain
        or not shape
        or any(np.mod(shape[2:], _BLOCK))
    ):
        yield node
        return
    side = _BLOCK + 2
    wide = np.zeros((_BLOCK, _BLOCK, kernel.shape[1], side, side), dtype=np.float32)
    for row, column in np.ndindex(_BLOCK, _BLOCK):
        wide[row, column, :, row : row + 3, column : column + 3] = kernel[0]
    weights[f"{out}_kernel"] = wide.reshape(_BLOCK**2, *wide.shape[2:])
    inputs = [node.input[0], f"{out}_kernel"]
    for name in node.input[2:]:
        weights[f"{out}_bias"] = np.repeat(weights[name], _BLOCK**2)
        inputs.append(f"{out}_bias")
    yield onnx.helper.make_node(
        "Conv",
        inputs,
        [f"{out}_blocks"],
        kernel_shape=[side, side],
        strides=[_BLOCK, _BLOCK],
        pads=[1, 1, 1, 1],
    )
    yield onnx.helper.make_node(
        "DepthToSpace", [f"{out}_blocks"], [out], blocksize=_BLOCK, mode="DCR"
    )


def _needed(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """Return the nodes on which the outputs depend; onnxruntime computes the others too."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
