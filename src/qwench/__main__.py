"""``python -m qwench`` is ``qwench``."""

import sys

from qwench.cli import main

if __name__ == "__main__":
    sys.exit(main())
