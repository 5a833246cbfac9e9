"""What is an access token, and what only looks like one."""

import base64
import json
import socket
from datetime import UTC, datetime, timedelta

import jwt
import psycopg
import pytest

from app.accounts.settings import AccountSettings
from app.accounts.tokens import AccessTokens, load_or_create_key
from app.errors import Unauthenticated
from app.store.owner import open_owner

KEY = bytes(range(32))
NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
USER = "01890a5d-ac96-774b-bcce-b302099a8057"
SESSION = "01890a5d-ac96-774b-bcce-b302099a8058"


@pytest.fixture
def tokens():
    return AccessTokens(KEY, AccountSettings())


def issue(tokens, now=NOW):
    return tokens.issue(USER, SESSION, now, NOW + timedelta(days=30))[0]


def claims(**changed):
    start = int(NOW.timestamp())
    good = {
        "iss": "nurseries",
        "aud": "nurseries",
        "sub": USER,
        "sid": SESSION,
        "jti": "1",
        "iat": start,
        "nbf": start,
        "exp": start + 900,
        "typ": "access",
    }
    return {name: value for name, value in {**good, **changed}.items() if value is not None}


def part(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_token_says_who_and_until_when(tokens):
    """What is issued is read back, and has the claims of the protocol."""
    token, seconds = tokens.issue(USER, SESSION, NOW, NOW + timedelta(days=30))
    read = tokens.read(token, NOW)
    assert (read.user_id, read.session_id, read.expires_at) == (USER, SESSION, NOW + timedelta(minutes=15))
    assert seconds == 900
    body = jwt.decode(token, options={"verify_signature": False})
    assert set(body) == {"iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp", "typ"}
    assert jwt.get_unverified_header(token)["alg"] == "HS256"


def test_the_claims_that_the_forgeries_start_from_are_good(tokens):
    """So that each forgery below is refused for what was changed."""
    assert tokens.read(jwt.encode(claims(), KEY, algorithm="HS256"), NOW).user_id == USER


def test_a_token_ends_with_its_session(tokens):
    """In the last minutes of a session its tokens are short."""
    token, seconds = tokens.issue(USER, SESSION, NOW, NOW + timedelta(seconds=60))
    assert seconds == 60
    assert tokens.read(token, NOW).expires_at == NOW + timedelta(seconds=60)


@pytest.mark.parametrize(
    ("after", "good"), [(-6, False), (-5, True), (904, True), (905, False), (10**6, False)]
)
def test_a_token_holds_for_its_time_and_a_small_leeway(tokens, after, good):
    """Expired and not yet valid are refused; clocks may differ by five seconds."""
    token = issue(tokens)
    if good:
        tokens.read(token, NOW + timedelta(seconds=after))
    else:
        with pytest.raises(Unauthenticated):
            tokens.read(token, NOW + timedelta(seconds=after))


@pytest.mark.parametrize(
    "changed",
    [
        *({name: None} for name in claims()),
        {"iss": "other"},
        {"aud": "other"},
        {"aud": ["other"]},
        {"aud": ["nurseries"]},
        {"typ": "refresh"},
        {"typ": ["access"]},
        {"sub": 7},
        {"sub": "not a uuid"},
        {"sid": "../../etc/passwd"},
        {"sid": [SESSION]},
        {"jti": 7},
        {"exp": "99999999999"},
        {"exp": 99999999999.5},
        {"exp": True},
        {"exp": 10**30},
        {"exp": float("inf")},
        {"nbf": "0"},
        {"nbf": int(NOW.timestamp()) + 60},
        {"iat": int(NOW.timestamp()) + 60},
        {"iat": [0]},
    ],
    ids=str,
)
def test_each_claim_is_checked(tokens, changed):
    """A token with our signature and a claim that is missing, wrong or of the wrong type is refused."""
    with pytest.raises(Unauthenticated):
        tokens.read(jwt.encode(claims(**changed), KEY, algorithm="HS256"), NOW)


def forged(header, key=KEY):
    signed = f"{part(header)}.{part(claims())}"
    if key is None:
        return f"{signed}."
    mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return f"{signed}.{part(mac.sign(signed.encode(), key))}"


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "é.é.é",
        "\udcff.b.c",
        forged({"alg": "none", "typ": "JWT"}, None),
        forged({"alg": "None"}, None),
        forged({"alg": "none"}),
        forged({"alg": "HS384"}),
        forged({"alg": "RS256"}),
        forged({"alg": "ES256"}),
        forged({"alg": ["HS256"]}),
        forged({}),
        forged({"alg": "HS256"}, b"another key, also of 32 bytes...."),
        forged({"alg": "HS256"}, b""),
        forged({"alg": "HS256", "kid": "/dev/null"}, b""),
        forged({"alg": "HS256", "kid": ["/dev/null"]}),
        forged({"alg": "HS256", "crit": ["exp"]}),
        forged({"alg": "HS256", "b64": False, "crit": ["b64"]}),
        f"{part(b'[' * 1400)}.{part({})}.x",
        f"{part(b'{' + b'9' * 1400)}.{part(claims())}.{part(b'')}",
        forged({"alg": "HS256", "pad": "x" * 3000}),
    ],
)
def test_a_forgery_is_refused(tokens, token):
    """No algorithm but ours, no key but ours, and whatever cannot be parsed is refused in the same way."""
    with pytest.raises(Unauthenticated):
        tokens.read(token, NOW)


def test_a_changed_token_is_refused(tokens):
    """The signature covers the claims."""
    head, _, signature = issue(tokens).split(".")
    with pytest.raises(Unauthenticated):
        tokens.read(f"{head}.{part(claims(sub=SESSION))}.{signature}", NOW)


def test_no_header_names_a_key(tokens):
    """A key in the header, or a place to fetch one from, is not used: nobody is even asked."""
    attacker = b"the attacker's key of 32 bytes..."
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/key"
        key = {"kty": "oct", "alg": "HS256", "k": part(attacker)}
        for named in (
            {"jku": url},
            {"x5u": url},
            {"jwk": key},
            {"kid": url},
            {"jku": url, "jwk": key, "kid": "1"},
        ):
            with pytest.raises(Unauthenticated):
                tokens.read(forged({"alg": "HS256", **named}, attacker), NOW)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_short_key_is_not_taken():
    """A key that could be guessed is a mistake in the wiring."""
    with pytest.raises(ValueError, match="32 bytes"):
        AccessTokens(b"short", AccountSettings())


async def test_the_key_outlives_the_server(database):
    """The key is made once, is random, and only the owner of the database can read it."""
    async with open_owner(database.owner) as owner:
        key = await load_or_create_key(owner)
        assert len(key) == 32
        assert await load_or_create_key(owner) == key
    with (
        psycopg.connect(database.accounts) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SELECT value FROM secrets")
