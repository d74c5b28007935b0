import pathlib
import re
import subprocess
import sys

import keras
from backends import as_users, needs_tensorflow

from keras_coordatt.record import record_of


@needs_tensorflow
@as_users
def test_demo_as_users(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    command = pathlib.Path(sys.executable).with_name("keras-coordatt")
    done = subprocess.run(
        [command, "demo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Nothing but the printed steps
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert all(line.startswith((*"12345", "   ")) for line in lines)
    accuracy = float(re.search(r"training data: (\S+)%", done.stdout)[1])
    assert accuracy > 90
    folder = pathlib.Path("runs/demo")
    # Every file that it names is there, and every file that is there is named.
    named = {line.split(":")[0].strip() for line in lines if str(folder) in line}
    assert named == {str(path) for path in folder.iterdir()} and len(named) == 8
    for picture in folder.glob("*.png"):
        pixels = keras.utils.img_to_array(keras.utils.load_img(picture))
        assert pixels.std() > 5
    record = record_of(keras.saving.load_model(folder / "model.keras"))
    assert record.labels == tuple("0123456789")
    assert round(100 * record.metrics["accuracy"], 1) == accuracy
