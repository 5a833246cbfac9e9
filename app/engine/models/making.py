"""Making the models that the settings name. An SDK is imported only where one of its models is among them."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from app.engine.models.cascade import Candidate, ModelCascade
from app.engine.models.offline import OfflineModel
from nurseries.cleanup import cleanup_scope
from nurseries.errors import StartupFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from app.engine.models.provider import Provider
    from app.engine.models.settings import ModelSettings

_CLASSES: Final = MappingProxyType({"openai": "OpenAIModel", "anthropic": "AnthropicModel"})
_VARIABLES: Final = MappingProxyType({"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"})
_MAX_KEY: Final = 4096


@asynccontextmanager
async def open_models(
    models: Sequence[ModelSettings], variables: Mapping[str, str] = os.environ
) -> AsyncIterator[ModelCascade]:
    """Have the models, one after the other, for the body of the block.

    Args:
        models: in the order in which they are asked.
        variables: the environment, for keys.

    Raises:
        StartupFailed: a key is missing or cannot be used.
    """
    keys = [read_key(each, variables) for each in models]
    providers = [_make(each, key) for each, key in zip(models, keys, strict=True)]
    try:
        yield ModelCascade(
            [
                Candidate(each.name, provider, each.first_token_seconds, each.between_tokens_seconds)
                for each, provider in zip(models, providers, strict=True)
            ]
        )
    finally:
        with cleanup_scope():
            for provider in providers:
                await provider.aclose()


def _make(settings: ModelSettings, key: str) -> Provider:
    if settings.kind == "offline":
        return OfflineModel()
    module = import_module(f"app.engine.models.{settings.kind}")
    provider: Provider = getattr(module, _CLASSES[settings.kind])(settings, key)
    return provider


def read_key(settings: ModelSettings, variables: Mapping[str, str]) -> str:
    """Return the key of a model; nothing where a server of one's own needs none.

    Raises:
        StartupFailed: there is none where one is needed, or it cannot be read or sent. The key is not quoted.
    """
    if settings.kind == "offline":
        return ""
    key, source = _find_key(settings, variables)
    if not (key or settings.base_url):
        raise StartupFailed(
            f"model {settings.name}: no key: set {_VARIABLES[settings.kind]}, or api_key_file or api_key_env"
        )
    if len(key) > _MAX_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise StartupFailed(f"model {settings.name}: {source} holds no key: it must be one word of ASCII")
    return key


def _find_key(settings: ModelSettings, variables: Mapping[str, str]) -> tuple[str, str]:
    if settings.api_key:
        return settings.api_key, "api_key"
    if settings.api_key_file:
        path = Path(settings.api_key_file).expanduser()
        try:
            return path.read_text("utf-8").strip(), f"api_key_file {path}"
        except OSError as error:
            raise StartupFailed(
                f"model {settings.name}: api_key_file {path} cannot be read: {error.strerror}"
            ) from None
        except UnicodeDecodeError:
            raise StartupFailed(f"model {settings.name}: api_key_file {path} is not text") from None
    if settings.api_key_env:
        if not variables.get(settings.api_key_env):
            raise StartupFailed(
                f"model {settings.name}: api_key_env: there is no variable {settings.api_key_env}"
            )
        return variables[settings.api_key_env], f"the variable {settings.api_key_env}"
    # The provider's own key is for the provider alone, not for whatever else a base_url names.
    default = "" if settings.base_url else _VARIABLES[settings.kind]
    return variables.get(default, ""), f"the variable {default}"
