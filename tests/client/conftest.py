from collections.abc import Iterator

import pytest
from dummy_server import DummyServer


@pytest.fixture
def server() -> Iterator[DummyServer]:
    with DummyServer() as running:
        yield running
