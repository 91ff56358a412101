"""The runs that many tests look at, made once."""

import pytest


@pytest.fixture(scope="session")
def whole(app_factory, tiny):
    """An uninterrupted run in one process: the yardstick of many tests. (output, run)"""
    return app_factory("whole").run(*tiny, "checkpoint.hf_export=milestones", "metrics.tensorboard=true")


@pytest.fixture(scope="session")
def whole_on_two(app_factory, tiny):
    """The same run on two processes with FSDP."""
    return app_factory("whole_on_two").run(*tiny, processes=2)
