"""Bounds of files and of what is done with them."""

from __future__ import annotations

from typing import Any

import attrs

_positive: Any = attrs.validators.gt(0)


@attrs.frozen
class FileSettings:
    """What users may upload, and what analysing it may take. Sizes are bytes, times seconds.

    Attributes:
        bytes: of one file.
        per_user: files of one user.
        bytes_per_user: of all files of one user.
        upload_seconds: how long one upload may take.
        uploads: uploads at once, all users together; one more is answered 503.
        memory: of one query in DuckDB.
        query_seconds: how long one may take.
        queries: queries at once, all users together; the others wait within their time.
        rows: of a result that are told; the rest is counted as left out.
    """

    bytes: int = attrs.field(default=20 * 1024 * 1024, validator=_positive)
    per_user: int = attrs.field(default=50, validator=_positive)
    bytes_per_user: int = attrs.field(default=200 * 1024 * 1024, validator=_positive)
    upload_seconds: float = attrs.field(default=300.0, validator=_positive)
    uploads: int = attrs.field(default=8, validator=_positive)
    memory: int = attrs.field(default=512 * 1024 * 1024, validator=_positive)
    query_seconds: float = attrs.field(default=20.0, validator=_positive)
    queries: int = attrs.field(default=4, validator=_positive)
    rows: int = attrs.field(default=100, validator=_positive)
