"""Fixtures for golden files, and a summary of the differences from them."""

import gc
import pathlib
import tarfile

import numpy as np
import pytest
from environment import AS_USERS  # first of all, as it is for what Keras imports

DATA = pathlib.Path(__file__).parent / "data"


def pytest_collection_finish(session):
    """Excludes imported objects from garbage collection.

    Keras collects garbage once for each layer that it quantizes, which takes 0.2 s
    where TensorFlow is loaded.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden(tmp_path_factory):
    """Returns the path of a golden file by its name.

    The numbers in these files were computed with the code of the papers' authors.
    """
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(DATA / "golden.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder.joinpath


@pytest.fixture
def image_folder(tmp_path):
    """A folder of pictures of noise, train/<class>/*.png and test/<class>/*.png."""
    import keras

    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog", "fox"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 256, (32, 32, 3))
                keras.utils.save_img(folder / split / name / f"{i}.png", image)
    return folder


@pytest.fixture
def eager():
    """Runs TensorFlow's functions eagerly, as tracing a step takes longer."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(not AS_USERS)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def assert_within(record_property):
    """Asserts that a difference is within a limit, and lists it in the summary."""

    def check(what, difference, limit):
        record_property("measured", f"{difference:.1e} <= {limit:.0e}  {what}")
        assert difference <= limit, f"{what}: {difference} > {limit}"

    return check


def pytest_terminal_summary(terminalreporter):
    lines = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "measured"
    ]
    if lines:
        import keras

        backend = keras.config.backend()
        terminalreporter.section(f"differences from the golden files, {backend}")
        for line in sorted(lines, key=lambda line: line.split("  ", 1)[1]):
            terminalreporter.write_line(line)


@pytest.fixture
def channels_first():
    import keras

    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")
