"""A background network rewritten so that onnxruntime computes the same mask in less time.

As exported, a U-2-Net costs a processor a fifth more than its convolutions. onnxruntime keeps
values in blocks of 16 channels. An operation that it cannot do on blocks needs them laid out again
before and after it.
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
"""Files known by their hash (Qin et al. 2020): output 1 is the mask, the rest is for training."""
_BLOCK = 4  # squared, the 16 channels of a block
_UNIT = [1, 1]  # strides or dilations
Shapes = dict[str, list[int]]  # of values
Weights = dict[str, NDArray[Any]]


def lean(file: Path) -> bytes:
    """Rewrite a U-2-Net: its first output stays the same up to rounding, and costs less on a CPU.

    Args:
        file: an ONNX model of fixed input size.

    Returns:
        An ONNX model with one output.
    """
    import onnx  # noqa: PLC0415 - only those who prepare need it

    model = onnx.shape_inference.infer_shapes(_folded(file))
    graph = model.graph
    del graph.output[1:]
    shapes = {}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        shapes[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]
    weights = {}
    for tensor in graph.initializer:
        weights[tensor.name] = onnx.numpy_helper.to_array(tensor)
    nodes = _needed(_rewritten(graph.node, shapes, weights), [graph.output[0].name])
    used = {name for node in nodes for name in node.input} & weights.keys()
    tensors = [onnx.numpy_helper.from_array(weights[name], name) for name in sorted(used)]
    for field, values in ((graph.node, nodes), (graph.initializer, tensors)):
        del field[:]
        field.extend(values)
    del graph.value_info[:]
    return bytes(model.SerializeToString())


def _rewritten(source: Any, shapes: Shapes, weights: Weights) -> list[Any]:
    """Return the nodes of a graph with slow ones replaced; adds their constants to `weights`."""
    joins = {node.output[0]: node for node in source if node.op_type == "Concat"}
    n_uses = Counter(name for node in source for name in node.input)
    nodes: list[Any] = []
    for node in source:
        shape = shapes.get(node.input[0])
        settings = _settings(node)
        if node.op_type == "Resize":
            nodes += _scaled(node, shape, weights)
        elif node.op_type != "Conv" or settings["group"] != 1 or node.input[1] not in weights:
            nodes.append(node)
        elif node.input[0] in joins and n_uses[node.input[0]] == 1:
            nodes += _split(node, joins[node.input[0]], shapes, weights)
        else:
            nodes += _blocked(node, shape, weights)
    return nodes


def _folded(file: Path) -> Any:
    """Return the model with everything computed that does not depend on the photo, as all sizes."""
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

    settings: dict[str, Any] = {"group": 1}
    for attribute in node.attribute:
        settings[attribute.name] = onnx.helper.get_attribute_value(attribute)
    return settings


def _scaled(node: Any, shape: list[int] | None, weights: Weights) -> Iterator[Any]:
    """Enlarge by whole numbers instead of to a size, which onnxruntime does on blocks."""
    import onnx  # noqa: PLC0415

    settings = _settings(node)
    sizes = weights.get(node.input[3]) if len(node.input) == 4 else None
    is_linear = settings["mode"] == b"linear"
    is_pytorchs = settings["coordinate_transformation_mode"] == b"pytorch_half_pixel"
    if sizes is None or not shape or not is_linear or not is_pytorchs:
        yield node
        return
    scales = (sizes / np.array(shape)).astype(np.float32)
    smallest = sizes.min(initial=2, where=[False, False, True, True])
    if (scales % 1).any() or smallest < 2:
        yield node
        return
    name = f"{node.output[0]}_scales"
    weights[name] = scales
    yield onnx.helper.make_node(
        "Resize",
        [node.input[0], node.input[1], name],
        list(node.output),
        mode="linear",
        coordinate_transformation_mode="half_pixel",  # is pytorch's but for outputs of one pixel
    )


def _split(node: Any, join: Any, shapes: Shapes, weights: Weights) -> Iterator[Any]:
    """Convolve the parts of a join one by one and add them up: nothing is copied to be joined."""
    import onnx  # noqa: PLC0415

    parts = [shapes.get(name) for name in join.input]
    if _settings(join)["axis"] != 1 or len(parts) != 2 or not parts[0]:
        yield node
        return
    out = node.output[0]
    kernels = np.split(weights[node.input[1]], [parts[0][1]], axis=1)
    for number, kernel in enumerate(kernels):
        name = f"{out}_kernel_{number}"
        weights[name] = np.ascontiguousarray(kernel)
        inputs = [join.input[number], name]
        if number == 0:
            inputs += node.input[2:]  # the bias
        half = onnx.helper.make_node("Conv", inputs, [f"{out}_{number}"])
        half.attribute.extend(node.attribute)
        yield half
    yield onnx.helper.make_node("Add", [f"{out}_0", f"{out}_1"], [out])


def _blocked(node: Any, shape: list[int] | None, weights: Weights) -> Iterator[Any]:
    """Compute a map of one channel as 16 channels, its 4 x 4 blocks: alone it costs as much."""
    import onnx  # noqa: PLC0415

    kernel = weights[node.input[1]]
    settings = _settings(node)
    out = node.output[0]
    is_plain = settings["strides"] == settings["dilations"] == _UNIT
    is_padded = settings["pads"] == [1] * 4
    is_one_map = kernel.shape[0] == 1 and kernel.shape[2:] == (3, 3)
    if not (is_plain and is_padded and is_one_map) or not shape or any(np.mod(shape[2:], _BLOCK)):
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
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]
