"""Runs the command line for `python -m lycoris_ops`: see `commands`."""

import sys

from .commands import main

if __name__ == "__main__":
    sys.exit(main())
