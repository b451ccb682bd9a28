"""Pictures that strangers send."""

import numpy as np
import pytest

from segmenter_jax import load
from segmenter_jax.inference.uploads import MULTI_SCALE, Limits, num_windows, segment_upload
from segmenter_jax.inference.windows import batches
from tests.hostile_uploads import NOISE, encoded, refused, taken
from tests.models_on_disk import write_golden_model


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    return load(write_golden_model(tmp_path_factory.mktemp("model") / "model"))


def written(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", refused())
def test_a_file_that_cannot_be_segmented_is_named_with_the_reason(predictor, tmp_path, name):
    data, reason = refused()[name]
    with pytest.raises(ValueError) as caught:
        segment_upload(predictor, written(tmp_path, name, data), Limits())
    # Without its folder, which is the server's.
    assert str(caught.value).startswith(f"{name}: {reason}")


@pytest.mark.parametrize("name", taken())
def test_other_kinds_of_pictures_are_segmented(predictor, tmp_path, name):
    found = segment_upload(predictor, written(tmp_path, name, taken()[name]), Limits())
    assert found.image.shape == (40, 56, 3)
    assert found.ids.shape == found.confidence.shape == (40, 56)


def test_the_answer_is_that_of_the_model_also_at_several_scales(predictor, tmp_path):
    path = written(tmp_path, "noise.png", encoded(NOISE, "PNG"))
    for multi_scale, overrides in ((False, {}), (True, MULTI_SCALE)):
        found = segment_upload(predictor, path, Limits(), multi_scale)
        expected = predictor.predict_maps(NOISE, ("ids", "confidence"), **overrides)
        np.testing.assert_array_equal(found.image, NOISE)
        np.testing.assert_array_equal(found.ids, expected["ids"])
        np.testing.assert_array_equal(found.confidence, expected["confidence"])


@pytest.mark.parametrize(
    ("limits", "multi_scale", "reason"),
    [
        (Limits(size=100), False, r"noise\.png: \d+ bytes, over the limit of 100"),
        (Limits(pixels=2239), False, "noise.png: the image has 40 x 56 = 2240 pixels"),
        (Limits(windows=43), True, r"56 x 40 pixels take 44 windows of 64 pixels, over the .* 43"),
    ],
)
def test_limits_are_those_that_are_given(predictor, tmp_path, limits, multi_scale, reason):
    path = written(tmp_path, "noise.png", encoded(NOISE, "PNG"))
    with pytest.raises(ValueError, match=reason):
        segment_upload(predictor, path, limits, multi_scale)


@pytest.mark.parametrize("size", [(40, 56), (1, 200), (130, 300)])
@pytest.mark.parametrize("overrides", [{}, MULTI_SCALE])
def test_windows_are_counted_as_they_are_cut(predictor, size, overrides):
    engine = predictor.engine(**overrides)
    example = {"image": np.zeros((*size, 3), np.uint8)}
    cut = batches([example], engine.versions, engine.settings, 1)
    assert num_windows(size, engine.settings) == len(list(cut))
