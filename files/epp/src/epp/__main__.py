# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m epp`` is ``epp``."""

from __future__ import annotations

import sys

from epp.cli import main

sys.exit(main())
