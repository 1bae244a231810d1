"""python -m motion_lora.apps.cli: the same as the `motion-lora` script."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
