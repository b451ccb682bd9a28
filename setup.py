"""Installs segmenter_jax; the dependencies are those of requirements.txt."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (ROOT / "segmenter_jax" / "__init__.py").read_text()
).group(1)

setup(
    name="segmenter_jax",
    version=VERSION,
    description="Segmenter, the transformer for semantic segmentation, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["segmenter_jax", "segmenter_jax.*"]),
    install_requires=(ROOT / "requirements.txt").read_text().split(),
    extras_require={
        "test": ["hypothesis>=6.100", "pytest>=8.0", "ruff>=0.9"],
        "torch": ["torch>=2.4"],
    },
)
