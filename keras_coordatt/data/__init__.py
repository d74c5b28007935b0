"""Input pipelines, and the embedded digits.

The data set's builder is in `keras_coordatt.data.digits`; it is not imported here, as
that imports TFDS.
"""

from keras_coordatt.data.pipelines import load_classification

__all__ = ["load_classification"]
