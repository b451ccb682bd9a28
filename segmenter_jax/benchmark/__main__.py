"""Entry point of `python -m segmenter_jax.benchmark`."""

import sys

from segmenter_jax.benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
