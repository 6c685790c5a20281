"""Make the tests' own modules importable, whatever the working directory; hypothesis does not judge by the clock."""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

# the first text of a fresh checkout takes seconds on a busy machine: its tables are made then
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def manager(tmp_path: Path):
    """A service manager, of `managers`: only tests of the daemon import that much."""
    from managers import Manager

    made = Manager(tmp_path)
    yield made
    made.close()
