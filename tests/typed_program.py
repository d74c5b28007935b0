"""The package as a user's type checker sees it: `make lint` checks this file, nothing runs it.

Each ignored error must be found. If a function lost its type hints, mypy would report
the comment as unused.
"""

import keras

import keras_coordatt
from keras_coordatt import (
    CoordinateAttention,
    EfficientNetCA,
    MobileNetV2CA,
    MobileNeXtCA,
    export,
    fuse_attention,
    insert_attention,
    weights,
)
from keras_coordatt.applications import pyramid_outputs
from keras_coordatt.layers import freeze_batch_norm
from keras_coordatt.prediction import predict

model: keras.Model = MobileNetV2CA((64, 64, 3), alpha=0.5, attention="se")
MobileNetV2CA(alpha="wide")  # type: ignore[arg-type]
MobileNeXtCA(clases=10)  # type: ignore[call-arg]
EfficientNetCA("b0", weights=None, output_stride="16")  # type: ignore[arg-type]

layer = CoordinateAttention(reduction=16, axes="height")
CoordinateAttention(reduction="16")  # type: ignore[arg-type]
CoordinateAttention(activation=1)  # type: ignore[arg-type]
identity: bool = layer.identity_init

weights.load_torch(model, "network.pth", skip_mismatch=True)
weights.load_torch(model, 1)  # type: ignore[arg-type]
weights.save_safetensors(model, 1)  # type: ignore[arg-type]

network: keras.Model = fuse_attention(insert_attention(model, after="depthwise"))
insert_attention(model, where="depthwise")  # type: ignore[call-arg]
freeze_batch_norm(model)
maps: dict[str, keras.KerasTensor] = pyramid_outputs(model)

difference: dict[str, float] = export.litert(model, "model.tflite").difference
export.litert(model)  # type: ignore[call-arg]
preprocessing: export.Preprocessing | None = export.preprocessing_of(model)
mean = preprocessing.mean  # type: ignore[union-attr]

predict(model, 1)  # type: ignore[arg-type]

keras_coordatt.segmentation.DeepLabV3(model, classes=21)
keras_coordatt.detection.SSDLite(model, classes=20)
