"""Lets tests, and the processes that they spawn, import the modules beside them by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
