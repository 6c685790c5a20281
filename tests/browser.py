"""What every test in a real Chromium is marked with."""

from __future__ import annotations

import pytest
from harness.chromium import missing

BROWSER = [
    pytest.mark.browser,
    pytest.mark.net,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
