import re

from backends import needs_tensorflow

from keras_coordatt import demo


@needs_tensorflow
def test_demo(eager, monkeypatch, tmp_path, capsys):
    # Two small steps of the way: what it prints at full length is in the README.
    monkeypatch.setattr(demo, "SIZE", 32)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(demo, "BATCH_SIZE", 429)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    demo.main(tmp_path / "models")
    printed = capsys.readouterr().out
    assert re.search(r"coordinate +\d+\.\d% +\d{3},\d{3} parameters", printed)
    assert re.search(r"none +\d+\.\d% +\d{3},\d{3} parameters", printed)
    for name in ("model.keras", "saved_model"):
        difference = re.search(rf"{name}: (\S+)", printed)[1]
        assert float(difference) < 1e-5
