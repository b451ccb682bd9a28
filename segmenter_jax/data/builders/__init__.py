"""Builders: one per kind of dataset, all writing the same ArrayRecord features."""

from segmenter_jax.data.builders.base import SegmentationBuilder
from segmenter_jax.data.builders.folder import Folder
from segmenter_jax.data.builders.shapes import Shapes

__all__ = ["Folder", "SegmentationBuilder", "Shapes"]
