"""The process that holds the PostgreSQL of a test run: it lives until its standard input ends.

That is when the test run closes it, or dies in whatever way, so nothing of the cluster is ever left behind.
Its argument is a directory to lie in. Prints the owner's connection string.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from nurseries.postgres.embedded import open_embedded

if TYPE_CHECKING:
    from collections.abc import Mapping

FORGETFUL: Final[Mapping[str, str]] = {
    # Nothing of a test run needs to survive a power failure.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "300",
    "autovacuum": "off",
}


async def serve(directory: Path) -> None:
    """Run PostgreSQL in `directory` until standard input ends."""
    async with open_embedded(directory, settings=FORGETFUL) as postgres:
        sys.stdout.write(postgres.conninfo() + "\n")
        sys.stdout.flush()
        await trio.lowlevel.wait_readable(0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="nurseries-tests-", dir=sys.argv[1]) as place:
        Path(place).chmod(0o711)  # as root, PostgreSQL runs as another account, which must pass
        trio.run(serve, Path(place, "postgres"))
