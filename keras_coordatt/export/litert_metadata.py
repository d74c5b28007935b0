"""TensorFlow Lite metadata, from which phone libraries configure themselves.

MediaPipe Tasks and ML Kit read it from a flatbuffer inside the file: size and
normalization of the image, and the name of the appended file with the labels.

Reference:
    metadata_schema.fbs of https://github.com/tensorflow/tflite-support
"""

import flatbuffers

# Values of the enumerations and unions in the schema.
IMAGE_PROPERTIES = 2
RGB = 1
NORMALIZATION = 1
AXIS_LABELS = 2
IDENTIFIER = b"M001"
PARSER_VERSION = "1.0.0"


def add_metadata(content: bytes, metadata: dict) -> bytes:
    """Puts metadata into a LiteRT file.

    Args:
        content: The file.
        metadata: As `keras_coordatt.export.read_metadata` returns it. Each output gets
            the labels.

    Returns:
        The file with the metadata.
    """
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
    image, how = {0: build.string("image")}, metadata["preprocessing"]
    if how is not None:
        height, width = how["input_size"]
        size = build.table({0: build.uint(width), 1: build.uint(height)})
        properties = build.table({0: build.byte(RGB), 1: size})
        image[3] = build.table({0: build.byte(IMAGE_PROPERTIES), 1: properties})
        # In the schema, they are for images in [0, 255]. Where the channels are alike,
        # MediaPipe expects a single number.
        mean, std = ([how["scale"] * x for x in how[key]] for key in ("mean", "std"))
        if len({*zip(mean, std)}) == 1:
            mean, std = mean[:1], std[:1]
        mean, std = build.floats(mean), build.floats(std)
        options = build.table({0: mean, 1: std})
        unit = build.table({0: build.byte(NORMALIZATION), 1: options})
        image[4] = build.vector([unit])
    scores = [{0: build.string(name)} for name in outputs]
    if metadata["labels"] is not None:
        for fields in scores:
            labels = {0: build.string("labels.txt"), 2: build.byte(AXIS_LABELS)}
            fields[6] = build.vector([build.table(labels)])
    graph = build.table(
        {
            2: build.vector([build.table(image)]),
            3: build.vector([build.table(fields) for fields in scores]),
        }
    )
    root = build.table(
        {
            0: build.string(metadata["name"]),
            3: build.vector([graph]),
            7: build.string(PARSER_VERSION),
        }
    )
    return build.finish(root)


class _Builder:
    """Builds a flatbuffer from the inside out; a field is (how to put it, value)."""

    def __init__(self):
        self.builder = flatbuffers.Builder()

    def byte(self, value):
        return self.builder.PrependInt8Slot, value

    def uint(self, value):
        return self.builder.PrependUint32Slot, value

    def string(self, value):
        return self._offset(self.builder.CreateString(value))

    def floats(self, values):
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
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
