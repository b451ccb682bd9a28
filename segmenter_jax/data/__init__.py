"""Data: what a dataset is, how it is built, read, transformed and batched, on the host.

NumPy, OpenCV and Pillow do the work; nothing here imports jax.
"""
