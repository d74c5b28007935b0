"""The published weights: where each file is, and how to use its network."""

import dataclasses

from keras import ops

from keras_coordatt.preprocessing import IMAGENET, Preprocessing


@dataclasses.dataclass(frozen=True)
class Record:
    """A published file of weights.

    Attributes:
        network: The name of the builder.
        weights: The builder's `weights` argument.
        arguments: The builder's other arguments.
        url: The URL of the file, at a pinned commit; `None` if it is in the package.
        filename: Its name in the cache or in the package.
        hash: `"git:"` and git's blob SHA-1, which covers its size and bytes; or
            `"sha256:"` and the SHA-256 of its bytes.
        size: Its size in bytes, if it is known.
        dataset: The data it was trained on.
        classes: The number of classes.
        top1: Accuracy on the data set's test or validation images, in percent.
        input_size: Height and width of the images in pixels.
        crop: The fraction of the resized image that is cropped for evaluation.
        interpolation: The interpolation for resizing images.
        mean: Mean of red, green and blue, in [0, 1].
        std: Standard deviation of red, green and blue, in [0, 1].
        license: The licence of the file.
        source: Who published it.
        labels: The names of the classes, in order; empty for ImageNet's, which Keras
            has.
        training: For weights that we trained, the command with its seed, the machine
            and the time.
    """

    network: str
    weights: str
    arguments: dict
    url: str | None
    filename: str
    hash: str
    size: int | None
    dataset: str
    classes: int
    top1: float
    input_size: int
    crop: float
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    license: str
    source: str
    labels: tuple[str, ...] = ()
    training: str = ""

    @property
    def resize_size(self) -> int:
        """Length of the shorter side of an image before the center crop."""
        return round(self.input_size / self.crop)

    def transform(self, images):
        """Prepares images as for the network's evaluation.

        Resizes them so that their shorter side is `resize_size`, crops their center
        and normalizes them.

        Args:
            images: RGB images, `(N, H, W, 3)`, with values in [0, 255].

        Returns:
            A tensor, `(N, input_size, input_size, 3)`.

        Example:

        >>> record = CATALOG["mobilenetv2_ca_cifar10"]
        >>> model = MobileNetV2CA(weights="cifar10", classes=10, **record.arguments)
        >>> best = model.predict(record.transform(images)).argmax(axis=-1)
        >>> [record.labels[i] for i in best]
        """
        size = self.resize_size
        images = ops.image.resize(
            ops.cast(images, "float32"),
            (size, size),
            interpolation=self.interpolation,
            antialias=True,
            crop_to_aspect_ratio=True,
            data_format="channels_last",
        )
        start = (size - self.input_size) // 2
        end = start + self.input_size
        images = images[:, start:end, start:end]
        scale, offset = Preprocessing(self.mean, self.std).scale_and_offset(
            "channels_last"
        )
        return images * ops.convert_to_tensor(scale) + ops.convert_to_tensor(offset)


CATALOG = {
    "mobilenetv2_ca_imagenet": Record(
        network="MobileNetV2CA",
        weights="imagenet",
        arguments={"alpha": 1.0, "attention": "coordinate", "reduction": 32},
        url="https://github.com/houqb/CoordAttention/raw/"
        "9c9d9cc234c1fc0e195816304eb07753ef308e00/mbv2_ca.pth",
        filename="mbv2_ca.pth",
        hash="git:07b6640600b7d767acfaebcf5ddb801b675073df",
        size=None,
        dataset="ImageNet-1k",
        classes=1000,
        top1=74.3,
        input_size=224,
        # PyTorch's usual evaluation; the paper does not say.
        crop=0.875,
        interpolation="bilinear",
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        license="MIT",
        source="https://github.com/houqb/CoordAttention",
    ),
    "mobilenetv2_ca_cifar10": Record(
        network="MobileNetV2CA",
        weights="cifar10",
        arguments={"alpha": 0.5, "attention": "coordinate", "reduction": 32},
        url=None,
        filename="mobilenetv2_ca_cifar10.safetensors",
        hash="sha256:73d930a03601da3a04ea102c5988c65fae1604bcaa42ca0d89a8ec3c6ebb0aeb",
        size=3_431_464,
        dataset="CIFAR-10",
        classes=10,
        top1=83.4,
        input_size=64,
        crop=1.0,
        interpolation="bilinear",
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        license="MIT",
        source="keras_coordatt",
        labels=(
            *("airplane", "automobile", "bird", "cat", "deer"),
            *("dog", "frog", "horse", "ship", "truck"),
        ),
        training="keras-coordatt train DATA OUT --alpha 0.5 --image-size 64 --epochs 26 "
        "--batch-size 128 --optimizer sgd --learning-rate 0.1 --seed 0, with DATA the "
        "images as JPEG files; TensorFlow on two cores of a shared AMD EPYC machine, 82 "
        "minutes",
    ),
}


def published(network: str) -> dict[str, str]:
    """Returns the catalog's names by the `weights` argument of a builder."""
    return {r.weights: name for name, r in CATALOG.items() if r.network == network}


def table() -> str:
    """Returns the catalog as a table in Markdown."""
    rows = [
        ("Name", "Network", "Data", "Classes", "Input", "Top-1", "Licence", "Source"),
        ("---",) * 8,
    ]
    rows += [
        (
            name,
            record.network,
            record.dataset,
            str(record.classes),
            f"{record.input_size} × {record.input_size}",
            f"{record.top1:.1f} %",
            record.license,
            record.source,
        )
        for name, record in CATALOG.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
