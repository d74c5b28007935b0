"""TensorFlow Lite metadata, from which phone libraries configure themselves.

MediaPipe Tasks and ML Kit read it from a flatbuffer inside the file: size and
normalization of the image, the meaning of a detector's outputs, and the name of the
appended file with the labels.

Reference:
    metadata_schema.fbs of https://github.com/tensorflow/tflite-support
"""

# Values of the enumerations and unions in the schema.
IMAGE_PROPERTIES = 2
BOUNDING_BOX_PROPERTIES = 3
BOUNDARIES = 1  # the corners of a box, in
RATIO = 0  # fractions of the image
RGB = 1
NORMALIZATION = 1
AXIS_LABELS = 2  # of scores, one per class
VALUE_LABELS = 3  # of class numbers

# The names by which MediaPipe finds the outputs of a detector
DETECTION_NAMES = {
    "boxes": "location",
    "labels": "category",
    "scores": "score",
    "count": "number of detections",
}
IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"


def add_metadata(content: bytes, metadata: dict) -> bytes:
    """Adds metadata to a LiteRT file.

    Args:
        content: The file.
        metadata: As `keras_coordatt.export.read_metadata` returns it.

    Returns:
        The file with the metadata.
    """
    import flatbuffers

    # TensorFlow has no public name for its flatbuffer schema.
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    names = {x.tensorIndex: x.name for x in model.signatureDefs[0].outputs}
    outputs = [names[index].decode() for index in model.subgraphs[0].outputs]

    buffer = schema.BufferT()
    buffer.data = _describe(metadata, outputs)
    entry = schema.MetadataT()
    entry.name, entry.buffer = "TFLITE_METADATA", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _describe(metadata, outputs):
    build = _Builder()
    image, preprocessing = {0: build.string("image")}, metadata["preprocessing"]
    if preprocessing is not None:
        height, width = preprocessing["input_size"]
        size = build.table({0: build.uint(width), 1: build.uint(height)})
        properties = build.table({0: build.byte(RGB), 1: size})
        image[3] = build.table({0: build.byte(IMAGE_PROPERTIES), 1: properties})
        # The schema's mean and std are for images in [0, 255]. If all channels have the
        # same values, MediaPipe expects a single number.
        mean, std = (
            [preprocessing["scale"] * x for x in preprocessing[key]]
            for key in ("mean", "std")
        )
        if len({*zip(mean, std)}) == 1:
            mean, std = mean[:1], std[:1]
        mean, std = build.floats(mean), build.floats(std)
        options = build.table({0: mean, 1: std})
        unit = build.table({0: build.byte(NORMALIZATION), 1: options})
        image[4] = build.vector([unit])
    described = [_describe_output(build, metadata, name, outputs) for name in outputs]
    graph = build.table(
        {2: build.vector([build.table(image)]), 3: build.vector(described)}
    )
    root = build.table(
        {
            0: build.string(metadata["name"]),
            3: build.vector([graph]),
            7: build.string(PARSER_VERSION),
        }
    )
    return build.finish(root)


def _describe_output(build, metadata, name, outputs):
    detects = {"boxes", "scores"} <= {*outputs}
    fields = {0: build.string(DETECTION_NAMES[name] if detects else name)}
    if detects and name == "boxes":
        order = build.uints([0, 1, 2, 3])  # left, top, right, bottom
        corners = {0: order, 1: build.byte(BOUNDARIES), 2: build.byte(RATIO)}
        kind = build.byte(BOUNDING_BOX_PROPERTIES)
        fields[3] = build.table({0: kind, 1: build.table(corners)})
    kind = _labeled(outputs).get(name)
    if kind is not None and metadata["labels"] is not None:
        labels = {0: build.string("labels.txt"), 2: build.byte(kind)}
        fields[6] = build.vector([build.table(labels)])
    return build.table(fields)


def _labeled(outputs):
    """Returns a dict from the outputs with labels to the kind of association."""
    if "labels" in outputs:
        return {"labels": VALUE_LABELS}
    if "boxes" in outputs:
        # Without suppression. The raw outputs of an SSDLite have no scores but "classes",
        # the background first, which the labels would not fit.
        return {"scores": AXIS_LABELS}
    return dict.fromkeys(outputs, AXIS_LABELS)


class _Builder:
    """Builds a flatbuffer from the inside out; a field is (function to add it, value)."""

    def __init__(self):
        import flatbuffers

        self.builder = flatbuffers.Builder()

    def byte(self, value):
        return self.builder.PrependInt8Slot, value

    def uint(self, value):
        return self.builder.PrependUint32Slot, value

    def string(self, value):
        return self._offset(self.builder.CreateString(value))

    def floats(self, values):
        return self._numbers(self.builder.PrependFloat32, values)

    def uints(self, values):
        return self._numbers(self.builder.PrependUint32, values)

    def _numbers(self, put, values):
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            put(value)
        return self._offset(self.builder.EndVector())

    def vector(self, fields):
        self.builder.StartVector(4, len(fields), 4)
        for _, offset in reversed(fields):
            self.builder.PrependUOffsetTRelative(offset)
        return self._offset(self.builder.EndVector())

    def table(self, fields):
        self.builder.StartObject(max(fields) + 1)
        for slot, (put, value) in fields.items():
            put(slot, value, 0)
        return self._offset(self.builder.EndObject())

    def _offset(self, offset):
        return self.builder.PrependUOffsetTRelativeSlot, offset

    def finish(self, root):
        self.builder.Finish(root[1], IDENTIFIER)
        return bytes(self.builder.Output())
