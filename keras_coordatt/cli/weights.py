"""`keras-coordatt weights`: the catalog."""

from keras_coordatt.applications.verify import verify_weights
from keras_coordatt.weights.by_name import PLAIN, list_weights
from keras_coordatt.weights.catalog import CATALOG, builder_call


def weights(*, verify: str | None = None, data: str | None = None) -> None:
    """List the published weights, or verify them.

    To verify is to download a file, compare its hash with the published one, load it
    into a new network and, with --data, measure the accuracy.

    Args:
        verify: Name of the weights to verify, or all.
        data: Images to measure the accuracy on: a folder of classes, or TFDS name. With
            all, images of ImageNet.
    """
    if verify is None:
        if data is not None:
            raise ValueError("--data needs --verify NAME, or --verify all.")
        for entry in list_weights():
            _print(entry)
        return
    failed = []
    for name in CATALOG if verify == "all" else [verify]:
        fits = verify != "all" or CATALOG[name].dataset == "ImageNet-1k"
        try:
            _print_report(verify_weights(name, data if fits else None))
        except (OSError, ValueError) as error:
            if verify != "all":
                raise
            print(f"{name}: FAILED: {error}", flush=True)
            failed.append(name)
    if failed:
        raise ValueError(f"{len(failed)} of {len(CATALOG)}: {', '.join(failed)}")


def _print(entry):
    record = CATALOG[entry["name"]]
    cached = entry["cached"] or "not downloaded yet"
    network = builder_call(record)
    if record.plain:
        start = builder_call(record, attention="coordinate", weights=PLAIN)
        network += f"\n            {start}, whose attention is not trained"
    print(
        f"{entry['name']}\n"
        f"  network   {network}\n"
        f"  accuracy  {record.top1} % top-1 on {record.dataset}, {record.input_size} x "
        f"{record.input_size}\n"
        f"  size      about {entry['megabytes']} MB\n"
        f"  license   {record.license}\n"
        f"  source    {record.url or record.training}\n"
        f"  hash      {record.hash}\n"
        f"  checked   {record.checked}\n"
        f"  file      {cached}"
    )


def _print_report(report):
    measured = "not measured, without --data"
    if "top1" in report:
        measured = (
            f"{report['top1']:.2f} % of {report['images']} {report['split']} images"
        )
    print(
        f"{report['name']}: the published file, {report['parameters']:,} parameters, "
        f"top-1 {measured} (published: {report['published_top1']} %)",
        flush=True,
    )
