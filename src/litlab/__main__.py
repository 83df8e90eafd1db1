"""Run the command `litlab` as `python -m litlab`."""

import sys

from litlab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
