"""Networks rewritten for speed answer as before."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from data_prep.preparation.onnx_rewrite import lean
from data_prep.weights.cache import fetch

SIDE = 8


def answer(model, feed):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: feed})


def small(path, *, sizes=(1, 16, 2 * SIDE, 2 * SIDE), parts=2, group=1):
    """Write a network with one of everything that is rewritten, and a second output that nobody asks for."""
    rng = np.random.default_rng(0)
    joined = 16 * parts

    def weights(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32) / 10, name)

    def conv(name, source, n_groups=1):
        settings = {
            "pads": [1] * 4,
            "strides": [1, 1],
            "dilations": [1, 1],
            "kernel_shape": [3, 3],
            "group": n_groups,
        }
        return helper.make_node("Conv", [source, f"{name}_w", f"{name}_b"], [name], **settings)

    nodes = [
        conv("low", "photo"),
        helper.make_node(
            "Resize",
            ["low", "none", "none", "sizes"],
            ["high"],
            mode="linear",
            coordinate_transformation_mode="pytorch_half_pixel",
        ),
        helper.make_node("Concat", ["high"] * parts, ["join"], axis=1),
        conv("mixed", "join", group),
        helper.make_node("Relu", ["mixed"], ["active"]),
        conv("map", "active"),
        helper.make_node("Sigmoid", ["map"], ["mask"]),
        helper.make_node("Sigmoid", ["mixed"], ["side"]),
    ]
    initial = [
        *(weights("low_w", 16, 3, 3, 3), weights("low_b", 16)),
        *(weights("mixed_w", 32, joined // group, 3, 3), weights("mixed_b", 32)),
        *(weights("map_w", 1, 32, 3, 3), weights("map_b", 1)),
        numpy_helper.from_array(np.array([], dtype=np.float32), "none"),
        numpy_helper.from_array(np.array(sizes, dtype=np.int64), "sizes"),
    ]
    photo = helper.make_tensor_value_info("photo", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("mask", "side")
    ]
    graph = helper.make_graph(nodes, "small", [photo], outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    onnx.save(model, path)
    return path


def kinds(model):
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def test_a_small_network_is_rewritten_and_answers_as_before(tmp_path):
    path, feed = (
        small(tmp_path / "small.onnx"),
        np.random.default_rng(1).random((1, 3, SIDE, SIDE), dtype=np.float32),
    )
    rewritten = lean(path)
    (mask,) = answer(rewritten, feed)
    assert mask == pytest.approx(answer(str(path), feed)[0], abs=1e-5)
    assert mask.std() > 0.02
    wanted = ["Conv", "Resize", "Conv", "Conv", "Add", "Relu", "Conv", "DepthToSpace", "Sigmoid"]
    assert wanted == kinds(rewritten)


@pytest.mark.parametrize(
    "odd",
    [
        {"sizes": (1, 16, 12, 12)},
        {"sizes": (1, 16, SIDE // 2, SIDE // 2)},
        {"parts": 3},
        {"group": 2},
    ],
    ids=str,
)
def test_what_is_not_a_u2nets_is_left_as_it_is_and_answers_as_before(tmp_path, odd):
    path, feed = (
        small(tmp_path / "odd.onnx", **odd),
        np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32),
    )
    rewritten = lean(path)
    assert answer(rewritten, feed)[0] == pytest.approx(answer(str(path), feed)[0], abs=1e-5)
    scales = next(
        node for node in onnx.load_from_string(rewritten).graph.node if node.op_type == "Resize"
    ).input
    assert ("sizes" in odd) == (len(scales) == 4)
    assert ("sizes" not in odd) == ("Concat" in kinds(rewritten))


@pytest.mark.models
def test_u2netp_answers_as_before():
    feed = np.kron(
        np.random.default_rng(0).standard_normal((1, 3, 4, 4)), np.ones((80, 80))
    ).astype(np.float32)
    rewritten = lean(fetch("u2netp"))
    mask = answer(rewritten, feed)[0]
    assert mask == pytest.approx(
        answer(str(fetch("u2netp")), feed)[0], abs=1e-4
    )  # a mask has steps of 4e-3
    assert mask.std() > 0.02
    assert (1, 3) == (kinds(rewritten).count("Concat"), kinds(rewritten).count("DepthToSpace") - 2)
