"""`cluster`: one real Slurm for all tests of the session, where it is installed and may be started."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.append(str(Path(__file__).parent))  # for cluster.py and stand_in.py, as in the jobs themselves

if TYPE_CHECKING:
    from cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    from cluster import PROGRAMS, SEARCH_PATH, Cluster

    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH_PATH) is None]
    if missing:
        pytest.skip(f"no Slurm to start here: {', '.join(missing)} not found (Debian: slurmctld slurmd slurm-client)")
    with Cluster() as running:
        yield running
