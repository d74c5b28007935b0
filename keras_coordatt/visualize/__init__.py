"""Visualizes networks and their predictions: attention maps, Grad-CAM, figures.

`import keras_coordatt` doesn't import it. `attention_maps` and `grad_cam` need Keras
only. Figures need matplotlib, which is imported when the first one is drawn. Functions
whose names begin with `plot_` return a `matplotlib.figure.Figure`: notebooks display
it, and `figure.savefig("name.png")` writes it, without a window system.
"""

from keras_coordatt.visualize.charts import (
    plot_class_scores,
    plot_confusion_matrix,
    plot_history,
    plot_precision_recall,
)
from keras_coordatt.visualize.galleries import (
    plot_attention,
    plot_detections,
    plot_gallery,
    plot_masks,
)
from keras_coordatt.visualize.maps import attention_maps, grad_cam
from keras_coordatt.visualize.overlays import draw_masks, overlay

__all__ = [
    "attention_maps",
    "draw_masks",
    "grad_cam",
    "overlay",
    "plot_attention",
    "plot_class_scores",
    "plot_confusion_matrix",
    "plot_detections",
    "plot_gallery",
    "plot_history",
    "plot_masks",
    "plot_precision_recall",
]
