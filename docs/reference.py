"""Builds the API reference from the docstrings: `make docs`.

`python docs/reference.py` writes only the list of public names, `docs/public.md`, so
that a review shows its changes; with a folder, it also writes the reference there.
"""

import importlib
import pathlib
import sys
import types

# Whatever these modules don't list in `__all__` is private and may change at any time.
MODULES = (
    "keras_coordatt",
    "keras_coordatt.applications",
    "keras_coordatt.applications.efficientnet_ca",
    "keras_coordatt.applications.mobilenet_v2_ca",
    "keras_coordatt.applications.mobilenext_ca",
    "keras_coordatt.benchmark",
    "keras_coordatt.comparison",
    "keras_coordatt.data",
    "keras_coordatt.detection",
    "keras_coordatt.evaluation",
    "keras_coordatt.export",
    "keras_coordatt.export.accuracy",
    "keras_coordatt.layers",
    "keras_coordatt.prediction",
    "keras_coordatt.preprocessing",
    "keras_coordatt.record",
    "keras_coordatt.runnable",
    "keras_coordatt.segmentation",
    "keras_coordatt.surgery",
    "keras_coordatt.training",
    "keras_coordatt.visualize",
    "keras_coordatt.weights",
)
LIST = pathlib.Path(__file__).parent / "public.md"


def public(module: types.ModuleType) -> dict[str, object]:
    """Returns the public functions, classes and constants of a module, by name."""
    members = {name: getattr(module, name) for name in sorted(module.__all__)}
    return {k: v for k, v in members.items() if not isinstance(v, types.ModuleType)}


def public_list() -> str:
    """Returns the list of public names, as Markdown."""
    lines = ["# Public names", ""]
    lines += [
        "Written by `python docs/reference.py`. `make docs` says what each is for."
    ]
    for name in MODULES:
        module = importlib.import_module(name)
        lines += ["", f"## {name}", "", *(f"- `{member}`" for member in public(module))]
    return "\n".join(lines) + "\n"


def main(output: str | None = None) -> None:
    LIST.write_text(public_list(), encoding="utf-8")
    if output is None:
        return

    import pdoc

    pdoc.render.configure(
        docformat="google",
        include_undocumented=False,
        show_source=False,
        template_directory=LIST.parent,
    )
    # Each module without its submodules, which are private unless they are listed too.
    specs = [spec for name in MODULES for spec in (name, rf"!{name}\.")]
    pdoc.pdoc(*specs, output_directory=pathlib.Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
