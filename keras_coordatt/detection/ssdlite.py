"""SSDLite: SSD with depthwise separable predictors, on a mobile network."""

import math
import os
from collections.abc import Sequence

import keras
from keras import ops

from keras_coordatt import weights as weights_lib
from keras_coordatt.applications.arguments import check_weights_path
from keras_coordatt.applications.blocks import spatial_size
from keras_coordatt.checked_model import CheckedModel
from keras_coordatt.detection.decoding import DecodeDetections
from keras_coordatt.detection.default_boxes import default_boxes, ssd_box_shapes
from keras_coordatt.detection.heads import (
    EXTRA_CHANNELS,
    add_heads,
    feature_maps,
)
from keras_coordatt.detection.losses import (
    NEGATIVES_PER_MATCH,
    multibox_loss,
    total_loss,
)
from keras_coordatt.detection.matching import training_targets
from keras_coordatt.detection.objects import check_keys, check_objects, check_ranks
from keras_coordatt.detection.suppression import NonMaxSuppression
from keras_coordatt.validation import MAX_CHANNELS, check_choice, check_positive_int


@keras.saving.register_keras_serializable("keras_coordatt")
class SSDLite(CheckedModel):
    """SSDLite object detector on a backbone of this package.

    Boxes are predicted from six feature maps: the expanded feature map of the block
    with the stride to 32, taken before that stride; the backbone's last feature map;
    and four more, each of half the size. On a backbone with coordinate attention and
    320 x 320 images this is the paper's detector, with 4.8M parameters for COCO's 80
    classes.

    It is trained with SSD's loss on boxes and labels:

        model.compile("adam")
        model.fit(batches)  # (images, {"boxes": ..., "labels": ...})

    Boxes are `(N, M, 4)` in the format `"rel_xyxy"`: (x1, y1, x2, y2) as fractions of
    the image's width and height. Labels are `(N, M)`, from 0 to `classes - 1`, or -1
    where an image has fewer than `M` objects. `keras_coordatt.data.load_detection`
    yields such batches. `fit` checks them.

    The last feature maps have one position, so a batch of one image has one value per
    channel there. Batch normalization then uses its moving statistics, and does not
    update them; batches of more images train better.

    The outputs are a dict of `"boxes"`, offsets from `default_boxes`, `(N, A, 4)`, and
    `"classes"`, logits with the background first, `(N, A, classes + 1)`. `detector`
    decodes them.

    Args:
        backbone: A network of `MobileNetV2CA`, `MobileNeXtCA` or `EfficientNetCA` with
            an output stride of 32, built for images of a known size. The model shares
            its layers and weights, except for a classifier, and has its data format,
            precision and preprocessing.
        classes: Number of classes, without the background.
        box_shapes: Shapes of the default boxes for each of 2 to 6 feature maps.
            Defaults to `ssd_box_shapes()`. For small objects,
            `ssd_box_shapes(min_scale=0.1, reduce_first=False)` is better.
        weights: Path of a `.keras` or `.weights.h5` file of such a detector, or `None`
            for random predictors on the backbone as it is. Defaults to `None`.
        skip_mismatch: Whether `weights` may be those of a detector with another number
            of classes: its class predictors are skipped, with a warning. Defaults to
            `False`.
        name: Name of the model.

    Attributes:
        backbone: The network up to its last feature map, for example to freeze it.
        classes: Same as the argument.
        default_boxes: NumPy array `(A, 4)`, `"rel_xyxy"`.

    Raises:
        ValueError: If an argument is out of its range, or the backbone isn't such a
            network.

    Example:

    >>> backbone = MobileNetV2CA(
    ...     (64, 64, 3), alpha=0.5, include_top=False, weights="cifar10"
    ... )
    >>> model = SSDLite(backbone, classes=20)
    >>> model.compile("adam")
    >>> history = model.fit(train, validation_data=val, epochs=1)
    >>> detections = model.detector().predict(images)
    >>> detections["boxes"].shape
    (2, 100, 4)

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
        classes = check_positive_int("classes", classes, MAX_CHANNELS)
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

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adam",
        loss: None = None,
        **kwargs,
    ) -> None:
        """Configures the model for training with SSD's loss.

        Args:
            optimizer: Same as in `keras.Model.compile`. Defaults to `"adam"`.
            loss: Must be `None`.
            **kwargs: Other arguments of `keras.Model.compile`.

        Raises:
            ValueError: If a loss, loss weights or metrics are given.
        """
        kwargs["loss"] = loss
        for argument in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.get(argument) is not None:
                raise ValueError(
                    f"`{argument}` must be None: SSDLite has its own loss, and "
                    "`keras_coordatt.detection.evaluate_detections` measures average "
                    f"precision. Received: {kwargs[argument]!r}"
                )
        super().compile(optimizer, **kwargs)

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def check_targets(self, y):
        check_objects(y, self.classes)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        check_keys(y)
        check_ranks(y)
        if sample_weight is not None and len(sample_weight.shape) != 1:
            raise ValueError(
                "`sample_weight` must have one weight per image. "
                f"Received: {type(sample_weight)} of shape {sample_weight.shape}"
            )
        targets = training_targets(self.default_boxes, y["boxes"], y["labels"])
        box_loss, class_loss = multibox_loss(
            y_pred["boxes"], y_pred["classes"], *targets, sample_weight
        )
        # Weighted by the size of the batch, as Keras does for `loss`.
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
        """Builds a model from images to detections.

        It shares this model's weights, and can be saved and exported on its own.

        Args:
            score_threshold: Minimum score of a detection, exclusive, in [0, 1).
                Defaults to 0.05. For display 0.5 is usual; average precision needs
                low scores too.
            iou_threshold: Of two boxes of the same class with a higher intersection
                over union than this, the one with the lower score is dropped. In
                [0, 1). Defaults to 0.5.
            max_detections: Maximum number of detections per image. Defaults to 100.
            suppress: Whether to drop overlapping boxes. With `False`, the model returns
                the boxes of all positions, for runtimes that suppress on their own, and
                the other arguments are unused. Defaults to `True`.

        Returns:
            A `keras.Model` whose outputs are a dict of

            - `"boxes"`: `(N, max_detections, 4)`, float32, `"rel_xyxy"`;
            - `"labels"`: `(N, max_detections)`, int32, -1 after the last detection;
            - `"scores"`: `(N, max_detections)`, float32, in descending order;

            or, with `suppress=False`, of `"boxes"`, `(N, A, 4)`, and `"scores"`,
            `(N, A, classes)`, both float32.

        Raises:
            ValueError: If an argument is out of its range.

        Example:

        >>> detections = model.detector(score_threshold=0.5).predict(images)
        >>> detections["boxes"][0][detections["labels"][0] >= 0]
        """
        check_choice("suppress", suppress, (True, False))
        x = DecodeDetections(
            self.map_sizes,
            self.box_shapes,
            self.image_size,
            dtype="float32",
            name="decode",
        )({name: self.get_layer(name).output for name in ("boxes", "classes")})
        suppression = NonMaxSuppression(
            score_threshold,
            iou_threshold,
            max_detections,
            dtype="float32",
            name="suppression",
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
        # Missing in files saved by earlier versions
        trainable, frozen = config.pop("trainable", True), config.pop("frozen", [])
        model = cls(**config)
        if not trainable:
            model.trainable = False
        for layer in model.layers:
            # Only if it differs: the setter would reset the layers inside.
            if layer.trainable == (layer.name in frozen):
                layer.trainable = layer.name not in frozen
        return model


def _check_shapes(box_shapes):
    try:
        shapes = tuple(tuple((float(w), float(h)) for w, h in x) for x in box_shapes)
        good = all(shapes) and all(w > 0 and h > 0 for x in shapes for w, h in x)
    except (TypeError, ValueError):
        good = False
    most = 2 + len(EXTRA_CHANNELS)
    if not good or not 2 <= len(shapes) <= most:
        raise ValueError(
            "`box_shapes` must be a list of `(width, height)`, positive numbers, for "
            f"each of 2 to {most} feature maps. Received: {box_shapes!r}"
        )
    return shapes
