"""The settings of models: which ones there are, in what order, and where their keys are."""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003  # app.sources reads the annotations at run time
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

KINDS: Final = ("openai", "anthropic", "offline")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}")
_RESERVED: Final = frozenset({"model", "messages", "system", "stream", "stream_options", "tools"})
_positive: Any = attrs.validators.gt(0)


def _name(_settings: object, _attribute: object, value: str) -> None:
    if value and not _NAME.fullmatch(value):
        raise ValueError("must be letters, digits and . _ : / @ -, at most 100")


def check_base_url(_settings: object, _attribute: object, value: str) -> None:
    """Refuse what is no address of an endpoint, and one that holds a secret: it is shown in logs."""
    if not value:
        return
    try:
        url = urlsplit(value)
        _ = url.port
    except ValueError:
        raise ValueError("must be like https://models.example.org/v1") from None
    if url.scheme not in {"http", "https"} or not url.hostname:
        raise ValueError("must be like https://models.example.org/v1")
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise ValueError("must hold no password and no query: the key has settings of its own")


def _options(_settings: object, _attribute: object, value: Mapping[str, Any]) -> None:
    if reserved := sorted(_RESERVED & set(value)):
        raise ValueError(f"must not hold {', '.join(reserved)}")


@attrs.frozen
class ModelSettings:
    """One model. Times are in seconds.

    Attributes:
        kind: `openai` for every endpoint with OpenAI's chat completions, `anthropic`, or `offline`.
        model: the provider's name for the model.
        name: what it is called in logs, errors and usage; `model` by default.
        base_url: of an endpoint other than the provider's own, such as `http://127.0.0.1:11434/v1`.
        api_key: the key itself. Better is one of the next two.
        api_key_file: a file that holds the key and nothing else.
        api_key_env: a variable that holds the key; `OPENAI_API_KEY` or `ANTHROPIC_API_KEY` by default, but only for
            the provider's own endpoint.
        window_tokens: how much the model can take in, answer included; older turns beyond it are left out.
        max_output_tokens: how much it may write at once; 0 leaves that to the provider.
        first_token_seconds: how long it may take to begin.
        between_tokens_seconds: how long it may pause within an answer.
        stream_usage: whether to ask for token counts, which a few old servers refuse.
        options: what else the request shall hold, such as `temperature`, `reasoning_effort` or `thinking`.
    """

    kind: str = attrs.field(validator=attrs.validators.in_(KINDS))
    model: str = ""
    name: str = attrs.field(default="", validator=_name)
    base_url: str = attrs.field(default="", validator=check_base_url)
    api_key: str = attrs.field(default="", repr=False)
    api_key_file: str = ""
    api_key_env: str = ""
    window_tokens: int = attrs.field(default=32_000, validator=attrs.validators.ge(1_000))
    max_output_tokens: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    first_token_seconds: float = attrs.field(default=60.0, validator=_positive)
    between_tokens_seconds: float = attrs.field(default=30.0, validator=_positive)
    stream_usage: bool = True
    options: Mapping[str, Any] = attrs.field(factory=dict, validator=_options, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.kind != "offline" and not self.model:
            raise ValueError("model is missing")
        if sum(map(bool, (self.api_key, self.api_key_file, self.api_key_env))) > 1:
            raise ValueError("only one of api_key, api_key_file and api_key_env may be set")
        if self.max_output_tokens >= self.window_tokens:
            raise ValueError("max_output_tokens must be less than window_tokens")
        if not self.name:
            name = self.model or self.kind
            _name(self, None, name)
            object.__setattr__(self, "name", name)

    @property
    def input_tokens(self) -> int:
        """How much of the window the conversation may take, so that there is room for the answer."""
        return self.window_tokens - (self.max_output_tokens or self.window_tokens // 4)

    def describe(self) -> str:
        """Say in a few words what it is, without anything secret."""
        if self.kind == "offline":
            return f"{self.name} (offline)"
        where = f" at {self.base_url}" if self.base_url else ""
        return f"{self.name} ({self.kind}:{self.model}{where})"


def read_model(text: str, base_url: str = "", api_key: str = "") -> ModelSettings:
    """Return the settings that `kind:model` stands for, such as `openai:gpt-5-mini`, or `offline`.

    Raises:
        ValueError: it is nothing of the kind.
    """
    kind, _, model = text.partition(":")
    if kind not in KINDS or bool(model) == (kind == "offline"):
        raise ValueError("must be like openai:gpt-5-mini, anthropic:claude-sonnet-4-5 or offline")
    return ModelSettings(kind=kind, model=model, base_url=base_url, api_key=api_key)
