"""One description per argument, shared by the docstrings of the builders."""

import inspect
import textwrap
from collections.abc import Callable
from typing import TypeVar

Builder = TypeVar("Builder", bound=Callable)

ARGUMENTS = {
    "input_shape": """
        `(H, W, C)`, or `(C, H, W)` with `"channels_first"`. `H` and `W` are at least
        32, or `None`. Defaults to 3 channels and, with the top, the image size of the
        weights, or {default_size} without weights; without the top, to any size.""",
    "alpha": """
        Positive number, the width multiplier. Up to 1, the last {last_layer} keeps its
        1280 channels. Defaults to 1.0.""",
    "include_top": """
        Whether to include the classifier. Defaults to `True`.""",
    "weights": """
        `None` (random initialization); {published}; the path of a file (`.keras`,
        `.weights.h5`, `.h5`, `.pth`, `.pt` or `.safetensors`); or
        `"hf://user/repository/file"`, a file on the Hugging Face Hub.
        `keras_coordatt.applications.list_weights` lists the published files. A network
        with a published classifier also has the names of its classes
        (`keras_coordatt.record.record_of`). Defaults to {default_weights}.""",
    "input_tensor": """
        Keras tensor to use as the image input; may be the output of other layers.""",
    "pooling": """
        Without the top: `None` returns the feature map, `"avg"` and `"max"` its global
        average and maximum. Defaults to `None`.""",
    "classes": """
        Number of classes. Defaults to 1000.""",
    "classifier_activation": """
        Activation of the classifier; `None` returns logits. Defaults to `"softmax"`.
        The output is float32, also in mixed precision.""",
    "name": """
        Name of the model.""",
    "attention": """
        `"coordinate"`; `"height"` or `"width"`, the paper's ablations; `"se"` or
        `"cbam"`, its baselines{baselines}; `None`, for the plain network; or a callable
        that returns a layer, called with `name=` if it takes it, such as
        `functools.partial(SqueezeExcite, reduction=16)`. Defaults to `"coordinate"`.""",
    "reduction": """
        Reduction of coordinate attention's shared transform. Defaults to
        {default_reduction}.""",
    "output_stride": """
        Ratio of the image size to the size of the last feature map: 32, 16 or 8. Below
        32 the last stages keep their resolution, and their depthwise convolutions are
        dilated; the weights are the same. Defaults to 32.""",
    "include_preprocessing": """
        Whether the network does the work of `preprocess_input` itself, and so takes RGB
        values in [0, 255]. The weights are the same. Defaults to `False`.""",
    "skip_mismatch": """
        Whether `weights` may be for another number of classes or image channels. The
        classifier then keeps its initial weights; the first kernel is summed over its
        channels for 1 channel, and repeated for others. One warning says so. Defaults
        to `False`, which raises a `ValueError`.""",
}


def shared_docstring(**values: str) -> Callable[[Builder], Builder]:
    """Returns a decorator that writes the `Args` section of a builder's docstring.

    Args:
        **values: Values of the placeholders in `ARGUMENTS`; or, by the name of an
            argument, the whole description of one that only this builder takes.

    Returns:
        The decorator. It replaces the line `{arguments}` of the docstring by one entry
        per parameter of the builder.
    """

    def document(builder: Builder) -> Builder:
        entries = []
        for name in inspect.signature(builder).parameters:
            text = values.get(name) or ARGUMENTS[name].format(**values)
            text = f"{name}: {' '.join(text.split())}"
            entries += textwrap.wrap(
                text,
                width=80,
                initial_indent=" " * 4,
                subsequent_indent=" " * 8,
                break_long_words=False,
                break_on_hyphens=False,
            )
        lines = inspect.cleandoc(builder.__doc__ or "")
        builder.__doc__ = lines.replace("    {arguments}", "\n".join(entries))
        return builder

    return document
