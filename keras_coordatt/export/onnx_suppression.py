"""Non-maximum suppression as ONNX's own operation.

The loop of `NonMaxSuppression` is slow in ONNX Runtime, and PyTorch can't write it.
"""

import keras

from keras_coordatt.detection.suppression import CANDIDATES
from keras_coordatt.export.onnx_graph import BATCH

# As in the layer, the highest scores of all classes are considered. ONNX's operation
# takes a row of scores per class, and returns (image, class, candidate) of the boxes
# that are kept. They are marked by `candidates - candidate`, whose order is that of the
# scores, because candidates are sorted.
GRAPH = """
suppression (float[{batch}, {count}, 4] all_boxes,
             float[{batch}, {count}, {classes}] all_scores)
         => (float[{batch}, {most}, 4] boxes,
             int32[{batch}, {most}] labels,
             float[{batch}, {most}] scores)
{{
    last = Constant <value_ints = [-1]> ()
    flat = Constant <value_ints = [0, -1]> ()
    candidates = Constant <value_ints = [{candidates}]> ()
    most = Constant <value_ints = [{most}]> ()
    classes = Constant <value_int = {classes}> ()
    no_box = Constant <value_float = 0.0> ()
    no_label = Constant <value_int = -1> ()
    iou_threshold = Constant <value_float = {iou_threshold}> ()
    score_threshold = Constant <value_float = {score_threshold}> ()

    every_score = Reshape (all_scores, flat)
    score, index = TopK <axis = 1> (every_score, candidates)
    label = Mod (index, classes)
    number = Div (index, classes)
    numbers = Unsqueeze (number, last)
    box = GatherND <batch_dims = 1> (all_boxes, numbers)

    off_on = Constant <value_floats = [0.0, 1.0]> ()
    is_class = OneHot <axis = 1> (label, classes, off_on)
    rows = Constant <value_ints = [1]> ()
    score_row = Unsqueeze (score, rows)
    class_scores = Mul (is_class, score_row)
    kept = NonMaxSuppression (box, class_scores, most, iou_threshold, score_threshold)

    image_and_candidate = Constant <value_ints = [0, 2]> ()
    kept_index = Gather <axis = 1> (kept, image_and_candidate)
    candidate_column = Constant <value_int = 2> ()
    candidate = Gather <axis = 1> (kept, candidate_column)
    mark = Sub (candidates, candidate)
    size = Shape (score)
    unmarked = ConstantOfShape <value = int64[1] {{0}}> (size)
    marked = ScatterND (unmarked, kept_index, mark)
    missing = Constant <value_ints = [0, 0, 0, {missing}]> ()
    padded = Pad (marked, missing)
    highest, position = TopK <axis = 1> (padded, most)
    zero = Constant <value_int = 0> ()
    found = Greater (highest, zero)

    last_candidate = Constant <value_int = {last_candidate}> ()
    chosen = Min (position, last_candidate)
    chosen_label = GatherElements <axis = 1> (label, chosen)
    found_label = Where (found, chosen_label, no_label)
    labels = Cast <to = 6> (found_label)
    chosen_score = GatherElements <axis = 1> (score, chosen)
    scores = Where (found, chosen_score, no_box)
    chosen_numbers = Unsqueeze (chosen, last)
    chosen_box = GatherND <batch_dims = 1> (box, chosen_numbers)
    is_found = Unsqueeze (found, last)
    boxes = Where (is_found, chosen_box, no_box)
}}
"""


def with_suppression(proto, layer):
    """Returns the ONNX model of a detector, with its suppression at the end.

    Args:
        proto: The `onnx.ModelProto` of the detector without it, whose outputs are
            `all_boxes` and `all_scores`.
        layer: The `NonMaxSuppression`.

    Returns:
        An `onnx.ModelProto` with the outputs `boxes`, `labels` and `scores`.
    """
    import onnx

    _, scores = keras.tree.flatten(layer.input)
    _, count, classes = scores.shape
    candidates = min(count * classes, max(CANDIDATES, layer.max_detections))
    graph = GRAPH.format(
        batch=BATCH,
        count=count,
        classes=classes,
        candidates=candidates,
        last_candidate=candidates - 1,
        most=layer.max_detections,
        missing=max(0, layer.max_detections - candidates),
        iou_threshold=float(layer.iou_threshold),
        score_threshold=float(layer.score_threshold),
    )
    tail = onnx.helper.make_model(
        onnx.parser.parse_graph(graph),
        ir_version=proto.ir_version,
        opset_imports=proto.opset_import,
    )
    return onnx.compose.merge_models(
        proto, tail, [(name, name) for name in ("all_boxes", "all_scores")]
    )
