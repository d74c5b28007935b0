"""Arguments whose errors do not name them yet: faults of the package, to be mended.

A value of a wrong type reaches Python or NumPy, whose error does not know the argument;
with `[array]`, only a NumPy array does. Nothing may be added here: mend the package.
"""

KNOWN_FAULTS = {
    "comparison.compare": "data output attentions seeds arguments start recipe changes validation_split on_error",
    "comparison.curves": "runs",
    "comparison.picture": "runs seconds measure",
    "comparison.table": "runs",
    "data.COCOFolder": "classes",
    "data.ClassTable": "image_column label_column classes",
    "data.MaskFolder": "ignored[array] classes",
    "data.VOCFolder": "classes",
    "data.YOLOFolder": "classes",
    "data.class_names": "builder task[array]",
    "data.describe_data": "name[array]",
    "data.find_task": "name[array]",
    "data.open_data": "name[array]",
    "data.splits": "builder",
    "detection.default_boxes": "map_sizes box_shapes image_size",
    "detection.evaluate_detections": "batches class_names",
    "evaluation.evaluate": "data seed",
    "export.accuracy.AccuracyCheck": "data labels[array]",
    "export.onnx": "images preprocessing",
    "prediction.draw": "prediction picture",
    "prediction.predict": "images",
    "prediction.predictions": "model pictures on_error[array]",
    "preprocessing.PreprocessingRecord": "records",
    "training.Recipe": "head_epochs[array] patience[array]",
    "training.distribute": "devices[array] coordinator",
    "training.fine_tune": "train head loss[array] changes",
    "training.recipe": "name changes",
    "training.train": "data output build weights changes validation_split verbose[array] devices[array] coordinator processes[array] process_id[array]",
    "training.zero_init_residuals": "model",
    "weights.cached_weights": "name[array]",
    "weights.load_torch": "source",
    "weights.load_without_attention": "source",
}
