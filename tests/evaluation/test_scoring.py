"""Counting of results as they come, and over processes."""

import socket
import subprocess
import sys

import numpy as np

from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.evaluation.scoring import score, sum_over_processes
from tests.tiny_runs import ROOT, environment

SPEC = DatasetSpec("toy", ("sky", "road"), ((0, 0, 0), (1, 1, 1)))


def test_results_are_handed_out_as_they_are_counted():
    read, seen = [], []

    def results():
        for name in "ab":
            read.append(name)
            label = np.zeros((6, 7), np.uint8)
            yield {"label": label, "name": name}, {"ids": np.ones((6, 7), np.uint8)}

    def on_result(example, ids, matrix):
        seen.append((example["name"], ids.shape, len(read)))
        assert matrix[0, 1] == 6 * 7

    report = score(results(), SPEC, "protocol", [on_result])
    assert seen == [("a", (6, 7), 1), ("b", (6, 7), 2)]
    assert report.matrix[0, 1] == report.num_pixels == 2 * 6 * 7
    assert report.num_images == 2 and report.protocol == "protocol"


def test_empty_splits_give_an_empty_report():
    report = score([], SPEC, "", boundary=True, calibration=True)
    assert report.num_images == 0 and np.isnan(report.mean_iou)
    assert np.isnan(report.mean_boundary_iou) and np.isnan(report.calibration_error)


SUM = """
import sys
import jax
import numpy as np
from segmenter_jax.evaluation.scoring import sum_over_processes
process = int(sys.argv[2])
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, process)
counts = np.array([[0, 1], [2**32 - 1, 2**31], [2**33 + 5, 2**61 + 3]], np.int64)
total = sum_over_processes(counts + process)
assert total.dtype == np.int64
np.testing.assert_array_equal(total, 2 * counts + 1)
"""


def test_counts_beyond_32_bits_are_summed_exactly_over_processes():
    counts = np.array([[2**33 + 5, 2**62 + 3]], np.int64)
    np.testing.assert_array_equal(sum_over_processes(counts), counts)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SUM, str(port), str(process)],
            cwd=ROOT,
            env=environment(1),
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
