"""Reports of evaluations as files."""

import json
import os

import numpy as np

from segmenter_jax.evaluation.metrics import SegmentationReport
from segmenter_jax.runtime.files import absolute

# In the workdir of a run.
REPORT_FILE = "report.json"


def read_report(path: os.PathLike | str) -> SegmentationReport:
    """Reads the counts that `SegmentationReport.to_json` wrote.

    Args:
      path: the file, or the workdir of a run.

    Returns:
      The report, without boundaries and calibration, whose counts are in no file.

    Raises:
      ValueError: there is no such file, or it is no such report.
    """
    file = absolute(path)
    if file.is_dir():
        file /= REPORT_FILE
    if not file.exists():
        raise ValueError(f"{file}: no such file; expected the report of an evaluation")
    try:
        fields = json.loads(file.read_text())
        classes = tuple(row["class"] for row in fields["classes"])
        matrix = np.array(fields["confusion_matrix"])
        if not all(isinstance(name, str) for name in classes) or matrix.dtype != np.int64:
            raise ValueError("classes must have names, and a confusion_matrix whole numbers")
        protocol, num_images = str(fields["protocol"]), int(fields["num_images"])
        return SegmentationReport(matrix, classes, protocol, num_images)
    except (ValueError, TypeError, KeyError) as error:
        reason = f"field {error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{file}: not the report of an evaluation: {reason}") from None
