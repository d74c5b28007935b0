"""SSDLite: SSD whose predictors are depthwise separable, on a mobile network."""

import contextlib
import math
import os
from collections.abc import Sequence

import keras
from keras import layers, ops

from keras_coordatt import weights as weights_lib
from keras_coordatt.applications.arguments import check_weights_path
from keras_coordatt.applications.blocks import channel_axis, conv_bn, depthwise_bn
from keras_coordatt.applications.pyramid import pyramid_outputs
from keras_coordatt.detection.decoding import DecodeDetections
from keras_coordatt.detection.default_boxes import default_boxes, ssd_box_shapes
from keras_coordatt.detection.losses import NEGATIVES_PER_MATCH, multibox_loss
from keras_coordatt.detection.matching import training_targets
from keras_coordatt.detection.suppression import NonMaxSuppression
from keras_coordatt.validation import check_choice, check_positive_int

# Of the maps past the backbone.
EXTRA_CHANNELS = (512, 256, 256, 128)


@keras.saving.register_keras_serializable("keras_coordatt")
class SSDLite(keras.Model):
    """SSDLite, an object detector, on a network of this package.

    The default boxes are on six feature maps: the expanded map of the block that goes
    to stride 32, from before its stride; the backbone's last map; and four more, each
    of half the size. On a backbone with coordinate attention and 320 x 320 images it is
    the paper's detector, with 4.8M parameters for COCO's 80 classes.

    It is trained on raw boxes, by SSD's loss:

        model.compile("adam")
        model.fit(batches)  # (images, {"boxes": ..., "labels": ...})

    where boxes are `(N, M, 4)`, `"rel_xyxy"`: (x1, y1, x2, y2), parts of the image's
    width and height; and labels `(N, M)`, from 0 to `classes - 1`, or -1 where an image
    has fewer objects than `M`. `keras_coordatt.data.load_detection` gives such batches.

    Its outputs are a dict of `"boxes"`, offsets from `default_boxes`, `(N, A, 4)`, and
    `"classes"`, logits with the background first, `(N, A, classes + 1)`. What they
    mean, `detector` says.

    Args:
        backbone: A network of `MobileNetV2CA`, `MobileNeXtCA` or `EfficientNetCA` with
            an output stride of 32, built for images of a known size. Its layers are
            shared, with their weights; a classifier is left out. What it normalizes
            images by, the detector is given too.
        classes: Number of classes, without the background.
        box_shapes: Shapes of the default boxes on each of 2 to 6 feature maps.
            Defaults to `ssd_box_shapes()`. For small objects,
            `ssd_box_shapes(min_scale=0.1, reduce_first=False)` is better.
        weights: `None`, or the path of a file with the weights of such a detector:
            `.keras` or `.weights.h5`.
        name: Name of the model.
        skip_mismatch: Whether `weights` may be of a detector of other classes: what
            predicts the classes then stays random, with a warning. Defaults to
            `False`: a `ValueError`.

    Attributes:
        backbone: The network up to its last map, to freeze it for example.
        classes: As given.
        default_boxes: NumPy array `(A, 4)`, `"rel_xyxy"`.

    Raises:
        ValueError: if an argument is out of its range, or the backbone isn't such a
            network.

    Example:

    >>> backbone = MobileNetV2CA((320, 320, 3), include_top=False)
    >>> model = SSDLite(backbone, classes=20)
    >>> model.compile("adam")
    >>> model.fit(train, validation_data=val, epochs=100)
    >>> detections = model.detector().predict(images)

    Reference:
        - [SSD: Single Shot MultiBox Detector](https://arxiv.org/abs/1512.02325)
          (ECCV 2016)
        - [MobileNetV2](https://arxiv.org/abs/1801.04381) (CVPR 2018), section 6.2
        - [Coordinate Attention for Efficient Mobile Network Design](
          https://arxiv.org/abs/2103.02907) (CVPR 2021)
    """

    def __init__(
        self,
        backbone: keras.Model,
        classes: int,
        *,
        box_shapes: Sequence[Sequence[tuple[float, float]]] | None = None,
        weights: str | os.PathLike | None = None,
        name: str = "ssdlite",
        skip_mismatch: bool = False,
    ):
        check_positive_int("classes", classes)
        box_shapes = _check_shapes(
            ssd_box_shapes() if box_shapes is None else box_shapes
        )
        if weights is not None:
            check_weights_path(weights)
        middle, last, strided = _feature_maps(backbone)

        with _as_in(strided):
            maps = [middle, last]
            for i, channels in enumerate(EXTRA_CHANNELS[: len(box_shapes) - 2], 1):
                maps.append(extra_map(maps[-1], channels, f"extra_{i}_"))
            offsets, logits = [], []
            for i, (x, shapes) in enumerate(zip(maps, box_shapes), 1):
                offsets.append(predictor(x, len(shapes), 4, f"map_{i}_boxes"))
                logits.append(
                    predictor(x, len(shapes), classes + 1, f"map_{i}_classes")
                )
            map_sizes = tuple(_size(x) for x in maps)
            image_size = _size(backbone.inputs[0])
        outputs = {
            "boxes": layers.Concatenate(1, name="boxes", dtype="float32")(offsets),
            "classes": layers.Concatenate(1, name="classes", dtype="float32")(logits),
        }
        features = keras.Model(backbone.input, last, name=backbone.name)

        super().__init__(inputs=backbone.input, outputs=outputs, name=name)
        self.backbone = features
        self.classes = classes
        self.box_shapes = box_shapes
        self.map_sizes = map_sizes
        self.image_size = image_size
        self.default_boxes = default_boxes(map_sizes, box_shapes, image_size)
        self.box_loss = keras.metrics.Mean("box_loss")
        self.class_loss = keras.metrics.Mean("class_loss")

        # Hard negative mining leaves three quarters of the background.
        bias = [math.log(NEGATIVES_PER_MATCH * classes)] + [0.0] * classes
        for i, shapes in enumerate(box_shapes, 1):
            self.get_layer(f"map_{i}_classes").bias.assign(bias * len(shapes))
        if weights is not None:
            weights_lib.load_weights(self, weights, skip_mismatch)

    # Training

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """Configures the training. The loss is SSD's.

        Args:
            optimizer: As of `keras.Model.compile`. Defaults to `"adam"`.
            loss: Must be `None`.
            **kwargs: The other arguments of `keras.Model.compile`.

        Raises:
            ValueError: if another loss or metrics of the outputs are given.
        """
        kwargs["loss"] = loss
        for argument in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(argument) is not None:
                raise ValueError(
                    f"`{argument}` must be None: an SSDLite has its own loss, and "
                    "`keras_coordatt.detection.evaluate_detections` tells its average "
                    f"precision. Received: {kwargs[argument]!r}"
                )
        super().compile(optimizer, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        if not isinstance(y, dict) or not {"boxes", "labels"} <= set(y):
            raise ValueError(
                "`y` must be a dict of 'boxes', (N, M, 4), and 'labels', (N, M). "
                f"Received: {type(y) if not isinstance(y, dict) else list(y)}"
            )
        if sample_weight is not None:
            raise ValueError(
                "`sample_weight` must be None: boxes have no weights. "
                f"Received: {type(sample_weight)}"
            )
        targets = training_targets(self.default_boxes, y["boxes"], y["labels"])
        box_loss, class_loss = multibox_loss(
            y_pred["boxes"], y_pred["classes"], *targets
        )
        # As Keras's own, of which batches of other sizes have other shares.
        size = ops.shape(y_pred["boxes"])[0]
        self.box_loss.update_state(box_loss, sample_weight=size)
        self.class_loss.update_state(class_loss, sample_weight=size)
        return box_loss + class_loss + sum(self.losses)

    # Detection

    def detector(
        self,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        max_detections: int = 100,
        suppress: bool = True,
    ) -> keras.Model:
        """Gives a model from images to what is on them.

        It shares the weights, and can be saved and exported on its own.

        Args:
            score_threshold: Detections have a score higher than this, in [0, 1).
                Defaults to 0.05; people look at 0.5 and more, and average precision
                wants the low ones too.
            iou_threshold: Of two boxes of one class whose intersection over union is
                higher than this, the one with the lower score is dropped. In [0, 1).
                Defaults to 0.5.
            max_detections: The most detections of an image. Defaults to 100.
            suppress: `False` for the boxes of all positions, for runtimes that drop the
                overlapping ones themselves. The other arguments are then unused.

        Returns:
            A `keras.Model`, whose outputs are a dict of

            - `"boxes"`, `(N, max_detections, 4)`, `"rel_xyxy"`;
            - `"labels"`, `(N, max_detections)`, int32, -1 where there is no more;
            - `"scores"`, `(N, max_detections)`, the highest first;

            or, with `suppress=False`, of `"boxes"`, `(N, A, 4)`, and `"scores"`,
            `(N, A, classes)`.

        Raises:
            ValueError: if an argument is out of its range.

        Example:

        >>> detections = model.detector(score_threshold=0.5).predict(images)
        >>> detections["boxes"][0][detections["labels"][0] >= 0]
        """
        check_choice("suppress", suppress, (True, False))
        x = DecodeDetections(
            self.map_sizes, self.box_shapes, self.image_size, name="decode"
        )({name: self.get_layer(name).output for name in ("boxes", "classes")})
        suppression = NonMaxSuppression(
            score_threshold, iou_threshold, max_detections, name="suppression"
        )
        outputs = suppression(x) if suppress else x
        return keras.Model(self.input, outputs, name=f"{self.name}_detector")

    # Saving

    def get_config(self):
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "classes": self.classes,
            "box_shapes": [[list(shape) for shape in x] for x in self.box_shapes],
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        backbone = keras.saving.deserialize_keras_object(
            config["backbone"], custom_objects
        )
        return cls(**{**config, "backbone": backbone})


def extra_map(x, channels, prefix):
    """A map of half the size: narrowing, depthwise convolution, expansion."""
    name = f"{prefix}reduce"
    x = conv_bn(x, channels // 2, 1, name, f"{name}_BN")
    x = layers.ReLU(6.0, name=f"{name}_relu")(x)
    name = f"{prefix}depthwise"
    x = depthwise_bn(x, 3, name, stride=2)
    x = layers.ReLU(6.0, name=f"{name}_relu")(x)
    name = f"{prefix}expand"
    x = conv_bn(x, channels, 1, name, f"{name}_BN")
    return layers.ReLU(6.0, name=f"{name}_relu")(x)


def predictor(x, boxes, numbers, name):
    """Some numbers for each box at each position: `(N, H * W * boxes, numbers)`."""
    x = depthwise_bn(x, 3, f"{name}_depthwise")
    x = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(x)
    x = layers.Conv2D(
        boxes * numbers,
        1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        name=name,
    )(x)
    if channel_axis() == 1:
        x = layers.Permute((2, 3, 1), name=f"{name}_permute")(x)
    return layers.Reshape((-1, numbers), name=f"{name}_reshape")(x)


# The backbone


def _feature_maps(backbone):
    """The map before the stride to 32, the last one, and the layer of the stride."""
    received = f"Received: {getattr(backbone, 'name', repr(backbone))}"
    try:
        coarsest = list(pyramid_outputs(backbone))[-1]
    except ValueError:
        coarsest = None
    if coarsest != "P5":
        raise ValueError(
            "`backbone` must be a network of `keras_coordatt.applications` with "
            f"`output_stride=32`. {received}"
        )
    strided = [
        layer
        for layer in backbone.layers
        if isinstance(layer, layers.DepthwiseConv2D) and layer.strides[0] > 1
    ][-1]
    middle = strided.input
    for layer in backbone.layers:
        # At a stride, the networks pad in a layer of its own.
        if isinstance(layer, layers.ZeroPadding2D) and layer.output is middle:
            middle = layer.input
    pools = [
        layer
        for layer in backbone.layers
        if isinstance(layer, (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D))
    ]
    last = pools[-1].input if pools else backbone.outputs[-1]
    if len(last.shape) != 4:
        raise ValueError(f"`backbone` must end in a feature map. {received}")
    if None in (*middle.shape[1:], *last.shape[1:]):
        raise ValueError(
            "`backbone` must be built for images of a known size, for example with "
            f"`input_shape=(320, 320, 3)`. {received}, "
            f"{tuple(backbone.inputs[0].shape[1:])}"
        )
    return middle, last, strided


@contextlib.contextmanager
def _as_in(layer):
    """Builds layers in the precision and the data format of another one."""
    before = keras.config.dtype_policy(), keras.config.image_data_format()
    keras.config.set_dtype_policy(layer.dtype_policy)
    keras.config.set_image_data_format(layer.data_format)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_image_data_format(before[1])


def _size(x):
    """Height and width of a map, by the data format."""
    sizes = list(x.shape[1:])
    sizes.pop(channel_axis() - 1)
    return tuple(sizes)


def _check_shapes(box_shapes):
    try:
        shapes = tuple(tuple((float(w), float(h)) for w, h in x) for x in box_shapes)
        good = all(shapes) and all(w > 0 and h > 0 for x in shapes for w, h in x)
    except (TypeError, ValueError):
        good = False
    if not good or not 2 <= len(shapes) <= 2 + len(EXTRA_CHANNELS):
        raise ValueError(
            "`box_shapes` must be a list of `(width, height)`, positive numbers, for "
            f"each of 2 to {2 + len(EXTRA_CHANNELS)} maps. Received: {box_shapes!r}"
        )
    return shapes
