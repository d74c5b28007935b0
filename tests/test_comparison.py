import functools
import json

import numpy as np
import pytest
from backends import needs_tensorflow, once
from keras import ops

from keras_coordatt import MobileNetV2CA, comparison
from keras_coordatt.cli import main
from keras_coordatt.comparison import runs as comparison_runs
from keras_coordatt.training.trainer import Training
from keras_coordatt.validation import ON_ERROR

RECIPE = {"name": "scratch", "image_size": 32, "epochs": 2}


def run(attention, seed, accuracy, **others):
    return {
        "task": "classification",
        "network": "MobileNetV2CA",
        "arguments": {"alpha": 0.1},
        "recipe": RECIPE,
        "attention": attention,
        "seed": seed,
        "parameters": 1234,
        "metrics": {"accuracy": accuracy},
        "history": [{"val_accuracy": accuracy / 2}, {"val_accuracy": accuracy}],
        **others,
    }


RUNS = [
    *(run(None, seed, x) for seed, x in enumerate((0.5, 0.51, 0.52))),
    *(run("coordinate", seed, x) for seed, x in enumerate((0.52, 0.56, 0.54))),
]


def test_table():
    rows = comparison.table(RUNS).splitlines()
    assert rows[2:] == [
        "| none | 1,234 | 51.00 ± 1.00 % | +0.00 ± 0.00 | 3 |",
        "| coordinate | 1,234 | 54.00 ± 2.00 % | +3.00 ± 1.73 | 3 |",
    ]
    assert rows[0].count("|") == rows[1].count("|") == rows[2].count("|")
    (row,) = comparison.table([run("se", 0, 0.5)]).splitlines()[2:]
    assert row == "| se | 1,234 | 50.00 % |  | 1 |"
    # There is no AP without objects.
    runs = [run(None, 0, 0.5), {**run("se", 0, 0.5), "metrics": {"loss": 1.0}}]
    assert comparison.table(runs).splitlines()[3] == "| se | 1,234 |  |  | 1 |"


@pytest.mark.parametrize(
    "runs, message",
    [
        ([], "`runs` must not be empty"),
        ([*RUNS, {"seed": 0}], r"`runs` must be from `compare`.*\{'seed': 0\}"),
        (
            [{**run("se", 0, 0.5), "metrics": {"accuracy": "0.5"}}],
            "`runs` must be from `compare`",
        ),
        # A mean over networks of two widths would be of neither.
        (
            [*RUNS, run("se", 0, 0.5, arguments={"alpha": 0.5})],
            "`runs` must be of one comparison.*arguments={'alpha': 0.5} instead of",
        ),
        (
            [*RUNS, run("se", 0, 0.5, on_error="skip")],
            "on_error='skip' instead of 'raise'",
        ),
        ([*RUNS, run(None, 2, 0.9)], "two of attention=None, seed=2"),
    ],
)
def test_runs_that_are_not_one_comparison(runs, message):
    for show in (comparison.table, comparison.curves, comparison.latency):
        with pytest.raises(ValueError, match=message):
            show(runs)
    with pytest.raises(ValueError, match=message):
        comparison.picture(runs, {None: 0.1})


@once
@pytest.mark.parametrize("measure", ["graph_1_thread_1", "jax_1", "train_32"])
def test_latency_of_separate_processes_is_refused(measure, capsys):
    with pytest.raises(ValueError, match=f"`measure`.*{measure}"):
        comparison.latency(RUNS, measure)
    command = ["compare", "classify", "no_such_data", "--picture", "none.png"]
    assert main([*command, "--measure", measure]) == 1
    assert "--measure must be one of" in capsys.readouterr().err


@once
def test_the_backend_for_latency_is_checked_before_the_training(capsys):
    command = ["compare", "classify", "no_such_data", "--picture", "none.png"]
    assert main(command) == 1
    assert "TensorFlow backend" in capsys.readouterr().err


@needs_tensorflow
def test_pictures():
    (axis,) = comparison.curves(RUNS).axes
    # Three thin lines and their mean, for each attention
    assert len(axis.lines) == 8
    np.testing.assert_allclose(axis.lines[7].get_ydata(), [27, 54])
    with pytest.raises(ValueError, match="`runs` must have been validated"):
        comparison.curves([{**run("se", 0, 0.5), "history": []}])
    seconds = comparison.latency(RUNS, "graph_1", rounds=1)
    assert list(seconds) == [None, "coordinate"] and min(seconds.values()) > 0
    figure = comparison.picture(RUNS, {None: 0.002, "coordinate": 0.003})
    figure.draw_without_rendering()
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.texts] == ["none", "coordinate"]
    np.testing.assert_allclose(axis.texts[1].xy, [3, 54])


@pytest.fixture
def trained(monkeypatch):
    """Trains nothing, and lists what would have been trained."""
    calls = []

    def train(task, data, output, *, build, recipe, changes, seed, **options):
        calls.append((build.keywords["attention"], seed))
        if len(calls) == 2:
            raise KeyboardInterrupt
        report = {
            "settings": {"recipe": {**RECIPE, **changes}},
            "given_on_error": options["on_error"],
            "parameters": 1234,
            "metrics": {"accuracy": 0.5},
            "history": [],
        }
        return Training(None, report)

    monkeypatch.setattr(comparison_runs, "train", train)
    return calls


def test_it_goes_on_where_it_was_cut_off(trained, tmp_path):
    output = tmp_path / "runs" / "compare.jsonl"
    compare = functools.partial(comparison.compare, "classification", verbose=False)
    changes = {"epochs": 9, "image_size": 32}
    arguments = {"attentions": [None, "se"], "seeds": [3], "changes": changes}
    with pytest.raises(KeyboardInterrupt):
        compare(tmp_path, output, **arguments)
    runs = compare(tmp_path, output, **arguments)
    assert trained == [(None, 3), ("se", 3), ("se", 3)]
    assert [run["attention"] for run in runs] == [None, "se"]
    assert runs[1]["recipe"]["epochs"] == 9
    assert [json.loads(line) for line in output.read_text().splitlines()] == runs

    del trained[:]
    output.write_text(output.read_text().rstrip())  # as some editors do
    trained.append("a run before")
    trained.append("and another, so that none is interrupted")
    both = compare(tmp_path, output, **{**arguments, "seeds": [3, 4]})
    assert trained[2:] == [(None, 4), ("se", 4)] and len(both) == 4
    assert compare(tmp_path, output, **arguments) == both
    # A file is one comparison: of the data, too, of which it tells the name, and no path.
    (tmp_path / "other").mkdir()
    text = output.read_text()
    for data, others, message in (
        (tmp_path, {"changes": {"epochs": 5}}, "changes=.*9.* instead of .*5"),
        (tmp_path, {"arguments": {"alpha": np.float32(0.5)}}, "instead of .*0.5"),
        (tmp_path, {"on_error": "skip"}, "on_error='raise' instead of 'skip'"),
        (tmp_path / "other", {}, "instead of 'other'"),
    ):
        with pytest.raises(
            ValueError, match=f"`output` has .*compare.jsonl.*{message}"
        ):
            compare(data, output, **{**arguments, **others})
    # As if another version had other values by the recipe's name
    first, *_ = both
    changed = json.dumps({**first, "recipe": {**first["recipe"], "epochs": 8}})
    for lines, message in (
        (changed, "recipe epochs=8 instead of 9"),
        (text + text, "two of attention=None, seed=3"),
    ):
        output.write_text(lines)
        with pytest.raises(ValueError, match=f"`output`.*{message}"):
            compare(tmp_path, output, **arguments)
    assert trained[4:] == []


def test_no_model_is_in_the_way(trained, tmp_path):
    output, model = tmp_path / "it.jsonl", tmp_path / "it-se-1.keras"
    compare = functools.partial(comparison.compare, "classification", tmp_path, output)
    model.write_text("a model whose run isn't in the file")
    with pytest.raises(
        ValueError, match="`output` must have a line for.*it-se-1.keras"
    ):
        compare(attentions=[None, "se"], seeds=[1], verbose=False)
    assert trained == [] and model.exists()


def test_a_run_that_could_not_be_written_is_shown(trained, tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(comparison_runs, "atomic_file", full)
    with pytest.raises(OSError, match="No space left.*add this line to it: ") as error:
        comparison.compare(
            "classification", tmp_path, tmp_path / "it.jsonl", attentions=[None]
        )
    monkeypatch.undo()
    (tmp_path / "it.jsonl").write_text(str(error.value).partition("to it: ")[2])
    (run,) = comparison.read_runs(tmp_path / "it.jsonl")
    assert run["metrics"] == {"accuracy": 0.5}


@once
def test_other_data_in_a_folder_of_the_same_name(image_folder, tmp_path, monkeypatch):
    data = {
        "images": {"train": 10, "validation": 2, "test": 6},
        "labels": ["cat", "dog", "fox"],
    }
    report = {"settings": {"recipe": RECIPE, **data}, "history": []}
    report |= {"parameters": 1234, "metrics": {"accuracy": 0.5}}
    monkeypatch.setattr(
        comparison_runs, "train", lambda *_, **__: Training(None, dict(report))
    )
    output = tmp_path / "runs.jsonl"

    def compare(seeds):
        options = {"attentions": [None], "seeds": seeds, "verbose": False}
        options["changes"] = {"image_size": 32, "epochs": 2}
        return comparison.compare("classification", image_folder, output, **options)

    first = compare([0])
    assert first[0].items() >= data.items()
    assert compare([0]) == first
    for split in ("train", "test"):
        (image_folder / split / "fox").rename(image_folder / split / "wolf")
    with pytest.raises(ValueError, match="runs of another.*labels=.*fox.*instead of"):
        compare([0])
    (image_folder / "train" / "cat" / "0.png").unlink()
    with pytest.raises(ValueError, match="images=.*10.* instead of .*9"):
        compare([1])
    # Older files have neither.
    older = {name: value for name, value in first[0].items() if name not in data}
    output.write_text(json.dumps(older))
    assert compare([0]) == [older]
    other = run("se", 0, 0.5, images={"train": 10})
    with pytest.raises(ValueError, match="`runs` must be of one comparison.*images="):
        comparison.table([run(None, 0, 0.5, images={"train": 9}), other])


@pytest.mark.parametrize("on_error", ON_ERROR)
def test_data_are_read_as_training_reads_them(on_error, trained, tmp_path):
    output = tmp_path / "runs.jsonl"
    runs = comparison.compare(
        "classification",
        tmp_path,
        output,
        attentions=[None],
        seeds=[0],
        on_error=on_error,
    )
    assert [run["given_on_error"] for run in runs] == [on_error]


def test_it_starts_from_a_file(trained, tmp_path):
    trained.append("so that the next but one isn't interrupted")
    trained.append("nor the next")
    build = functools.partial(MobileNetV2CA, (32, 32, 3), 0.1, weights=None, classes=3)
    build(attention=None).save(tmp_path / "plain.keras")
    build(attention=None).save(tmp_path / "other.keras")
    build().save(tmp_path / "with_attention.keras")
    options = {"seeds": [0], "verbose": False, "start": tmp_path / "plain.keras"}
    compare = functools.partial(
        comparison.compare, "classification", tmp_path, tmp_path / "runs.jsonl"
    )
    (run,) = compare(attentions=["coordinate"], **options)
    assert run["start"] == "plain.keras" and run["changes"] == {"zero_init": False}
    # Another start is another comparison.
    with pytest.raises(
        ValueError, match="start='plain.keras' instead of 'other.keras'"
    ):
        compare(
            attentions=["coordinate"], **{**options, "start": tmp_path / "other.keras"}
        )
    assert trained[2:] == [("coordinate", 0)]
    for wrong, message in (
        ({"attentions": ["se"]}, "`attentions`.*se"),
        ({"start": "none.keras"}, "`start` must be a `.keras` file.*none.keras"),
        ({"start": tmp_path / "with_attention.keras"}, "`start`.*without attention"),
        ({"arguments": {"alpha": 0.5}}, "`network` and `arguments` are for.*0.5"),
        ({"network": "MobileNeXtCA"}, "`network` and `arguments` are for.*NeXt"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(**{"attentions": [None], **options, **wrong})
    with pytest.raises(ValueError, match="must not have started from a file"):
        comparison.latency([run])


def test_retrofit(tmp_path):
    model = MobileNetV2CA((32, 32, 3), 0.1, weights=None, classes=3, attention=None)
    model.save(tmp_path / "plain.keras")
    retrofit = functools.partial(
        comparison_runs.retrofit, start=str(tmp_path / "plain.keras")
    )
    x = np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    inserted = retrofit((32, 32, 3), 3, attention="coordinate")
    np.testing.assert_allclose(
        *map(ops.convert_to_numpy, (inserted(x), model(x))), 1e-5
    )
    attention = inserted.get_layer("block_2_depthwise_attention")
    assert attention.identity_init and attention.axes == "both"
    with pytest.raises(ValueError, match="`start` must be a classifier of images"):
        retrofit((32, 32, 3), 4, attention="height")


@needs_tensorflow
def test_it_trains(eager, image_folder, tmp_path):
    (result,) = comparison.compare(
        "classification",
        image_folder,
        tmp_path / "compare.jsonl",
        attentions=["cbam"],
        seeds=[3],
        arguments={"alpha": 0.1},
        changes={"image_size": 32, "batch_size": 12, "epochs": 1},
        validation_split=0.5,
        verbose=False,
    )
    network = MobileNetV2CA((32, 32, 3), 0.1, weights=None, classes=3, attention="cbam")
    assert result["parameters"] == network.count_params()
    assert result["recipe"]["image_size"] == 32 and result["split"] == "test"
    assert result["metrics"]["accuracy"] in [pytest.approx(n / 6) for n in range(7)]
    assert len(result["history"]) == 1
    assert comparison.table([result]).splitlines()[2].startswith("| cbam | ")
    comparison.curves([result])


@pytest.mark.parametrize(
    "line",
    [
        *('{"seed": 0, "acc', "3", '{"seed": 0}'),
        json.dumps(run(None, True, 0.5)),
        json.dumps(run(None, 0, 75.0)),
        json.dumps(run(None, 0, float("nan"))),
        json.dumps(run(None, 0, 0.5, history=[{"val_accuracy": "0.5"}])),
    ],
)
def test_lines_that_are_no_runs(line, tmp_path):
    output = tmp_path / "runs.jsonl"
    output.write_text(line)
    with pytest.raises(ValueError, match="`output`.*line 1") as error:
        comparison.compare("classification", "no_such_data", output)
    assert len(str(error.value)) < 300


def test_files_that_are_no_text(tmp_path):
    output = tmp_path / "runs.jsonl"
    output.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="`output` must be UTF-8.*runs.jsonl"):
        comparison.compare("classification", "no_such_data", output)
    with pytest.raises(ValueError, match="`output` must be a file.*Received"):
        comparison.read_runs(tmp_path)


def test_tables_name_images_that_are_not_test_images():
    runs = [
        run(None, 0, 0.5, split="validation"),
        run("se", 0, 0.5, split="validation"),
    ]
    assert "| accuracy, validation |" in comparison.table(runs)
    with pytest.raises(
        ValueError, match="`runs` must be.*split='test' instead of 'val"
    ):
        comparison.table([runs[0], run("se", 0, 0.5, split="test")])


def test_curves_keep_the_epoch_of_each_value():
    history = [[None, None, 0.5, 0.6], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.7]]
    runs = [
        run(None, seed, 0.5, history=[{"val_accuracy": x} for x in values])
        for seed, values in enumerate(history)
    ]
    (axis,) = comparison.curves(runs).axes
    nan = np.nan
    expected = [[nan, nan, 50, 60], [10, 20, 30, 40], [10, 20, 70], [nan, nan, 50]]
    for line, values in zip(axis.lines, expected, strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.arange(1, len(values) + 1))
        np.testing.assert_allclose(line.get_ydata(), values)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "regression"}, "`task` must be.*Received: 'regression'"),
        ({"network": "ResNet"}, "`network` must be.*Received: 'ResNet'"),
        ({"attentions": ["eca"]}, "`attentions` must be.*Received: .*'eca'"),
        ({"attentions": ["se", "se"]}, "`attentions` must have.*all different"),
        ({"attentions": []}, "`attentions` must have one or more"),
        ({"seeds": [1, 2, 1]}, r"`seeds` must have.*Received: \[1, 2, 1\]"),
        ({"seeds": [2**32]}, "`seeds` must be at most"),
        ({"arguments": {"alhpa": 1}}, "`arguments` must be those of MobileNetV2CA"),
        (
            {"arguments": {"weights": "cifar10"}},
            "`arguments` must be those.*leaves open",
        ),
        ({"arguments": {"alpha": {1}}}, "`arguments` must be numbers"),
    ],
)
def test_wrong_arguments(arguments, message, tmp_path):
    arguments = {"task": "classification", **arguments}
    with pytest.raises(ValueError, match=message):
        comparison.compare(data="digits", output=tmp_path / "runs.jsonl", **arguments)
    assert not list(tmp_path.iterdir())
