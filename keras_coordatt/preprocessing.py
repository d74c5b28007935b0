"""Preprocessing of images, recorded on the network itself.

    model = MobileNetV2CA()
    preprocessing_of(model).normalize(images)

The builders put a `PreprocessingRecord`, a layer that computes nothing, where the image
enters. As part of the graph it is saved, cloned, nested and copied with the network.
"""

import dataclasses
import json
from typing import Any

import keras
import numpy as np
from keras import layers
from keras.applications import imagenet_utils

from keras_coordatt.graph import Graph, is_network
from keras_coordatt.validation import check_choice, check_mapping

__all__ = [
    "IMAGENET",
    "RAW_PIXELS",
    "Preprocessing",
    "PreprocessingRecord",
    "decode_predictions",
    "preprocess_input",
    "preprocessing_of",
]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "area", "lanczos3", "lanczos5")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a network's images.

    An RGB image of bytes is resized to the network's size, without keeping the aspect
    ratio, and becomes `(image / 255 - mean) / std`.

    Attributes:
        mean: Mean per channel, of values in [0, 1]. Defaults to ImageNet's, as in
            `preprocess_input`.
        std: Standard deviation per channel, of values in [0, 1]. Defaults to
            ImageNet's.
        interpolation: `"nearest"`, `"bilinear"`, `"bicubic"`, `"area"`, `"lanczos3"` or
            `"lanczos5"`. Defaults to `"bilinear"`.
        antialias: Whether to smooth images while they are made smaller. Defaults to
            `True`, as in `keras_coordatt.data`.

    Raises:
        ValueError: If `mean` and `std` don't have one finite number per channel, `std`
            isn't positive, or another attribute isn't one of the above.

    Example:

    >>> # The preprocessing of keras.applications.MobileNetV2
    >>> Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).interpolation
    'bilinear'
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    antialias: bool = True

    def __post_init__(self):
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        check_choice("antialias", self.antialias, (True, False))
        try:
            mean, std = (tuple(float(x) for x in y) for y in (self.mean, self.std))
            good = len(mean) == len(std) > 0 and all(x > 0 for x in std)
            good = good and bool(np.isfinite([*mean, *std]).all())
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(
                "`mean` and `std` must have one number per channel, and those of `std` "
                f"must be positive. Received: mean={self.mean!r}, std={self.std!r}"
            )
        # JSON turns tuples into lists; `object.__setattr__` because the class is frozen.
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    def resize(self, images: Any, size: tuple[int, int]) -> Any:
        """Resizes images with TensorFlow, to whole numbers in [0, 255].

        Args:
            images: Images with values in [0, 255], `(H, W, C)` or `(N, H, W, C)`.
            size: The new height and width.

        Returns:
            A `tf.Tensor`: float32, or as `images` if the interpolation is `"nearest"`.

        Example:

        >>> IMAGENET.resize(np.zeros((40, 30, 3), "uint8"), (32, 32)).shape.as_list()
        [32, 32, 3]
        """
        # Imported here, as networks and weights do without it.
        import tensorflow as tf

        x = tf.image.resize(images, size, self.interpolation, antialias=self.antialias)
        # Bicubic and Lanczos interpolation overshoot [0, 255].
        return tf.clip_by_value(tf.round(x), 0, 255)

    def normalize(
        self, images: np.ndarray | keras.KerasTensor, data_format: str | None = None
    ) -> np.ndarray | keras.KerasTensor:
        """Subtracts the mean and divides by the standard deviation.

        Args:
            images: Array, or floating-point tensor, of images with values in
                [0, 255], `(..., H, W, C)` or `(..., C, H, W)`.
            data_format: `"channels_last"` or `"channels_first"`. Defaults to
                `keras.config.image_data_format()`.

        Returns:
            The network's input, in floating point, of the same size.

        Example:

        >>> float(IMAGENET.normalize(np.full((1, 8, 8, 3), 255.0)).max().round(2))
        2.64
        """
        scale, offset = self.scale_and_offset(data_format)
        return images * scale + offset

    def scale_and_offset(
        self, data_format: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns `(scale, offset)`, with `normalize(x) == x * scale + offset`.

        Args:
            data_format: Same as in `normalize`.

        Returns:
            Two float32 arrays that broadcast over images: `(C,)`, or `(C, 1, 1)`.
        """
        first = (data_format or keras.config.image_data_format()) == "channels_first"
        mean, std = np.asarray(self.mean), np.asarray(self.std)
        shape = (-1, 1, 1) if first else (-1,)
        scale, offset = 1 / (255 * std), -mean / std
        return (
            scale.reshape(shape).astype("float32"),
            offset.reshape(shape).astype("float32"),
        )


# Mean and standard deviation of ImageNet's RGB values.
IMAGENET = Preprocessing()

# Leaves pixels in [0, 255] as they are.
RAW_PIXELS = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))


@keras.saving.register_keras_serializable("keras_coordatt")
class PreprocessingRecord(layers.Layer):
    """Identity layer that records how the images that enter it were prepared.

    Args:
        preprocessing: A `Preprocessing`, or its attributes as a dict.
        records: Task, labels, image size and metrics by the head that they belong to,
            as a dict that can be written as JSON. `keras_coordatt.record` reads and
            writes them. Defaults to none.
        **kwargs: `name`, `dtype`, `trainable`.

    Input shape:
        Any.

    Output shape:
        Same as the input's.

    Example:

    >>> image = keras.Input((32, 32, 3))
    >>> x = PreprocessingRecord(RAW_PIXELS)(image)
    >>> model = keras.Model(image, keras.layers.Conv2D(8, 3)(x))
    >>> preprocessing_of(model) == RAW_PIXELS
    True
    """

    def __init__(
        self,
        preprocessing: Preprocessing | dict,
        records: dict | None = None,
        **kwargs,
    ):
        # Bytes up to 255 would lose bits in half precision.
        super().__init__(autocast=False, **kwargs)
        known = {field.name for field in dataclasses.fields(Preprocessing)}
        if isinstance(preprocessing, dict) and known.issuperset(preprocessing):
            preprocessing = Preprocessing(**preprocessing)
        if not isinstance(preprocessing, Preprocessing):
            raise TypeError(
                "`preprocessing` must be a Preprocessing or a dict of its attributes. "
                f"Received: {preprocessing!r}"
            )
        self.preprocessing = preprocessing
        self.records = {} if records is None else records
        self.built = True

    @property
    def records(self) -> dict:
        return json.loads(self._records)

    @records.setter
    def records(self, records: dict):
        # A JSON string, because Keras and TensorFlow would wrap and track a dict.
        check_mapping("records", records)
        try:
            self._records = json.dumps(records)
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`records` must be a dict that can be written as JSON. "
                f"Received: {records!r}"
            ) from error

    def call(self, inputs):
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        record = dataclasses.asdict(self.preprocessing)
        record |= {"mean": list(record["mean"]), "std": list(record["std"])}
        config = {**super().get_config(), "preprocessing": record}
        return {**config, "records": self.records} if self.records else config


# Layers that don't change the values of images at inference, so that a record after
# them is also valid before them.
TRANSPARENT = (
    layers.Identity,
    layers.Dropout,
    layers.Resizing,
    layers.CenterCrop,
    *(getattr(layers, name) for name in dir(layers) if name.startswith("Rand")),
)


def preprocessing_of(model: keras.Model) -> Preprocessing | None:
    """Returns the preprocessing that a model's images need, as recorded on it.

    Nothing is guessed: the record is the builders', found after the model's input,
    also in nested models and after resizing or random augmentation.

    Args:
        model: A `keras.Model`.

    Returns:
        The `Preprocessing`, or `None` if there is no record, if another layer stands
        before it, or if several disagree.

    Raises:
        TypeError: If `model` isn't a Keras model.

    Example:

    >>> model = MobileNetV2CA((64, 64, 3), weights=None, include_preprocessing=True)
    >>> preprocessing_of(model) == RAW_PIXELS
    True
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {model!r}")
    found = {layer and layer.preprocessing for layer in record_layers(model)}
    return found.pop() if len(found) == 1 else None


def record_layers(model):
    """Finds the `PreprocessingRecord` layers where images enter a model.

    Returns:
        A list of them, with `None` for each other reader of the images.
    """
    if not is_network(model) or not model.built:
        return [None]
    graph, found = Graph(model), {}
    images = {id(x) for x in graph.inputs}
    for call in graph.calls:
        op = call.op
        # `ResizeLike` reads the values of its first input only.
        values = call.inputs[: getattr(op, "value_inputs", None)]
        if not any(id(x) in images for x in values):
            continue
        if isinstance(op, PreprocessingRecord):
            found[id(op)] = op
        elif isinstance(op, keras.Model):
            found |= {id(layer): layer for layer in record_layers(op)}
        elif isinstance(op, TRANSPARENT):
            images.update(id(x) for x in call.outputs)
        else:
            found[None] = None
    return list(found.values())


def preprocess_input(
    x: np.ndarray | keras.KerasTensor, data_format: str | None = None
) -> np.ndarray | keras.KerasTensor:
    """Normalizes RGB images by ImageNet's mean and standard deviation.

    Args:
        x: Array or tensor of images with values in [0, 255], `(..., H, W, 3)` or
            `(..., 3, H, W)`.
        data_format: `"channels_last"` or `"channels_first"`. Defaults to
            `keras.config.image_data_format()`.

    Returns:
        New images in floating point, of about zero mean and unit variance.

    Raises:
        ValueError: If `data_format` is unknown, or `x` isn't of 3 channels.

    Example:

    >>> float(preprocess_input(np.full((1, 224, 224, 3), 255.0)).max().round(2))
    2.64
    """
    check_choice("data_format", data_format, ("channels_last", "channels_first", None))
    data_format = data_format or keras.config.image_data_format()
    axis, form = (-1, "H, W, 3") if data_format == "channels_last" else (-3, "3, H, W")
    shape = getattr(x, "shape", ())
    if len(shape) < 3 or shape[axis] not in (3, None):
        raise ValueError(
            f"`x` must be an array or tensor of RGB images, (..., {form}). "
            f"Received: {f'shape {tuple(shape)}' if shape else repr(x)}"
        )
    if isinstance(x, np.ndarray):
        x = x.copy()  # Keras would write into the caller's
    return imagenet_utils.preprocess_input(x, data_format=data_format, mode="torch")


def decode_predictions(
    preds: np.ndarray, top: int = 5
) -> list[list[tuple[str, str, float]]]:
    """Decodes the predictions of a network trained on ImageNet.

    The class names are downloaded once, by Keras.

    Args:
        preds: Array of predictions, `(N, 1000)`.
        top: Number of classes per image. Defaults to 5.

    Returns:
        One list per image of tuples `(class_name, class_description, score)`, the
        highest score first.

    Raises:
        ValueError: If `preds` is not of shape `(N, 1000)`.
    """
    return imagenet_utils.decode_predictions(preds, top=top)
