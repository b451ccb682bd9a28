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
        "test": [
            "cityscapesscripts>=2.2.4",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "scikit-learn>=1.5",
        ],
        "torch": ["torch>=2.4"],
    },
)
