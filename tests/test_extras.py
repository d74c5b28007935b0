"""Hints on how to install optional packages are right."""

import configparser
import pathlib
import re
import sys

import pytest
from backends import once

from keras_coordatt.extras import check_matplotlib, install_hint

ROOT = pathlib.Path(__file__).parents[1]

pytestmark = once


def test_hints_name_extras_of_the_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    sources = [x.read_text("utf-8") for x in ROOT.glob("keras_coordatt/**/*.py")]
    pattern = r"install_hint\(['\"](\w+)['\"]\)|pip install '\.\[(\w+)\]'"
    named = {a or b for text in sources for a, b in re.findall(pattern, text)}
    assert {"figures", "export", "detection", "hf"} <= named
    assert named <= set(config["options.extras_require"])
    # The package is not on PyPI.
    assert not any(re.search("pip install '?keras_coordatt", x) for x in sources)


def test_missing_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib: pip install '\.\[figures\]'"):
        check_matplotlib()
    assert "clone" in install_hint("figures")
