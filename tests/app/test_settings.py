"""Where settings come from, which of them counts, and what is said of a wrong one."""

from pathlib import Path

import attrs
import pytest

from app.settings import Settings
from app.sources import load_settings, options, unknown_variables
from nurseries.errors import StartupFailed
from tests.fixtures.settings_table import table, written


@pytest.fixture
def config(tmp_path):
    """A function that writes a settings file."""

    def write(text: str) -> Path:
        path = tmp_path / "nurseries.toml"
        path.write_text(text)
        return path

    return write


def refusal(flags=(), config=None, variables=()) -> str:
    """Load settings that must be refused; returns why."""
    with pytest.raises(StartupFailed) as failed:
        load_settings(dict(flags), config, dict(variables))
    return str(failed.value)


def test_defaults():
    """Without any source everything has its default, and the defaults pass their own bounds."""
    assert load_settings({"port": None}, None, {}) == Settings()


def test_precedence(config):
    """A flag counts before a variable, a variable before the file, the file before the default."""
    path = config('[nurseries]\nhost = "a"\nport = 1\ndrain_seconds = 1\n[nurseries.pool]\nsize = 1\n')
    variables = {"NURSERIES_PORT": "2", "NURSERIES_DRAIN_SECONDS": "2", "NURSERIES_CONFIG": str(path)}
    settings = load_settings({"port": 3, "host": None}, None, variables)
    assert (settings.port, settings.drain_seconds, settings.host) == (3, 2.0, "a")
    assert (settings.pool.size, settings.pool.overflow) == (1, 30)


def test_what_is_overridden_is_not_looked_at(config):
    """A wrong value that does not count is no reason not to start."""
    assert load_settings({"port": 1}, config("[nurseries]\nport = 'x'\n"), {"NURSERIES_PORT": "y"}).port == 1


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("NURSERIES_LOAD_AGENT", "Yes", "load_agent", True),
        ("NURSERIES_SERVING_DEFLATE", "0", "serving.deflate", False),
        ("NURSERIES_ORIGINS", "https://a.example, https://b.example:8", "origins", ("https://a.example", "https://b.example:8")),
        ("NURSERIES_TRUSTED_PROXIES", "10.0.0.0/8 unix", "trusted_proxies", ("10.0.0.0/8", "unix")),
        ("NURSERIES_DATA_DIR", "/srv/chat", "data_dir", Path("/srv/chat")),
        ("NURSERIES_ACCOUNTS_HASH_COST_PASSES", "3", "accounts.hash_cost.passes", 3),
        ("NURSERIES_POOL_WAIT_SECONDS", "0.5", "pool.wait_seconds", 0.5),
        ("NURSERIES_DATABASE_URL", "postgresql://a:b@c/d", "database_url", "postgresql://a:b@c/d"),
    ],
)  # fmt: skip
def test_variables(variable, text, name, value):
    """Variables are text, whatever the type of their setting."""
    found = load_settings({}, None, {variable: text})
    for part in name.split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "65536"),
        ("port", "1.5"),
        ("port", "9" * 5000),
        ("load_agent", "perhaps"),
        ("origins", "https://a.example/path"),
        ("trusted_proxies", "10.0.0.1/8"),
        ("log_level", "loud"),
        ("metrics", "me"),
        ("drain_seconds", "-1"),
        ("pool.wait_seconds", "nan"),
        ("pool.wait_seconds", "inf"),
        ("pool.statement_seconds", "1e9"),
        ("serving.message_bytes", "0"),
        ("accounts.access_seconds", "-900"),
        ("accounts.hash_cost.memory_kib", "1"),
        ("accounts.issuer", ""),
        ("data_dir", ""),
    ],
)
def test_wrong_values(name, text):
    """A wrong value is named with its setting and where it comes from, in one short line."""
    variable = f"NURSERIES_{name.replace('.', '_').upper()}"
    message = refusal(variables={variable: text})
    assert message.startswith(f"wrong settings: {name} = '{text[:8]}")
    assert f", from the variable {variable}: " in message
    assert len(message) < 200
    assert "Attribute(" not in message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[nurseries]\nport = true\n", "port = True, from the file {path}: must be a whole number"),
        ("[nurseries]\nport = 1.5\n", "port = 1.5, from the file {path}: must be a whole number"),
        ("[nurseries]\nhost = 5\n", "host = 5, from the file {path}: must be a string"),
        ("[nurseries]\nload_agent = 1\n", "load_agent = 1, from the file {path}: must be true or false"),
        ("[nurseries]\norigins = [1]\n", "origins = [1], from the file {path}: must be a list of strings"),
        ("[nurseries]\nprt = 1\n", "the settings file {path}: there is no setting prt; did you mean port?"),
        ("[nurseries.pool]\nsze = 1\n", "there is no setting pool.sze; did you mean pool.size?"),
        ("[nurseries]\npool = 3\n", "there is no setting pool"),
        ("port = 1\n", "port stands outside of the table [nurseries]"),
        ("[nursery]\nport = 1\n", "nursery stands outside of the table [nurseries]"),
        ("[nurseries\n", "the settings file {path} is not TOML"),
    ],
)
def test_wrong_files(config, text, reason):
    """What is wrong in a file is named, and unknown settings are wrong."""
    path = config(text)
    assert reason.format(path=path) in refusal(config=path)


def test_no_file(tmp_path):
    """A file that is asked for must be there."""
    assert "cannot be read: No such file" in refusal(variables={"NURSERIES_CONFIG": str(tmp_path / "none")})


def test_all_mistakes_at_once():
    """Several mistakes are told together."""
    message = refusal({"port": -1}, None, {"NURSERIES_POOL_SIZE": "x"})
    assert "port = -1, from the flag --port: " in message
    assert "pool.size = 'x', from the variable NURSERIES_POOL_SIZE: " in message


@pytest.mark.parametrize(
    "url", ["postgres:/ann:hunter2@host/chat", "hunter2", "postgresql://ann:hunter2@host/%zz"]
)
def test_secrets_are_not_quoted(url):
    """The database's URL may hold a password, and is quoted neither when it is wrong nor with the settings."""
    assert "hunter2" not in refusal({"database_url": url})
    assert "(hidden)" in refusal({"database_url": url})
    assert "hunter2" not in repr(Settings(database_url="postgresql://ann:hunter2@host/chat"))


def test_unknown_variables():
    """Misspelled variables are found; those of the terminal client are none."""
    variables = {"NURSERIES_POOL_SZE": "1", "NURSERIES_PORT": "1", "NURSERIES_EMAIL": "x", "PATH": "x"}
    assert unknown_variables(variables) == ["NURSERIES_POOL_SZE"]


def test_every_setting_has_a_variable_of_its_own():
    """No two settings share a variable, and every number has a bound."""
    found = list(options())
    assert len({option.variable for option in found}) == len(found)
    assert not [
        option.name for option in found if option.type in {int, float} and not option.attribute.validator
    ]


def test_settings_are_frozen():
    """Nothing changes a setting once the server has started."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().port = 1


def test_documentation():
    """The table in docs/operations.md is the one of the code; `python tests/fixtures/settings_table.py` writes it."""
    assert written() == table()
