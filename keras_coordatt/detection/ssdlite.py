"""SSDLite: SSD whose predictors are depthwise separable, on a mobile network."""

import math
import os
from collections.abc import Sequence

import keras
from keras import ops

from keras_coordatt import weights as weights_lib
from keras_coordatt.applications.arguments import check_weights_path
from keras_coordatt.detection.decoding import DecodeDetections
from keras_coordatt.detection.default_boxes import default_boxes, ssd_box_shapes
from keras_coordatt.detection.heads import (
    EXTRA_CHANNELS,
    add_heads,
    feature_maps,
    spatial_size,
)
from keras_coordatt.detection.losses import (
    NEGATIVES_PER_MATCH,
    multibox_loss,
    total_loss,
)
from keras_coordatt.detection.matching import training_targets
from keras_coordatt.detection.objects import (
    check_first_batch,
    check_keys,
    check_objects,
)
from keras_coordatt.detection.suppression import NonMaxSuppression
from keras_coordatt.validation import check_choice, check_positive_int


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
        skip_mismatch: Whether the file may be that of a detector of other classes:
            then the predictors of the classes stay random, with a warning, and all
            other weights are loaded. Defaults to `False`.
        name: Name of the model.

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
        skip_mismatch: bool = False,
        name: str = "ssdlite",
    ):
        check_positive_int("classes", classes)
        check_choice("skip_mismatch", skip_mismatch, (True, False))
        box_shapes = _check_shapes(
            ssd_box_shapes() if box_shapes is None else box_shapes
        )
        if weights is not None:
            check_weights_path(weights)
        middle, last, strided = feature_maps(backbone)

        # The backbone's data format and precision, whatever Keras's global ones are
        data_format = strided.data_format
        outputs, map_sizes = add_heads(
            (middle, last), box_shapes, classes, data_format, strided.dtype_policy
        )
        image_size = spatial_size(backbone.inputs[0], data_format)
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
            weights_lib.load_weights(self, weights, skip_mismatch=skip_mismatch)

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

    def fit(self, x=None, y=None, *args, validation_data=None, **kwargs):
        """Trains the model, after a check of the objects it is trained on.

        The boxes and labels in `y` and `validation_data`, or those of the first batch
        if they come in batches, are checked before the first step: in compiled code,
        labels out of range would train without an error.

        Args:
            x, y, *args, validation_data, **kwargs: Same as in `keras.Model.fit`.

        Returns:
            Same as `keras.Model.fit`.

        Raises:
            ValueError: If the labels are not integers from -1 to `classes - 1`, or
                the boxes are not `"rel_xyxy"`.
        """
        if y is not None:
            check_objects(y, self.classes)
        elif x is not None:
            x = check_first_batch(x, self.classes)
        if isinstance(validation_data, (tuple, list)):
            check_objects(validation_data[1], self.classes)
        elif validation_data is not None:
            validation_data = check_first_batch(validation_data, self.classes)
        return super().fit(x, y, *args, validation_data=validation_data, **kwargs)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        check_keys(y)
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
        return total_loss(box_loss, class_loss, *self.losses)

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
            "trainable": self.trainable,
            "frozen": [layer.name for layer in self.layers if not layer.trainable],
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        backbone = keras.saving.deserialize_keras_object(
            config["backbone"], custom_objects
        )
        config = {**config, "backbone": backbone}
        # Files saved by earlier versions have neither.
        trainable, frozen = config.pop("trainable", True), config.pop("frozen", [])
        model = cls(**config)
        if not trainable:
            model.trainable = False
        for layer in model.layers:
            # Not where it is so already: that would reset the layers inside.
            if layer.trainable == (layer.name in frozen):
                layer.trainable = layer.name not in frozen
        return model


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
