"""A server, whose things they are, and who would like to have them."""

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.access import House, housed
from tests.fixtures.house import User, signed_up


@pytest.fixture
async def house(database) -> AsyncIterator[House]:
    """A server with the usual settings."""
    async with housed(database) as house:
        yield house


@pytest.fixture
async def alice(house) -> AsyncIterator[User]:
    """Whose things they are."""
    async with signed_up(house.url) as user:
        yield user


@pytest.fixture
async def bob(house) -> AsyncIterator[User]:
    """Who would like to have them."""
    async with signed_up(house.url) as user:
        yield user
