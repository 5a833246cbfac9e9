"""The notes of the driver's tests, for tools that stand beside a real database."""

from tests.nurseries.postgres.conftest import notes, pool

__all__ = ["notes", "pool"]
