"""`python -m panokit`."""

import sys

from panokit.cli import main

sys.exit(main())
