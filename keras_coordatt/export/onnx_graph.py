"""Gates in ONNX graphs in the form that ONNX Runtime multiplies fastest.

ONNX Runtime computes convolutions on blocks of channels. It multiplies such feature maps
only if their shapes are known to be equal, else it reorders them to NCHW and back. So
gates are repeated to the size of the feature map before, by `Resize`, which works on
blocks, too.
"""

BATCH = "batch"


def repeat_gates(proto) -> None:
    """Repeats the smaller factor of each product of feature maps to the larger's size.

    Args:
        proto: The `onnx.ModelProto`, whose batch axis is named `BATCH`. It is changed.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(proto).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    shapes = {value.name: _shape(value) for value in values}
    others = {x.name for x in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Transpose":  # to channels last, mostly
            others |= {*node.output}
    nodes = []
    for node in proto.graph.node:
        nodes.append(type(node)())
        nodes[-1].CopyFrom(node)
        if node.op_type != "Mul" or others & {*node.input}:
            continue
        for i, name in enumerate(node.input):
            large = shapes.get(node.input[1 - i])
            scales = _scales(shapes.get(name), large)
            if large is None or scales is None:
                continue
            repeated = f"{name}_repeated_{len(nodes)}"
            nodes[-1].input[i] = repeated
            shapes[node.output[0]] = large
            proto.graph.initializer.append(
                onnx.helper.make_tensor(
                    f"{repeated}_scales", onnx.TensorProto.FLOAT, [4], scales
                )
            )
            # ONNX's shape inference forgets the name of the batch axis here.
            proto.graph.value_info.append(
                onnx.helper.make_tensor_value_info(
                    repeated, onnx.TensorProto.FLOAT, [BATCH, *large[1:]]
                )
            )
            repeat = onnx.helper.make_node(
                "Resize",
                [name, "", f"{repeated}_scales"],
                [repeated],
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            nodes.insert(-1, repeat)
            break
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _shape(value):
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


def _scales(small, large) -> list[float] | None:
    """Returns by how much a gate is repeated along each axis, or None if it isn't one."""
    if not small or not large or not len(small) == len(large) == 4:
        return None
    # Without the batch axis, whose name is unknown after some operations
    pairs = [*zip(small[1:], large[1:])]
    if not all(isinstance(side, int) and side > 0 for pair in pairs for side in pair):
        return None
    (channels, of), *sides = pairs
    if channels != of or small[1:] == large[1:]:
        return None
    if any(side not in (1, target) for side, target in sides):
        return None
    return [1.0, 1.0, *(float(target // side) for side, target in sides)]
