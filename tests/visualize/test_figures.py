import keras
import matplotlib
import numpy as np
import pytest
from backends import needs_tensorflow

from keras_coordatt import visualize
from keras_coordatt.visualize.overlays import class_color

# Drawing doesn't depend on the backend.
pytestmark = needs_tensorflow

# Of class 1: the second color of matplotlib's tab20 that isn't pale
ORANGE = (255, 127, 14)


@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 12, 3))


def drawn(figure):
    """Draws the figure, which raises if something in it is wrong, and returns it."""
    figure.draw_without_rendering()
    return figure


def test_history():
    history = keras.callbacks.History()
    history.epoch = [2, 3]
    history.history = {"loss": [3, 2], "val_loss": [4, 3], "lr": [0.1, 0.01]}
    loss, rate = drawn(visualize.plot_history(history)).axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    np.testing.assert_array_equal(loss.lines[1].get_xydata(), [[3, 4], [4, 3]])
    assert rate.get_title() == "lr" and rate.get_legend() is None
    (only,) = drawn(visualize.plot_history({"val_AP": [0.5]})).axes
    low, high = only.get_xlim()
    assert [x for x in only.get_xticks() if low < x < high] == [1]
    assert [x.get_text() for x in only.get_legend().get_texts()] == ["validation"]
    assert only.lines[0].get_color() == loss.lines[1].get_color()
    for wrong in ({}, {"loss": []}, keras.callbacks.History()):
        with pytest.raises(ValueError, match="`history` must have measures"):
            visualize.plot_history(wrong)


def test_gallery(pictures):
    titles = ["a", "b", "c"]
    figure = visualize.plot_gallery(pictures, titles, wrong=[0, 1, 0], columns=2)
    axes = drawn(figure).axes
    assert [axis.get_title() for axis in axes] == [*titles, ""]
    assert [axis.title.get_color() for axis in axes[:3]] == ["black", "red", "black"]
    np.testing.assert_allclose(axes[2].images[0].get_array() * 255, pictures[2], 1e-5)
    with pytest.raises(ValueError, match="`titles`.*3 entries. Received"):
        visualize.plot_gallery(pictures, titles[:2])
    for wrong in (pictures / 128 - 1, pictures / 255, pictures * np.nan, pictures > 9):
        with pytest.raises(ValueError, match="`pictures` must have values in"):
            visualize.plot_gallery(wrong)
    drawn(visualize.plot_gallery(pictures * 0.0))  # black


def test_confusion_matrix():
    matrix = np.array([[8, 2], [0, 0]])
    axis, _ = drawn(visualize.plot_confusion_matrix(matrix, ["cat", "dog"])).axes
    np.testing.assert_allclose(axis.images[0].get_array(), [[0.8, 0.2], [0, 0]])
    texts = {
        tuple(map(int, text.get_position())): text.get_text() for text in axis.texts
    }
    # (column, row): the dog that was predicted, and was a cat
    assert texts == {(0, 0): "8", (1, 0): "2"}
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("true", "predicted")
    with pytest.raises(ValueError, match="`labels`.*2 entries"):
        visualize.plot_confusion_matrix(matrix, ["cat"])
    # Shares of all images, and not of the true class
    shares = drawn(visualize.plot_confusion_matrix([[0.3, 0.1], [0.2, 1 / 3]])).axes[0]
    expected = [[0.75, 0.25], [0.375, 0.625]]
    np.testing.assert_allclose(shares.images[0].get_array(), expected)
    assert [text.get_text() for text in shares.texts] == ["0.3", "0.1", "0.2", "0.333"]
    for wrong in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"`matrix` must have finite.*\[0, inf\]"):
            visualize.plot_confusion_matrix([[1, wrong], [2, 3]])


def test_precision_recall():
    curves = {"cat": [1.0, 0.5, 0.0], "_background_": [1, 1]}
    (axis,) = drawn(visualize.plot_precision_recall(curves, "AP50")).axes
    legend = axis.get_legend()
    assert legend.get_title().get_text() == "AP50"
    assert [text.get_text() for text in legend.get_texts()] == [
        "cat 0.50",
        "_background_ 1.00",
    ]
    with pytest.raises(ValueError, match="`curves` must have a class, and each"):
        visualize.plot_precision_recall({"cat": []})
    with pytest.raises(ValueError, match=r"`curves\['cat'\]` must have finite"):
        visualize.plot_precision_recall({"cat": [50, 20]})


def test_class_scores():
    figure = visualize.plot_class_scores([0.5, np.nan, 0.9, 0.1], ["a", "b", "_c", "a"])
    (axis,) = drawn(figure).axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["a", "a", "_c"]
    assert [bar.get_width() for bar in axis.patches] == [0.1, 0.5, 0.9]
    for wrong in (90, -0.5, np.inf):
        with pytest.raises(ValueError, match=r"`values` must have finite.*\[0, 1\]"):
            visualize.plot_class_scores([wrong, 0.5], ["a", "b"])


def test_detections(pictures):
    found = {
        "boxes": np.array([[[0.25, 0.5, 0.75, 1], [0, 0, 1, 1], [0, 0, 0, 0]]] * 3),
        "labels": np.array([[1, 0, -1]] * 3),
        "scores": np.array([[0.9, 0.2, 0]] * 3),
    }
    figure = visualize.plot_detections(
        pictures, found, ["cat", "dog"], score_threshold=0.5
    )
    for axis in drawn(figure).axes:
        # Enlarged from 12 x 16: the box is from (75, 200) to (225, 400).
        picture = axis.images[0].get_array()
        assert picture.shape == (400, 300, 3)
        orange = (picture == ORANGE).all(-1)
        rows, columns = np.nonzero(orange)
        ends = [columns.min(), rows.min(), columns.max(), rows.max()]
        np.testing.assert_allclose(ends, [75, 200, 225, 399], atol=1)
        assert orange[200, 75:226].all() and not orange[203:397, 78:223].any()
        assert [text.get_text() for text in axis.texts] == ["dog 0.90"]
        np.testing.assert_allclose(
            axis.texts[0].get_bbox_patch().get_facecolor()[:3], np.divide(ORANGE, 255)
        )
    truth = {
        "boxes": np.array([[[0.1, 0.1, 0.4, 0.4]]] * 3),
        "labels": np.zeros((3, 1), int),
    }
    figure = visualize.plot_detections(pictures, found, truth=truth, columns=2)
    for axis in drawn(figure).axes[:3]:
        picture = axis.images[0].get_array()
        assert (picture[40, 30:120] == 255).all()
        assert len(axis.texts) == 2
    assert figure.get_supxlabel() == "colored: detections; white: truth"
    figure = visualize.plot_detections(
        pictures, found, truth=truth, score_threshold=0.5
    )
    assert "detections of score above 0.5;" in figure.get_supxlabel()
    unsigned = truth | {"labels": np.zeros((3, 1), "uint8")}
    drawn(visualize.plot_detections(pictures, unsigned, ["cat"]))
    pixels = {"boxes": np.full((3, 1, 4), 8.0), "labels": np.zeros((3, 1), int)}
    with pytest.raises(ValueError, match=r"`truth\['boxes'\]` must be.*fractions"):
        visualize.plot_detections(pictures, found, truth=pixels)
    with pytest.raises(ValueError, match=r"`detections` must have boxes, \(3, K, 4\)"):
        visualize.plot_detections(pictures, {"boxes": np.zeros((3, 4))})


def test_masks(pictures):
    masks = np.zeros((3, 16, 12), int)
    masks[:, :4], masks[:, 4:8] = 1, 255
    result = visualize.draw_masks(pictures, masks, 3, background=0, alpha=1)
    np.testing.assert_array_equal(result[:, 4:], pictures[:, 4:])
    assert np.all(result[:, :4] == ORANGE)
    everywhere = visualize.draw_masks(pictures, masks[..., None], 3)
    assert np.any(everywhere[:, 8:] != pictures[:, 8:])
    figure = drawn(
        visualize.plot_masks(pictures, masks, ["-", "_cat", "dog"], background=0)
    )
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["_cat"]
    with pytest.raises(ValueError, match="`labels` must have a name for each of the 2"):
        visualize.plot_masks(pictures, masks.astype("uint8"), ["-"])
    # A legend doesn't make the pictures smaller.
    figures = [
        drawn(visualize.plot_masks(pictures, masks, ["-", name], background=0))
        for name in ("cat", "cat" * 8)
    ]
    for short, long in zip(*(figure.axes for figure in figures)):
        assert long.bbox.width > 0.95 * short.bbox.width
    tab20 = matplotlib.colormaps["tab20"](range(20), bytes=True)[:, :3]
    assert [*map(class_color, range(20))] == [*map(tuple, [*tab20[::2], *tab20[1::2]])]
    drawn(visualize.plot_masks(pictures, masks, masks[:, :4].max() + 2))
    with pytest.raises(ValueError, match="`masks` must be integers of shape"):
        visualize.draw_masks(pictures, masks / 1, 3)


def test_overlay():
    pictures = np.full((2, 4, 4, 3), 100.0)
    heat = np.array([[[0, 1]], [[2, 4]]])
    result = visualize.overlay(pictures, heat, colormap="gray", alpha=1)
    # Each picture by itself, from black to white
    np.testing.assert_array_equal(result[0], result[1])
    assert np.all(result[0, :, 0] == 0) and np.all(result[0, :, -1] == 255)
    half = visualize.overlay(pictures, heat, colormap="gray", limits=(0, 4))
    assert np.all(half[0, :, 0] == 50) and np.all(half[1, :, -1] == 178)
    with pytest.raises(ValueError, match=r"`heat` must be of shape \(2, h, w\)"):
        visualize.overlay(pictures, heat[0])
    with pytest.raises(
        ValueError, match=r"`alpha` must be a number in \[0, 1\]\. Received: 2$"
    ):
        visualize.overlay(pictures, heat, alpha=2)
    tiny = visualize.overlay(pictures, heat * 1e-30, colormap="gray", alpha=1)
    np.testing.assert_array_equal(tiny, result)
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="`heat` must have finite values"):
            visualize.overlay(pictures, np.where(heat > 1, wrong, heat))
    with pytest.raises(ValueError, match=r"`heat` must be of shape \(2, h, w\)"):
        visualize.overlay(pictures, heat[:, :0])
    for wrong in ((1, 0), (1, 1)):
        with pytest.raises(ValueError, match="`limits` must be two numbers, the lower"):
            visualize.overlay(pictures, heat, limits=wrong)


def test_attention(pictures):
    rng = np.random.default_rng(0)
    rows, columns = rng.random((3, 4, 5)), rng.random((3, 2, 5))
    product = rows[:, :, None] * columns[:, None]
    gates = {"height": rows, "width": columns, "product": product}
    figure = drawn(visualize.plot_attention(pictures, gates, title="block"))
    side, below = figure.axes[0].child_axes
    # Rows are drawn from top to bottom beside the picture, at their centers.
    np.testing.assert_allclose(
        side.lines[0].get_xydata(),
        np.stack([rows[0].mean(-1), [1.5, 5.5, 9.5, 13.5]], axis=1),
    )
    np.testing.assert_allclose(
        below.lines[0].get_xydata(), np.stack([[2.5, 8.5], columns[0].mean(-1)], axis=1)
    )
    only = visualize.plot_attention(pictures, {"product": np.full((3, 4, 4, 5), 0.5)})
    assert not drawn(only).axes[0].child_axes
    with pytest.raises(ValueError, match=r"`gates\['height'\]` must have finite"):
        visualize.plot_attention(pictures, gates | {"height": rows * np.nan})
