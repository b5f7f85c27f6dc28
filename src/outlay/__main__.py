"""`python -m outlay` is `outlay`."""

import sys

from outlay.cli import main

sys.exit(main())
