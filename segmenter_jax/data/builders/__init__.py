"""Builders: one per kind of dataset, all writing the same ArrayRecord features."""

from segmenter_jax.data.builders.base import SegmentationBuilder
from segmenter_jax.data.builders.benchmark import Benchmark
from segmenter_jax.data.builders.benchmarks import (
    ADE20K,
    CamVid,
    Cityscapes,
)
from segmenter_jax.data.builders.folder import Folder
from segmenter_jax.data.builders.pascal_context import PascalContext, PascalContext59
from segmenter_jax.data.builders.rgbt_glass import RGBTGlass
from segmenter_jax.data.builders.shapes import Shapes

BENCHMARK_BUILDERS: dict[str, type[Benchmark]] = {
    builder.dataset_spec.name: builder
    for builder in (ADE20K, Cityscapes, PascalContext, PascalContext59, CamVid, RGBTGlass)
}

__all__ = ["BENCHMARK_BUILDERS", "Benchmark", "Folder", "SegmentationBuilder", "Shapes"]
