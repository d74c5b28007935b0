"""Runs the command line: `python -m keras_coordatt.cli`."""

import sys

from keras_coordatt.cli import main

if __name__ == "__main__":
    sys.exit(main())
