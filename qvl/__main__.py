"""`python -m qvl` is `qvl`."""

from __future__ import annotations

import sys

from qvl.cli.main import main

sys.exit(main())
