"""Predictions in the form that a dataset's own scorer or test server expects."""

from pathlib import PurePosixPath

import cv2
import numpy as np

from segmenter_jax.data.specs import BENCHMARKS, DatasetSpec


def submission_name(spec: DatasetSpec, record_name: str) -> str:
    """File name of a prediction, relative to the folder of all.

    Args:
      spec: the dataset.
      record_name: "name" of the record.

    Returns:
      For Cityscapes "CITY_SEQUENCE_FRAME_pred_labelIds.png"; for the others the name of the image
      with ".png", as ADE20K's server expects it.
    """
    suffix = "_pred_labelIds.png" if spec.name == "cityscapes" else ".png"
    return f"{PurePosixPath(record_name)}{suffix}"


def encode_submission(ids: np.ndarray, spec: DatasetSpec) -> bytes:
    """A prediction as a grey PNG of the dataset's original ids.

    Args:
      ids: trained ids (H, W).
      spec: the dataset. For a benchmark the ids are always the official ones: 1..150 for ADE20K,
        labelIds for Cityscapes even if it was built from labelTrainIds.

    Returns:
      The encoded PNG, 8 bits per pixel.
    """
    spec = BENCHMARKS.get(spec.name, spec)
    return cv2.imencode(".png", spec.raw_ids(ids))[1].tobytes()
