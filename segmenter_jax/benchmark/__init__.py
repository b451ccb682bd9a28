"""Throughput, memory and work of every hot path: `python -m segmenter_jax.benchmark --help`."""
