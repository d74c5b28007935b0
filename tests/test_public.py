"""Public names are listed, and documented in one form."""

import builtins
import importlib
import inspect
import re

import pytest
import reference
from backends import once

SECTIONS = ["Args", "Attributes", "Call arguments", "Input shape", "Output shape"]
SECTIONS += ["Returns", "Yields", "Raises", "Example", "Reference"]

pytestmark = once


def members():
    documented = set()
    for name in reference.MODULES:
        module = importlib.import_module(name)
        for member, value in reference.public(module).items():
            has_docstring = inspect.isfunction(value) or inspect.isclass(value)
            if has_docstring and value not in documented:
                documented.add(value)
                yield pytest.param(value, id=f"{name}.{member}")


def sections(docstring):
    """Splits a docstring into its summary, "", and its sections by title."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", docstring, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section):
    """The names in a section, such as `Args`, and the first word about each."""
    pattern = r"^    (\*{0,2}\w+(?:,\s+\*{0,2}\w+)*): (\S+)"
    for names, first in re.findall(pattern, section, re.MULTILINE):
        for name in re.split(r",\s+", names):
            yield name, first


def test_list_is_up_to_date():
    listed = reference.LIST.read_text(encoding="utf-8")
    assert listed == reference.public_list(), (
        "Public names have changed. Run: PYTHONPATH=. python docs/reference.py"
    )


@pytest.mark.parametrize("value", list(members()))
def test_docstring(value):
    found = sections(inspect.getdoc(value) or "")
    summary = found[""].split("\n\n")[0]
    assert re.fullmatch(r"[A-Z`][^\n]{10,}\.", summary.strip()), summary
    order = [SECTIONS.index(title) for title in found if title]
    assert order == sorted(order)

    parameters = inspect.signature(value).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    expected = [stars.get(p.kind, "") + p.name for p in parameters]
    documented = found.get("Args") or found.get("Attributes") or ""
    assert sorted(name for name, _ in entries(documented)) == sorted(expected)

    if "Raises" in found:
        raised = list(entries(found["Raises"]))
        assert raised
        for error, first in raised:
            assert issubclass(getattr(builtins, error), Exception)
            assert first == "If", found["Raises"]
    if inspect.isfunction(value) and value.__annotations__.get("return") is not None:
        assert "Returns" in found or "Yields" in found
