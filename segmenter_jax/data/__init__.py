"""Data: what a dataset is, how it is built, read, transformed and batched.

Only `augment` runs on the device and imports jax; everything else is NumPy, OpenCV and Pillow on
the host.
"""
