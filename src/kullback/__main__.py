"""`python -m kullback`, which is also what `accelerate launch -m kullback` runs."""

import sys

from kullback.cli import main

if __name__ == "__main__":
    sys.exit(main())
