"""Entry point of `python -m tools.mutants`; see `trials`."""

import sys

from tools.mutants.trials import main

if __name__ == "__main__":
    sys.exit(main())
