"""The code of the README and the guide runs, and their links lead somewhere.

The commands run as they are; the trainings in Python are shortened. The commands of all
pages are at least parsed.
"""

import functools
import pathlib
import re
import runpy
import shlex

import keras
import numpy as np
import pytest
from backends import as_users, needs_tensorflow, once

from keras_coordatt.cli import COMMANDS, main

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()


@needs_tensorflow
@as_users
def test_python_as_users(monkeypatch, tmp_path):
    for name in ("onnxruntime", "tf2onnx", "pycocotools"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    # It would be downloaded.
    untrained = keras.applications.MobileNetV2((64, 64, 3), weights=None)
    monkeypatch.setattr(keras.applications, "MobileNetV2", lambda: untrained)
    blocks = re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL)
    assert len(blocks) >= 5
    # The trainings are shortened: fewer pictures, one epoch.
    code = re.sub(r'"(train|test)"', r'"\1[:10%]"', "\n".join(blocks))
    code = re.sub(r"epochs=\d+", "epochs=1", code)
    code = code.replace('"epochs": 8', '"epochs": 2')
    script = tmp_path / "readme.py"
    script.write_text(code)
    names = runpy.run_path(str(script))
    assert names["network"].count_params() > untrained.count_params()
    for file in ("digits.keras", "digits_saved_model", "served", "phone.tflite"):
        assert (tmp_path / file).exists()


@needs_tensorflow
@as_users
def test_commands_as_users(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    # Photos of two colors in noise, one subfolder per class
    rng = np.random.default_rng(0)
    for i, name in enumerate(("blue", "red")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for j in range(20):
            pixels = rng.integers(0, 128, (48, 48, 3))
            pixels[..., 2 - 2 * i] += 127
            keras.utils.save_img(tmp_path / "photos" / name / f"{j}.png", pixels)
    (tmp_path / "new_photos").symlink_to("photos/blue")
    section = README.partition("## Thirty seconds of use")[2].partition("\n## ")[0]
    section = section.replace("\\\n", "")
    commands = re.findall("^keras-coordatt (.*)$", section, re.MULTILINE)
    assert [command.split()[0] for command in commands] == [
        "train",
        "predict",
        "export",
        "evaluate",
        "export",
    ]
    sizes = []
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
        if (tmp_path / "photos.tflite").exists():
            sizes.append((tmp_path / "photos.tflite").stat().st_size)
    float32, _, int8 = sizes
    assert float32 > 1e6 and int8 < float32 / 2


@once
def test_commands_exist(monkeypatch, capsys):
    """The command line takes the commands of all pages; here it doesn't run them."""
    for name, function in COMMANDS.items():
        parsed = functools.wraps(function)(lambda **options: None)
        monkeypatch.setitem(COMMANDS, name, parsed)
    pages = [README, *(x.read_text() for x in (ROOT / "docs").glob("*.md"))]
    text = re.sub(r"\s*\\\n\s*", " ", "\n".join(pages))
    commands = re.findall(r"keras-coordatt ([a-z]+(?: [^\s\"`&>]+)+)", text)
    # Not the two that are shortened or read a file
    commands = [x for x in commands if "..." not in x and "--config" not in x]
    assert len(commands) >= 30
    for command in commands:
        command = command.replace("TASK", "classify").replace("$i", "0")
        try:
            assert main(command.split()) == 0
        except SystemExit:
            pytest.fail(f"{command}\n{capsys.readouterr().err}")


def test_links():
    """Pages link to files and sections that exist."""
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
    ]:
        for link in re.findall(r"\]\((?!http)(.*?)\)", page.read_text()):
            file, _, section = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page}: {link}"
            if target.suffix != ".md":
                continue
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            anchors = [
                re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles
            ]
            assert not section or section in anchors, f"{page}: {link}"
