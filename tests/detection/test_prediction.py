import numpy as np

from keras_coordatt.detection import SSDLite, ssd_box_shapes
from keras_coordatt.prediction import predict
from keras_coordatt.preprocessing import IMAGENET


def test_an_ssdlite_is_its_detector(tiny_backbone):
    model = SSDLite(tiny_backbone(), 2, box_shapes=ssd_box_shapes(2))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
    found = model.detector(score_threshold=0.1).predict_on_batch(
        IMAGENET.normalize(image[None].astype("float32"))
    )
    count = int((found["labels"] >= 0).sum())
    assert count > 1
    (prediction,) = predict(
        model, image, score_threshold=0.1, preprocessing=IMAGENET, task="detection"
    )
    assert [x.label for x in prediction.objects] == [
        str(label) for label in found["labels"][0, :count]
    ]
    np.testing.assert_allclose(
        [x.score for x in prediction.objects], found["scores"][0, :count], atol=1e-5
    )
    boxes = np.array([x.box for x in prediction.objects]) / 64
    np.testing.assert_allclose(boxes, found["boxes"][0, :count], atol=1e-5)
