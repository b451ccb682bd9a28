from segmenter_jax.benchmark.loader import measure_stages
from segmenter_jax.data.datasets import build_dataset
from segmenter_jax.data.transforms import TrainTransform
from tests.data import replicas


def test_stages_are_measured(tmp_path):
    folder = replicas.write("camvid", tmp_path / "camvid")
    dataset = build_dataset("camvid", tmp_path / "data", folder, allow_partial=True)
    transform = TrainTransform(dataset.spec, crop_size=32, base_size=48, aspect_bound=4.0)
    source = dataset.source("train")
    stages = {rate.stage: rate for rate in measure_stages(source, transform, seconds=0.2)}
    whole = stages["read and transform"]
    assert 0 < whole.images_per_second < stages["decode label"].images_per_second
    assert whole.images_per_core >= 0.9 * whole.images_per_second
