import itertools
import multiprocessing
import pickle
import threading
import time

import cv2
import numpy as np
import pytest

from segmenter_jax.data.datasets import build_dataset
from segmenter_jax.data.pipeline import eval_examples, train_batches
from segmenter_jax.data.transforms import EvalTransform, TrainTransform
from segmenter_jax.runtime.errors import DataError


def draw(record: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"record": np.int64(record), "draw": rng.integers(2**40)}


def take(count: int, size: int = 10, **options) -> list[dict[str, np.ndarray]]:
    options = {"global_batch_size": 6, "seed": 3, **options}
    with train_batches(range(100, 100 + size), draw, **options) as batches:
        return [next(batches) for _ in range(count)]


def joined(batches: list[dict[str, np.ndarray]], key: str = "record") -> list[int]:
    return np.concatenate([batch[key] for batch in batches]).tolist()


def assert_equal(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_epochs_are_different_permutations_without_a_seam():
    order = np.array(joined(take(15))).reshape(9, 10)
    for epoch in order:
        assert sorted(epoch) == list(range(100, 110))
    assert len({tuple(epoch) for epoch in order}) == 9


def test_draws_differ_between_records_and_epochs():
    assert len(set(joined(take(15), "draw"))) == 90


def test_seed_decides():
    assert_equal(take(5), take(5))
    assert joined(take(5)) != joined(take(5, seed=4))
    assert joined(take(5), "draw") != joined(take(5, seed=4), "draw")


@pytest.mark.parametrize("options", [{"num_threads": 0}, {"num_threads": 5}, {"prefetch": 1}])
def test_threads_and_prefetch_do_not_matter(options):
    assert_equal(take(12), take(12, **options))


@pytest.mark.parametrize("num_workers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_do_not_matter(num_workers):
    batches = take(7, start_step=2, num_workers=num_workers)
    assert_equal(take(7, start_step=2), batches)
    # In memory of this process: shared memory would outlive it where something keeps an array.
    assert {type(array) for batch in batches for array in batch.values()} == {np.ndarray}


@pytest.mark.parametrize("start_step", [1, 4, 11])
def test_start_step_resumes(start_step):
    assert_equal(take(15)[start_step:], take(15 - start_step, start_step=start_step))


@pytest.mark.parametrize("process_count", [2, 3, 6])
def test_processes_share_every_batch_in_order(process_count):
    shares = [
        take(8, start_step=2, process_index=p, process_count=process_count)
        for p in range(process_count)
    ]
    whole = take(8, start_step=2)
    for step, batch in enumerate(whole):
        for key, values in batch.items():
            parts = [share[step][key] for share in shares]
            assert {part.shape[0] for part in parts} == {6 // process_count}
            np.testing.assert_array_equal(np.concatenate(parts), values)


def test_dataset_smaller_than_the_batch():
    batches = take(4, size=2, global_batch_size=7)
    order = np.array(joined(batches)).reshape(14, 2)
    assert (np.sort(order, axis=1) == [100, 101]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"process_count": 4},
            "global_batch_size=6 must be a multiple of process_count=4, for example 4 or 8",
        ),
        ({"process_index": 2, "process_count": 2}, r"process_index=2 must lie in 0\.\.1"),
        ({"start_step": -1}, "start_step=-1"),
        ({"prefetch": 0}, "prefetch=0 must be at least 1"),
        ({"size": 0}, "the training split has no records"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        take(1, **options)


@pytest.mark.parametrize("process_count", [1, 2, 3, 9])
@pytest.mark.parametrize("num_threads", [0, 3])
def test_eval_sees_every_record_once(process_count, num_threads):
    shares = []
    for process in range(process_count):
        with eval_examples(
            range(7),
            lambda record: {"record": record},
            process_index=process,
            process_count=process_count,
            num_threads=num_threads,
        ) as examples:
            shares.append([example["record"] for example in examples])
    assert sorted(itertools.chain(*shares)) == list(range(7))
    for share in shares:
        assert share == sorted(share)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_close_leaves_no_process_or_thread():
    threads = set(threading.enumerate())
    processes = set(multiprocessing.active_children())
    for num_workers in (0, 1):
        batches = train_batches(
            range(10), draw, global_batch_size=2, seed=0, num_workers=num_workers
        )
        next(batches)
        batches.close()
        batches.close()
    time.sleep(0.2)
    assert set(multiprocessing.active_children()) == processes
    left = [t.name for t in set(threading.enumerate()) - threads if "prefetch" in t.name]
    assert not left


@pytest.mark.parametrize("closed_first", ["train", "eval"])
def test_closed_streams_leave_opencv_its_threads(closed_first):
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        streams = {
            "train": train_batches(range(10), draw, global_batch_size=2, seed=0),
            "eval": eval_examples(range(3), lambda record: {"threads": cv2.getNumThreads()}),
        }
        assert [example["threads"] for example in streams["eval"]] == [1, 1, 1]
        streams.pop(closed_first).close()
        (other,) = streams.values()
        other.close()
        assert cv2.getNumThreads() == 3
        with train_batches(range(10), draw, global_batch_size=2, seed=0, num_workers=1) as batches:
            next(batches)
            assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_keeps_its_message(num_workers):
    def fail(record, rng):
        raise DataError(f"record {record}: label value 7")

    with (
        train_batches([5], fail, global_batch_size=1, seed=0, num_workers=num_workers) as batches,
        pytest.raises(ValueError, match="record 5: label value 7"),
    ):
        next(batches)


def test_real_records(folder, tmp_path):
    dataset = build_dataset("toyset", tmp_path, folder)
    source = pickle.loads(pickle.dumps(dataset.source("train")))
    transform = TrainTransform(dataset.spec, 8, 12, 4.0)
    options = {"global_batch_size": 2, "seed": 1}

    def batches(**extra):
        with train_batches(source, transform, **options, **extra) as stream:
            return [next(stream) for _ in range(4)]

    in_threads = batches()
    assert in_threads[0]["image"].shape == (2, 8, 8, 3)
    assert in_threads[0]["label"].shape == (2, 8, 8)
    assert in_threads[0]["valid_size"].shape == (2, 2)
    assert_equal(in_threads, batches(num_workers=1))
    with eval_examples(dataset.source("val"), EvalTransform(dataset.spec)) as examples:
        assert [example["name"] for example in examples] == ["a", "d"]
