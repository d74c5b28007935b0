"""Arguments whose errors do not name them yet: faults of the package, to be mended.

A value of a wrong type reaches Python or NumPy, whose error does not know the argument;
with `[array]`, only a NumPy array does. Nothing may be added here: mend the package.
"""

KNOWN_FAULTS = {
    "comparison.compare": "data output attentions seeds arguments start recipe changes validation_split on_error",
    "comparison.curves": "runs",
    "comparison.picture": "runs seconds measure",
    "comparison.table": "runs",
    "detection.default_boxes": "map_sizes box_shapes image_size",
    "detection.evaluate_detections": "batches class_names",
    "evaluation.evaluate": "data seed",
    "prediction.draw": "prediction picture",
    "prediction.predict": "images",
    "prediction.predictions": "model pictures on_error[array]",
    "preprocessing.PreprocessingRecord": "records",
}
