"""A fixture for tests of whole networks."""

import networks
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_initial_weights():
    with networks.quick_initial_weights():
        yield
