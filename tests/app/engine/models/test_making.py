"""Models out of settings: what is wrong is said before the server listens, and keys are never shown."""

import re
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from app.engine.models.making import open_models, read_key
from app.engine.models.settings import ModelSettings
from app.settings import Settings
from app.sources import load_settings
from nurseries.errors import StartupFailed

SECRET = "sk-secret-0123456789"


@pytest.fixture
def config(tmp_path):
    """A function that writes a settings file with one model, or with the tables that are given."""

    def write(text: str, *, table: str = "[[nurseries.models]]\nkind = 'openai'\nmodel = 'm'\n") -> Path:
        path = tmp_path / "nurseries.toml"
        path.write_text(table + text)
        return path

    return write


def refusal(config=None, **variables) -> str:
    """Load settings that must be refused; returns why."""
    with pytest.raises(StartupFailed) as failed:
        load_settings({}, config, variables).all_models()
    assert SECRET not in str(failed.value)
    return str(failed.value)


def test_without_any_setting_the_model_is_offline():
    """A server is useful before anybody has a key."""
    (model,) = load_settings({}, None, {}).all_models()
    assert (model.kind, model.describe()) == ("offline", "offline (offline)")


def test_one_model_by_a_variable_or_a_flag(config):
    """It takes the place of the list in the file."""
    variables = {
        "NURSERIES_MODEL": "openai:llama3.2:3b",
        "NURSERIES_MODEL_BASE_URL": "http://127.0.0.1:11434/v1",
        "NURSERIES_MODEL_API_KEY": SECRET,
    }
    settings = load_settings({}, config(""), variables)
    (model,) = settings.all_models()
    assert (model.kind, model.model, model.name) == ("openai", "llama3.2:3b", "llama3.2:3b")
    assert (model.base_url, model.api_key) == ("http://127.0.0.1:11434/v1", SECRET)
    assert SECRET not in repr(settings) + repr(model) + model.describe()
    (offline,) = load_settings({"model": "offline"}, config(""), {}).all_models()
    assert offline.kind == "offline"


def test_several_models_in_the_file(config):
    """They keep their order; each setting has its default or what the table says."""
    path = config(
        "name = 'first'\napi_key = 'k'\nwindow_tokens = 8000\nmax_output_tokens = 1000\nfirst_token_seconds = 5\n"
        "between_tokens_seconds = 2.5\nstream_usage = false\noptions = { temperature = 0.2, stop = ['x'] }\n"
        "[[nurseries.models]]\nkind = 'anthropic'\nmodel = 'claude'\napi_key_env = 'KEY'\n"
        "[[nurseries.models]]\nkind = 'offline'\n"
    )
    first, second, third = load_settings({}, path, {}).all_models()
    assert first == ModelSettings(
        "openai",
        "m",
        name="first",
        api_key="k",
        window_tokens=8000,
        max_output_tokens=1000,
        first_token_seconds=5.0,
        between_tokens_seconds=2.5,
        stream_usage=False,
        options={"temperature": 0.2, "stop": ["x"]},
    )
    assert (first.input_tokens, second.input_tokens) == (7000, 24_000)
    assert second == ModelSettings("anthropic", "claude", name="claude", api_key_env="KEY")
    assert third.describe() == "offline (offline)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("window_tokens = 'x'", "models[0].window_tokens = 'x', from the file {path}: must be a whole number"),
        ("window_tokens = 5", "models[0].window_tokens = 5, from the file {path}: must be >= 1000"),
        ("first_token_seconds = 0", "models[0].first_token_seconds = 0, from the file {path}: must be > 0"),
        ("max_output_tokens = 32000", "models[0] = {{...}}, from the file {path}: max_output_tokens must be less"),
        ("windw_tokens = 5", "models[0].windw_tokens = (hidden), from the file {path}: there is no such setting; did you mean window_tokens?"),
        (f"api_kye = '{SECRET}'", "models[0].api_kye = (hidden)"),
        (f"api_key = ['{SECRET}']", "models[0].api_key = (hidden), from the file {path}: must be a string"),
        (f"api_key = '{SECRET}'\napi_key_env = 'X'", "only one of api_key, api_key_file and api_key_env"),
        ("name = 'two words'", "models[0].name = 'two words', from the file {path}: must be letters"),
        ("base_url = 'models.example'", "must be like https://models.example.org/v1"),
        ("base_url = 'http://[::1'", "must be like https://models.example.org/v1"),
        (f"base_url = 'https://me:{SECRET}@models.example/v1'", "must hold no password"),
        (f"base_url = 'https://models.example/v1?key={SECRET}'", "must hold no password"),
        ("options = 5", "models[0].options = (hidden), from the file {path}: must be a table"),
        ("options = { messages = [] }", "models[0].options = (hidden), from the file {path}: must not hold messages"),
        ("[[nurseries.models]]\nkind = 'openai'", "models[1] = {{...}}, from the file {path}: model is missing"),
        ("[[nurseries.models]]\nmodel = 'm'", "models[1] = {{...}}, from the file {path}: kind is missing"),
        ("[[nurseries.models]]\nkind = 'gemini'", "models[1].kind = 'gemini', from the file {path}: "),
        ("[[nurseries.models]]\nkind = 'anthropic'\nmodel = 'm'", "from the file {path}: must have different names, but there are two m"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_named(config, text, reason):
    """With its place, its value and its source; a value that may be a key is not quoted."""
    path = config(text + "\n")
    assert reason.format(path=path) in refusal(path)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        (
            {"NURSERIES_MODEL": "gpt"},
            "model = 'gpt', from the variable NURSERIES_MODEL: must be like openai:",
        ),
        ({"NURSERIES_MODEL": "openai:"}, "must be like openai:"),
        ({"NURSERIES_MODEL": "offline:x"}, "must be like openai:"),
        ({"NURSERIES_MODEL": "openai:\n"}, "must be letters"),
        ({"NURSERIES_MODEL_BASE_URL": "http://x"}, "model_base_url is set, but model is not"),
        ({"NURSERIES_MODEL_API_KEY": SECRET}, "model_api_key is set, but model is not"),
        ({"NURSERIES_MODEL_BASE_URL": f"http://x:{SECRET}@y"}, "must hold no password"),
        (
            {"NURSERIES_MODELS": "[]"},
            "models = '[]', from the variable NURSERIES_MODELS: must be a list of tables",
        ),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(variables, reason):
    """As every other setting."""
    assert reason in refusal(**variables)


def test_models_that_are_no_tables(config):
    """A list of something else is refused as a whole."""
    assert "must be a list of tables" in refusal(config("", table="[nurseries]\nmodels = ['openai:m']\n"))


def test_every_number_has_a_bound():
    """No model's limit can be set to nonsense."""
    hints = {"int", "float"}
    assert not [
        each.name for each in attrs.fields(ModelSettings) if each.type in hints and not each.validator
    ]


@pytest.mark.parametrize(
    ("fields", "variables", "key"),
    [
        ({"api_key": "a"}, {"OPENAI_API_KEY": "b"}, "a"),
        ({}, {"OPENAI_API_KEY": "b"}, "b"),
        ({"api_key_env": "OTHER"}, {"OTHER": "c", "OPENAI_API_KEY": "b"}, "c"),
        ({"base_url": "http://127.0.0.1:1"}, {"OPENAI_API_KEY": "b"}, ""),
        ({"base_url": "http://127.0.0.1:1", "api_key": "a"}, {}, "a"),
    ],
)
def test_where_keys_come_from(fields, variables, key):
    """The provider's own key is for the provider's own endpoint, and is sent to nobody else."""
    assert read_key(ModelSettings("openai", "m", **fields), variables) == key


def test_a_key_in_a_file(tmp_path):
    """White space around it does not count."""
    path = tmp_path / "key"
    path.write_text(f"{SECRET}\n")
    assert read_key(ModelSettings("anthropic", "m", api_key_file=str(path)), {}) == SECRET


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "model m: no key: set OPENAI_API_KEY, or api_key_file or api_key_env"),
        ({"api_key_env": "NO_SUCH"}, "api_key_env: there is no variable NO_SUCH"),
        ({"api_key_file": "/no/such"}, "api_key_file /no/such cannot be read: No such file"),
        ({"api_key_file": "/"}, "api_key_file / cannot be read: Is a directory"),
        ({"api_key": f"{SECRET} x"}, "api_key holds no key"),
        ({"api_key": f"{SECRET}\r\nX-Evil: 1"}, "api_key holds no key"),
        ({"api_key": f"{SECRET}\u00e4"}, "api_key holds no key"),
        ({"api_key": SECRET * 1000}, "api_key holds no key"),
    ],
)
async def test_keys_that_cannot_be_used(fields, reason):
    """The start fails, and says why without the key."""
    with pytest.raises(StartupFailed) as failed:
        async with open_models([ModelSettings("openai", "m", **fields)], {}):
            pass
    assert reason in str(failed.value)
    assert SECRET not in str(failed.value)


@pytest.mark.parametrize(
    ("model", "imported"),
    [("offline", set()), ("openai:m", {"openai", "httpx2"}), ("anthropic:m", {"anthropic", "httpx2"})],
)
def test_an_sdk_is_imported_only_for_its_models(model, imported):
    """Both are slow to import, and a server without them starts as fast as before."""
    program = """
import sys, trio
import app.main
from app.engine.models.making import open_models
from app.settings import Settings
async def main():
    async with open_models(Settings(model=sys.argv[1], model_api_key="k" * (":" in sys.argv[1])).all_models()):
        print(*{"openai", "anthropic", "httpx2", "pydantic"} & set(sys.modules))
trio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program, model], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) - {"pydantic"} == imported
    assert bool(imported) or not done.stdout.split()


def test_settings_are_values():
    """Nothing of a model can be changed once the server has started."""
    (model,) = Settings(model="openai:m", model_api_key="k").all_models()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        model.name = "x"


PAGE = Path(__file__).parents[4] / "docs" / "models.md"


def test_the_example_of_the_documentation_can_be_used(tmp_path):
    """As it stands there."""
    path = tmp_path / "nurseries.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)[1])
    models = load_settings({}, path, {}).all_models()
    assert [each.describe() for each in models] == [
        "claude-sonnet-4-5 (anthropic:claude-sonnet-4-5)",
        "gpt-5-mini (openai:gpt-5-mini)",
        "cellar (openai:qwen3:8b at http://10.0.0.7:8000/v1)",
    ]


def test_the_documentation_names_every_setting_and_its_default():
    """The table of docs/models.md is that of the class."""
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    told = {
        name: default.strip(" `").replace(",", "")
        for names, default in rows
        for name in re.findall(r"\w+", names)
    }
    fields = {each.name: each.default for each in attrs.fields(ModelSettings)}
    assert set(told) >= set(fields)
    for name, default in fields.items():
        if isinstance(default, bool | int | float):
            assert (
                told[name] == f"{default:g}".lower()
                if not isinstance(default, bool)
                else str(default).lower()
            )
