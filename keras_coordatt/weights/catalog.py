"""The published weights: where each file is, and how to use its network."""

import dataclasses
import pathlib

import keras
import numpy as np
from keras import ops

from keras_coordatt.preprocessing import IMAGENET, Preprocessing

# WordNet's identifier and the name of each class of ImageNet-1k, in the usual order:
# the identifiers are sorted. The names are torchvision's, in which no two are the same.
IMAGENET_CLASSES = tuple(
    tuple(line.split(" ", 1))
    for line in pathlib.Path(__file__)
    .with_name("imagenet_labels.txt")
    .read_text("utf-8")
    .splitlines()
)


@dataclasses.dataclass(frozen=True)
class Record:
    """A published file of weights.

    Attributes:
        network: The name of the builder.
        arguments: The builder's arguments that set its network.
        url: The URL of the file; `None` if it is in the package.
        filename: Its name in the cache or in the package.
        hash: `"git:"` and git's blob SHA-1, which covers its size and bytes; or
            `"md5:"` or `"sha256:"` and the digest of its bytes.
        parameters: The number of weights in the network, trainable or not.
        top1: Accuracy on the data set's test or validation images, in percent, as the
            source reports it.
        license: The license of the file.
        source: Who published it.
        weights: The builder's `weights` argument.
        dataset: The data it was trained on.
        labels: The names of the classes, in order.
        input_size: Height and width of the images in pixels.
        crop: The fraction of the resized image's side that the center crop keeps.
        interpolation: The interpolation for resizing images.
        mean: Mean of red, green and blue, in [0, 1].
        std: Standard deviation of red, green and blue, in [0, 1].
        training: For weights that we trained, the command with its seed, the machine
            and the time.
    """

    network: str
    arguments: dict
    url: str | None
    filename: str
    hash: str
    parameters: int
    top1: float
    license: str
    source: str
    weights: str = "imagenet"
    dataset: str = "ImageNet-1k"
    labels: tuple[str, ...] = tuple(label for _, label in IMAGENET_CLASSES)
    input_size: int = 224
    # PyTorch's usual evaluation, where the source does not say.
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET.mean
    std: tuple[float, ...] = IMAGENET.std
    training: str = ""

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.labels)

    @property
    def plain(self) -> bool:
        """Whether the network has no attention."""
        return self.arguments["attention"] is None

    @property
    def checked(self) -> str:
        """How the file was checked by us: opened and measured, or by its hash only."""
        return "opened and measured" if self.training else "hash only"

    @property
    def resize_size(self) -> int:
        """Length of the shorter side of an image before the center crop."""
        return round(self.input_size / self.crop)

    def transform(self, images: np.ndarray | keras.KerasTensor) -> keras.KerasTensor:
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


def _mobilenetv2(alpha, top1, parameters, filename, blob):
    """Returns the record of a network by d-li14, on which the official one is built."""
    repository = "https://github.com/d-li14/mobilenetv2.pytorch"
    commit = "1733532bd43743442077326e1efc556d7cfd025d"
    return Record(
        network="MobileNetV2CA",
        arguments={"alpha": alpha, "attention": None},
        url=f"{repository}/raw/{commit}/pretrained/{filename}",
        filename=filename,
        hash=f"git:{blob}",
        parameters=parameters,
        top1=top1,
        license="Apache-2.0",
        source=repository,
    )


def _efficientnet(variant, top1, parameters, input_size, md5):
    """Returns the record of a network of Keras, whose cache has the same paths."""
    filename = f"efficientnet{variant}.h5"
    return Record(
        network="EfficientNetCA",
        arguments={"variant": variant, "attention": "se"},
        url=f"https://storage.googleapis.com/keras-applications/{filename}",
        filename=filename,
        hash=f"md5:{md5}",
        parameters=parameters,
        top1=top1,
        license="Apache-2.0",
        source="https://keras.io/api/applications",
        input_size=input_size,
        # As in the authors' evaluation
        crop=input_size / (input_size + 32),
        interpolation="bicubic",
    )


CATALOG = {
    "mobilenetv2_ca_imagenet": Record(
        network="MobileNetV2CA",
        arguments={"alpha": 1.0, "attention": "coordinate", "reduction": 32},
        url="https://github.com/houqb/CoordAttention/raw/"
        "9c9d9cc234c1fc0e195816304eb07753ef308e00/mbv2_ca.pth",
        filename="mbv2_ca.pth",
        hash="git:07b6640600b7d767acfaebcf5ddb801b675073df",
        parameters=3_985_240,
        top1=74.3,
        license="MIT",
        source="https://github.com/houqb/CoordAttention",
    ),
    "mobilenetv2_imagenet": _mobilenetv2(
        1.0,
        72.834,
        3_538_984,
        "mobilenetv2-c5e733a8.pth",
        "328582ba4afd90b6d910cda251d9d9e411b60c39",
    ),
    "mobilenetv2_075_imagenet": _mobilenetv2(
        0.75,
        69.952,
        2_663_064,
        "mobilenetv2_0.75-dace9791.pth",
        "cdeec72e379dd97de9f2c6da9804bcb2b1acc83d",
    ),
    "mobilenetv2_050_imagenet": _mobilenetv2(
        0.5,
        64.592,
        1_987_224,
        "mobilenetv2_0.5-eaa6f9ad.pth",
        "ccd6f9174d801e775e3423dd82af6fbc4ee9456c",
    ),
    "mobilenetv2_035_imagenet": _mobilenetv2(
        0.35,
        60.092,
        1_691_208,
        "mobilenetv2_0.35-b2e15951.pth",
        "6e99454d05c8600f241f620557201ce9bd28a3a8",
    ),
    "mobilenetv2_025_imagenet": _mobilenetv2(
        0.25,
        52.352,
        1_529_768,
        "mobilenetv2_0.25-b61d2159.pth",
        "bf82bc72fc702f6dc491343b4991c1ff6d39b208",
    ),
    "mobilenext_imagenet": Record(
        network="MobileNeXtCA",
        arguments={"alpha": 1.0, "attention": None},
        url="https://github.com/houqb/ssdlite-pytorch-mobilenext/raw/"
        "6219e33efccceee1825a44cd46c39332d0c01eea/weights/mnext.pth.tar",
        filename="mnext.pth.tar",
        hash="git:dfcab7a4895a09fa9b19c7ac9d21651c55ab6a15",
        parameters=3_588_440,
        top1=74.0,  # the paper's; that of the file is not stated
        license="MIT",
        source="https://github.com/houqb/ssdlite-pytorch-mobilenext",
    ),
    **{
        f"efficientnet{variant}_imagenet": _efficientnet(variant, *row)
        for variant, *row in (
            ("b0", 77.1, 5_330_564, 224, "902e53a9f72be733fc0bcb005b3ebbac"),
            ("b1", 79.1, 7_856_232, 240, "1d254153d4ab51201f1646940f018540"),
            ("b2", 80.1, 9_177_562, 260, "b15cce36ff4dcbd00b6dd88e7857a6ad"),
            ("b3", 81.6, 12_320_528, 300, "ffd1fdc53d0ce67064dc6a9c7960ede0"),
            ("b4", 82.9, 19_466_816, 380, "18c95ad55216b8f92d7e70b3a046e2fc"),
            ("b5", 83.6, 30_562_520, 456, "ace28f2a6363774853a83a0b21b9421a"),
            ("b6", 84.0, 43_265_136, 528, "165f6e37dce68623721b423839de8be5"),
            ("b7", 84.3, 66_658_680, 600, "8c03f828fec3ef71311cd463b6759d99"),
        )
    },
    "mobilenetv2_ca_cifar10": Record(
        network="MobileNetV2CA",
        weights="cifar10",
        arguments={"alpha": 0.5, "attention": "coordinate", "reduction": 32},
        url=None,
        filename="mobilenetv2_ca_cifar10.safetensors",
        hash="sha256:73d930a03601da3a04ea102c5988c65fae1604bcaa42ca0d89a8ec3c6ebb0aeb",
        parameters=846_226,
        dataset="CIFAR-10",
        top1=83.2,
        input_size=64,
        crop=1.0,
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


def published(network: str) -> dict[str, Record]:
    """Returns the records of a builder's published weights, by name.

    Args:
        network: Name of the builder, such as `"MobileNetV2CA"`.

    Returns:
        Dict from names in the catalog to records.
    """
    return {name: r for name, r in CATALOG.items() if r.network == network}


def builder_call(record: Record, **changes) -> str:
    """Returns the line of code that builds a record's network with its weights."""
    arguments = {k: v for k, v in record.arguments.items() if k != "reduction"}
    arguments |= {"weights": record.weights, **changes}
    if record.classes != 1000:
        arguments["classes"] = record.classes
    listed = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{record.network}({listed})".replace("'", '"')


def table() -> str:
    """Returns the catalog as a table in Markdown."""
    rows = [
        ("Name", "Network", "Size", "Top-1", "License", "Source", "Checked here"),
        ("---",) * 7,
    ]
    rows += [
        (
            name,
            f"`{builder_call(record)}`",
            f"{megabytes(record)} MB",
            f"{record.top1:.1f} %",
            record.license,
            record.source,
            record.checked,
        )
        for name, record in CATALOG.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def megabytes(record: Record) -> int:
    """Returns the approximate size of a file, four bytes per weight."""
    return round(record.parameters * 4 / 1e6)
