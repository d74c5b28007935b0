"""What the README tells users to type, typed: on one epoch of small images."""

import pathlib
import re
import runpy

import keras
import pytest
from backends import needs_tensorflow

README = pathlib.Path(__file__).parent.parent / "README.md"


@needs_tensorflow
def test_readme(eager, monkeypatch, tmp_path):
    for name in ("onnxruntime", "tf2onnx", "pycocotools"):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    # It would be downloaded.
    untrained = keras.applications.MobileNetV2((32, 32, 3), weights=None)
    monkeypatch.setattr(keras.applications, "MobileNetV2", lambda: untrained)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    code = re.sub(r"\b(64|128)\b", "32", "\n".join(blocks))
    # Three steps of training, and a batch to quantize with.
    code = code.replace('"image_size": 32', '"image_size": 32, "batch_size": 429')
    code = re.sub(r"take\(\d+\)", "take(1)", re.sub(r"epochs=\d+", "epochs=1", code))
    code = re.sub(r"\.fit\((boxes|masks)", r".fit(\1.take(1)", code)
    script = tmp_path / "readme.py"
    script.write_text(code)
    names = runpy.run_path(str(script))
    assert names["network"].count_params() > untrained.count_params()
    for file in ("digits.keras", "digits_saved_model", "served", "phone.tflite"):
        assert (tmp_path / file).exists()
