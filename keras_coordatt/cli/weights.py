"""`keras-coordatt weights`: the catalog."""

from keras_coordatt.weights.cache import cached_path, published_path
from keras_coordatt.weights.catalog import CATALOG


def weights() -> None:
    """List the published weights, and where each is or would be in the cache."""
    for name, record in CATALOG.items():
        if record.url is None:
            place = f"  training  {record.training}\n  file      in the package"
        else:
            paths = cached_path(name), published_path(name)
            cached = next((path for path in paths if path.exists()), None)
            place = (
                f"  url       {record.url}\n"
                f"  cache     {cached or 'not downloaded yet'}"
            )
        print(
            f"{name}\n"
            f'  network   {record.network}, weights="{record.weights}", '
            f"{record.arguments}, {record.classes} classes, "
            f"{record.input_size} x {record.input_size}\n"
            f"  accuracy  {record.top1} % top-1 on {record.dataset}\n"
            f"  licence   {record.license}\n"
            f"  hash      {record.hash}\n"
            f"{place}"
        )
