import json

import pytest
from backends import needs_tensorflow

from keras_coordatt import MobileNetV2CA, ablation


def runs(accuracies):
    return [
        {"seed": seed, "attention": attention, "parameters": 1234, "accuracy": accuracy}
        for attention, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


def test_table_of_one_run_has_no_spread():
    (row,) = ablation.table(runs({"se": [0.5]})).splitlines()[2:]
    assert row == "| se | 1,234 | 50.00 % |  | 1 |"


def test_table():
    rows = ablation.table(
        runs({"coordinate": [0.52, 0.56, 0.54], None: [0.5, 0.51, 0.52]})
    ).splitlines()
    assert rows[2:] == [
        "| none | 1,234 | 51.00 ± 1.00 % | +0.00 ± 0.00 | 3 |",
        "| coordinate | 1,234 | 54.00 ± 2.00 % | +3.00 ± 1.73 | 3 |",
    ]
    assert rows[0].count("|") == rows[1].count("|") == rows[2].count("|")


@needs_tensorflow
def test_ablation_trains_and_goes_on_where_it_was_cut_off(
    eager, image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablation, "ATTENTIONS", ("coordinate",))
    output = tmp_path / "runs" / "ablation.jsonl"
    arguments = {"seeds": (3,), "steps": 2, "image_size": 32, "batch_size": 12}
    (run,) = ablation.ablation(image_folder, output, **arguments)
    assert run["seed"] == 3 and run["attention"] == "coordinate"
    assert run["accuracy"] in [pytest.approx(n / 6) for n in range(7)]
    network = MobileNetV2CA((32, 32, 3), 0.25, weights=None, classes=3)
    assert run["parameters"] == network.count_params()
    assert [json.loads(line) for line in output.read_text().splitlines()] == [run]

    output.write_text(output.read_text().rstrip())  # as some editors do
    trained = []

    def train(**settings):
        trained.append(settings["seed"])
        return {"parameters": 1, "accuracy": 0.5, "seconds": 1}

    monkeypatch.setattr(ablation, "_train", train)
    both = ablation.ablation(image_folder, output, **{**arguments, "seeds": (3, 4)})
    assert trained == [4] and [run["seed"] for run in both] == [3, 4]
    # Other settings are another experiment.
    ablation.ablation(image_folder, output, **{**arguments, "steps": 5})
    assert trained == [4, 3]
    # And so are other data, of which the file tells the name, and no path.
    other = ablation.ablation(tmp_path / "other", output, **arguments)
    assert trained == [4, 3, 3] and other[0]["data"] == "other"
    assert len(output.read_text().splitlines()) == 4


def test_a_line_that_was_cut_off(tmp_path):
    output = tmp_path / "ablation.jsonl"
    output.write_text('{"seed": 0, "acc')
    with pytest.raises(ValueError, match="`output`.*line 1"):
        ablation.ablation("no_such_data", output)
