"""Public names are listed, and all functions are documented in one form."""

import ast
import builtins
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest
import reference
from backends import once

import keras_coordatt
from keras_coordatt.cli import COMMANDS

SECTIONS = ["Args", "Attributes", "Call arguments", "Input shape", "Output shape"]
SECTIONS += ["Returns", "Yields", "Raises", "Example", "Reference"]

pytestmark = once


def members():
    """The public functions and classes, and all others that have a section `Args`."""
    documented = set()
    for name in reference.MODULES:
        module = importlib.import_module(name)
        for member, value in reference.public(module).items():
            has_docstring = inspect.isfunction(value) or inspect.isclass(value)
            if has_docstring and value not in documented:
                documented.add(value)
                yield pytest.param(value, id=f"{name}.{member}")
    for module in pkgutil.walk_packages(keras_coordatt.__path__, "keras_coordatt."):
        if module.name.endswith("__main__"):
            continue
        own = vars(importlib.import_module(module.name)).values()
        own = [x for x in own if getattr(x, "__module__", None) == module.name]
        methods = [
            x for each in own if inspect.isclass(each) for x in vars(each).values()
        ]
        for value in filter(inspect.isfunction, [*own, *methods]):
            has_arguments = "Args:\n" in (value.__doc__ or "")
            if has_arguments and value not in documented:
                documented.add(value)
                yield pytest.param(value, id=f"{module.name}.{value.__qualname__}")


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


def statements(function):
    """The statements of a function, without those of functions inside it."""
    inner = (ast.FunctionDef, ast.Lambda, ast.ClassDef)
    nodes = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0].body
    while nodes:
        node = nodes.pop()
        yield node
        if not isinstance(node, inner):
            nodes.extend(ast.iter_child_nodes(node))


def test_list_is_up_to_date():
    listed = reference.LIST.read_text(encoding="utf-8")
    assert listed == reference.public_list(), (
        "Public names have changed. Run: PYTHONPATH=. python docs/reference.py"
    )


def test_type_hints():
    missing = []
    for module in map(importlib.import_module, reference.MODULES):
        for name, value in reference.public(module).items():
            if not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            signature = inspect.signature(value)
            named = [
                x for x in signature.parameters.values() if x.kind is not x.VAR_KEYWORD
            ]
            if any(x.annotation is x.empty for x in named) or (
                inspect.isfunction(value)
                and signature.return_annotation is signature.empty
            ):
                missing.append(f"{module.__name__}.{name}{signature}")
    assert not missing


@pytest.mark.parametrize("value", list(members()))
def test_docstring(value):
    found = sections(inspect.getdoc(value) or "")
    summary = found[""].split("\n\n")[0]
    assert re.fullmatch(r"[A-Z`][^\n]{10,}\.", summary.strip()), summary
    order = [SECTIONS.index(title) for title in found if title]
    assert order == sorted(order)

    parameters = inspect.signature(value).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    expected = [stars.get(p.kind, "") + p.name for p in parameters if p.name != "self"]
    documented = found.get("Args") or found.get("Attributes") or ""
    assert sorted(name for name, _ in entries(documented)) == sorted(expected)

    if "Raises" in found:
        raised = list(entries(found["Raises"]))
        assert raised
        for error, first in raised:
            assert issubclass(getattr(builtins, error), Exception)
            assert first == "If", found["Raises"]
    if inspect.isfunction(value):
        inside = list(statements(inspect.unwrap(value)))
        returned = [x.value for x in inside if isinstance(x, ast.Return) and x.value]
        if any(ast.unparse(x) != "None" for x in returned):
            assert "Returns" in found
        if any(isinstance(x, ast.Yield) and x.value for x in inside):
            assert "Yields" in found
        # The docstrings of commands are their help.
        command = value in COMMANDS.values()
        assert command or re.match(r"[A-Z][\w-]+s\b", summary)  # "Returns the ..."
        if any(isinstance(x, ast.Raise) and x.exc for x in inside) and not command:
            assert "Raises" in found
