"""Finds published weights by the names that a builder's `weights` argument takes."""

from keras_coordatt.validation import check_choice, with_hint
from keras_coordatt.weights.cache import published_path
from keras_coordatt.weights.catalog import (
    CATALOG,
    builder_call,
    megabytes,
    published,
)

# The weights of the network without attention, under attention that starts as the
# identity.
PLAIN = "imagenet-plain"
# The attentions that can start as the identity.
IDENTITIES = ("coordinate", "height", "width")


def names_of(network: str) -> tuple[str, ...]:
    """Returns the names that a builder's `weights` argument takes."""
    records = published(network).values()
    names = dict.fromkeys(record.weights for record in records)
    has_plain = any(record.plain for record in records)
    return (*names, *((PLAIN,) if has_plain else ()))


def find_published(network: str, weights, arguments: dict) -> str | None:
    """Returns the catalog's name of the weights that a builder asks for.

    Args:
        network: The name of the builder.
        weights: Its `weights` argument.
        arguments: Its arguments that set the network.

    Returns:
        The name, or `None` if `weights` isn't one of `names_of(network)`.

    Raises:
        ValueError: If there are no such weights for these arguments. A note shows calls
            for which there are.
    """
    if not isinstance(weights, str) or weights not in names_of(network):
        return None
    wanted, key = dict(arguments), weights
    if weights == PLAIN:
        key = "imagenet"
        if arguments["attention"] in IDENTITIES:
            wanted["attention"] = None
        else:
            del wanted["attention"]
    records = {n: r for n, r in published(network).items() if r.weights == key}
    for name, record in records.items():
        if record.arguments.items() <= wanted.items():
            return name
    error = ValueError(
        f'`weights="{weights}"` is not published for these arguments. '
        "`keras-coordatt weights` lists the published files; `weights=None` is random "
        "initialization. Received: "
        + ", ".join(f"{k}={v!r}" for k, v in arguments.items())
    )
    raise with_hint(
        error,
        "Build one of these; `keras_coordatt.applications.list_weights()` has all.\n  "
        + "\n  ".join(_calls(records.values(), arguments)),
    )


def only_arguments(network: str, weights) -> dict:
    """Returns a network's arguments if there is one for these weights, or else `{}`."""
    records = [r for r in published(network).values() if r.weights == weights]
    return dict(records[0].arguments) if len(records) == 1 else {}


def _calls(records, arguments):
    """Returns lines of code that load published weights, of the same size if possible."""
    size = "variant" if "variant" in arguments else "alpha"
    same = [r for r in records if r.arguments[size] == arguments[size]]
    attention = arguments["attention"]
    attention = attention if attention in IDENTITIES else "coordinate"
    lines = []
    for record in same or records:
        lines.append(builder_call(record))
        if record.plain:
            lines.append(builder_call(record, attention=attention, weights=PLAIN))
        elif record.arguments["attention"] == "se":
            lines.append(f"insert_attention({builder_call(record)})")
    return lines


def list_weights(network: str | None = None) -> list[dict]:
    """Returns the records of all published files of weights.

    Args:
        network: The name of a builder, such as `"MobileNetV2CA"`. Defaults to all.

    Returns:
        One dict per file, with the keys `name`, `network`, `arguments` and `weights`
        (those of the builder), `plain` (whether `weights="imagenet-plain"` loads the
        file too, under attention that is not trained), `classes`, `dataset`, `top1` (in
        percent, as the source reports it), `license`, `source`, `megabytes`
        (approximate), `cached` (the path of the file on this machine, or `None`) and
        `checked` (`"opened and measured"` by the authors of this package, or `"hash
        only"`).

    Raises:
        ValueError: If there is no such network.

    Example:

    >>> [w["name"] for w in list_weights("MobileNeXtCA")]
    ['mobilenext_imagenet']
    """
    networks = {record.network for record in CATALOG.values()}
    check_choice("network", network, (None, *sorted(networks)))
    return [
        {
            "name": name,
            "network": record.network,
            "arguments": dict(record.arguments),
            "weights": record.weights,
            "plain": record.plain,
            "classes": record.classes,
            "dataset": record.dataset,
            "top1": record.top1,
            "license": record.license,
            "source": record.source,
            "megabytes": megabytes(record),
            "cached": str(path) if (path := published_path(name)).exists() else None,
            "checked": record.checked,
        }
        for name, record in CATALOG.items()
        if network in (None, record.network)
    ]


def is_plain(weights) -> bool:
    """Returns whether a builder's `weights` ask for attention that is the identity."""
    return isinstance(weights, str) and weights == PLAIN
