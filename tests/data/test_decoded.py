"""Decoded copies of splits change the speed of the loader and nothing else."""

import pickle

import numpy as np
import pytest

from segmenter_jax import prepare_data
from segmenter_jax.benchmark.loader import measure_stages
from segmenter_jax.data.datasets import build_dataset, open_dataset
from segmenter_jax.data.decoded import DecodedSource, decoded_folder, write_decoded
from segmenter_jax.data.pipeline import eval_examples, train_batches
from segmenter_jax.data.transforms import EvalTransform, TrainTransform
from segmenter_jax.runtime.errors import DataError


@pytest.fixture
def dataset(folder, tmp_path):
    return build_dataset("toyset", tmp_path / "data", folder)


def decode(dataset, *arguments):
    data_dir = dataset.directory.parents[1]
    return prepare_data.main(["decode", "--name=toyset", f"--data_dir={data_dir}", *arguments])


def seen(dataset):
    """Training batches in this process and in a worker, and evaluation examples."""
    transform = TrainTransform(dataset.spec, 8, 12, 4.0)
    found = []
    for num_workers in (0, 1):
        options = {"global_batch_size": 2, "seed": 1, "num_workers": num_workers}
        with train_batches(dataset.source("train"), transform, **options) as batches:
            found += [next(batches) for _ in range(5)]
    with eval_examples(dataset.source("val"), EvalTransform(dataset.spec)) as examples:
        return found + list(examples)


def test_batches_and_examples_are_the_same(dataset):
    before = seen(dataset)
    assert decode(dataset) == 0
    assert isinstance(dataset.source("train"), DecodedSource)
    for one, other in zip(before, seen(dataset), strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_one_split_only_twice_and_removed(dataset, capsys):
    assert decode(dataset, "--split=val") == 0
    assert isinstance(dataset.source("val"), DecodedSource)
    assert not isinstance(dataset.source("train"), DecodedSource)
    assert not isinstance(dataset.source("val", encoded=True), DecodedSource)
    capsys.readouterr()
    assert decode(dataset, "--split=val") == 0
    assert "val: is there already" in capsys.readouterr().out
    assert decode(dataset, "--split=val", "--remove") == 0
    assert not isinstance(dataset.source("val"), DecodedSource)


def test_a_built_dataset_with_copies_is_still_checked_from_its_records(dataset, capsys):
    assert decode(dataset) == 0
    data_dir = dataset.directory.parents[1]
    assert prepare_data.main(["check", "--name=toyset", f"--data_dir={data_dir}"]) == 0
    assert "no problems" in capsys.readouterr().out


def test_copies_go_with_the_dataset_when_it_is_built_again(dataset, folder, tmp_path):
    assert decode(dataset) == 0
    (folder / "images/train/a.jpg").unlink()
    (folder / "annotations/train/a.png").unlink()
    built = build_dataset("toyset", tmp_path / "data", folder, overwrite=True)
    assert len(built.source("train")) == 2 and not isinstance(built.source("train"), DecodedSource)


def test_a_split_without_such_name(dataset, capsys):
    assert decode(dataset, "--split=test") == 1
    assert "has no split 'test'" in capsys.readouterr().err


def test_a_failure_leaves_nothing(dataset):
    folder = decoded_folder(dataset.directory, "train")

    def fail():
        yield EvalTransform(dataset.spec)(dataset.source("train")[0])
        raise DataError("record 1")

    with pytest.raises(DataError, match="record 1"):
        write_decoded(folder, fail())
    assert not list(folder.parent.iterdir())


def test_a_shortened_copy_is_refused(dataset):
    assert decode(dataset) == 0
    path = decoded_folder(dataset.directory, "train") / "pixels.bin"
    path.write_bytes(path.read_bytes()[:-1])
    source = pickle.loads(pickle.dumps(open_dataset("toyset", dataset.directory.parents[1])))
    with pytest.raises(DataError, match=r"pixels\.bin: has 2303 bytes, not 2304"):
        source.source("train")[0]


def test_stages_of_a_decoded_source_are_measured_without_decoding(dataset):
    assert decode(dataset) == 0
    transform = TrainTransform(dataset.spec, 8, 12, 4.0)
    stages = [r.stage for r in measure_stages(dataset.source("train"), transform, seconds=0.05)]
    assert stages == ["read", "transform", "read and transform"]
