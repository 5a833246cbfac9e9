"""Parameters that several commands have: where the server is, and who asks it."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter, validators

DEFAULT_URL: Final = "http://127.0.0.1:8000"

Url = Annotated[str, Parameter(env_var="NURSERIES_URL")]
Email = Annotated[str | None, Parameter(env_var="NURSERIES_EMAIL")]
Password = Annotated[str | None, Parameter(env_var="NURSERIES_PASSWORD", show_default=False)]
AdminToken = Annotated[str | None, Parameter(env_var="NURSERIES_ADMIN_TOKEN", show_default=False)]
Switch = Annotated[bool, Parameter(negative=())]
Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Amount = Annotated[int, Parameter(validator=validators.Number(gte=0))]
Seconds = Annotated[float, Parameter(validator=validators.Number(gte=0))]
