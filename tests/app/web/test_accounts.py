"""`/v1/auth/*` and `/v1/me` as a client sees them, by the real application."""

import logging

import pytest
import structlog
import trio
from quart_trio import QuartTrio

from app.web.accounts import accounts_blueprint
from app.web.authentication import refuse_query_tokens, require_identity
from app.web.problems import install_problems

CREDENTIALS = {"email": "ann@example.org", "password": "correct horse battery"}


class Client:
    """Calls the application and returns status, body and response."""

    def __init__(self, service):
        app = QuartTrio("app")
        install_problems(app)
        refuse_query_tokens(app)
        app.register_blueprint(accounts_blueprint(service))

        @app.get("/admin")
        async def admin():
            await require_identity(service, role="admin")
            return {}

        @app.get("/broken")
        async def broken():
            raise ZeroDivisionError("a secret of ours")

        self._client = app.test_client()

    async def __call__(self, method, path, json=None, *, token=None, data=None, headers=None):
        headers = dict(headers or {})
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        body = {"data": data} if data is not None else {} if json is None else {"json": json}
        response = await self._client.open(path, method=method, headers=headers, **body)
        self.response = response
        return response.status_code, await response.get_json()

    async def post(self, path, json=None, **kwargs):
        return await self("POST", f"/v1/auth/{path}", json, **kwargs)

    async def sign_up(self, credentials=CREDENTIALS):
        """Register and log in; return the pair."""
        assert (await self.post("register", credentials))[0] == 201
        status, pair = await self.post("login", credentials)
        assert status == 200
        return pair

    def problem(self, answer, status, code):
        """Check that the last answer is the problem, and return its body."""
        assert (answer[0], answer[1]["code"], answer[1]["status"]) == (status, code, status)
        assert self.response.content_type == "application/problem+json"
        assert {"type", "title", "detail"} < set(answer[1])
        return answer[1]


@pytest.fixture
def client(accounts):
    return Client(accounts.service)


async def test_the_protocol_from_registration_to_logout(client, accounts):
    """Each call succeeds with the status and the fields of the protocol, and no more."""
    status, body = await client.post("register", CREDENTIALS)
    assert (status, set(body)) == (201, {"user_id"})
    user_id = body["user_id"]
    status, pair = await client.post("login", CREDENTIALS)
    assert (status, set(pair)) == (200, {"access_token", "refresh_token", "token_type", "expires_in"})
    assert (pair["token_type"], pair["expires_in"]) == ("Bearer", 900)
    assert client.response.headers["Cache-Control"] == "no-store"
    assert await client("GET", "/v1/me", token=pair["access_token"]) == (
        200,
        {"user_id": user_id, "email": CREDENTIALS["email"], "roles": []},
    )
    status, body = await client.post("ticket", token=pair["access_token"])
    assert (status, set(body), body["expires_in"]) == (201, {"ticket", "expires_in"}, 30)
    assert (await accounts.service.authenticate_ticket(body["ticket"])).user_id == user_id
    status, successor = await client.post("refresh", {"refresh_token": pair["refresh_token"]})
    assert (status, set(successor)) == (200, set(pair))
    status, body = await client.post("logout", token=successor["access_token"])
    assert (status, body, await client.response.get_data()) == (204, None, b"")
    for token in (pair["access_token"], successor["access_token"]):
        client.problem(await client("GET", "/v1/me", token=token), 401, "unauthenticated")


async def test_a_reused_refresh_token_is_an_invalid_grant(client):
    """As OAuth spells it, and the family with it."""
    pair = await client.sign_up()
    _, successor = await client.post("refresh", {"refresh_token": pair["refresh_token"]})
    for token in (pair["refresh_token"], successor["refresh_token"]):
        answer = await client.post("refresh", {"refresh_token": token})
        assert client.problem(answer, 400, "invalid_grant")["error"] == "invalid_grant"
    client.problem(await client("GET", "/v1/me", token=successor["access_token"]), 401, "unauthenticated")


async def test_what_registration_refuses(client, accounts):
    """Taken, weak, malformed, and switched off, each with its code."""
    await client.sign_up()
    client.problem(await client.post("register", CREDENTIALS), 409, "email_taken")
    weak = await client.post("register", {"email": "bob@example.org", "password": "short"})
    assert client.problem(weak, 422, "weak_password")["field"] == "password"
    malformed = await client.post("register", {**CREDENTIALS, "email": "bob"})
    assert client.problem(malformed, 422, "invalid_email")["field"] == "email"
    closed = Client(accounts.make(registration=False))
    closed.problem(await closed.post("register", CREDENTIALS), 403, "registration_closed")


async def test_guessing_gets_401_and_then_429(client):
    """Unknown user and wrong password are one answer; after ten, a time to come back."""
    await client.sign_up()
    wrong = await client.post("login", {**CREDENTIALS, "password": "wrong"})
    unknown = await client.post("login", {**CREDENTIALS, "email": "bob@example.org"})
    assert wrong == unknown
    client.problem(wrong, 401, "invalid_credentials")
    assert client.response.headers["WWW-Authenticate"] == "Bearer"
    for _ in range(9):
        await client.post("login", {**CREDENTIALS, "password": "wrong"})
    client.problem(await client.post("login", CREDENTIALS), 429, "rate_limited")
    assert 0 < int(client.response.headers["Retry-After"]) <= 300


async def test_too_many_hashes_at_once_get_503(accounts):
    """With the time to come back."""
    client = Client(accounts.make(hash_waiters=1))
    refused = []

    async def register(number):
        answer = await client.post("register", {**CREDENTIALS, "email": f"u{number}@example.org"})
        if client.response.status_code != 201:
            client.problem(answer, 503, "busy")
            assert int(client.response.headers["Retry-After"]) > 0
            refused.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(register, number)
    assert 0 < len(refused) < 5


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Basic YTpi",
        "Bearer a b",
        "Bearer é",
        "Token x",
        "x" * 10_000,
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/me"), ("POST", "/v1/auth/logout"), ("POST", "/v1/auth/ticket")]
)
async def test_without_a_good_token_there_is_401(client, authorization, method, path):
    """Every route with an identity asks for one, in the way of RFC 6750."""
    headers = {} if authorization is None else {"Authorization": authorization}
    client.problem(await client(method, path, headers=headers), 401, "unauthenticated")
    assert client.response.headers["WWW-Authenticate"] == "Bearer"


async def test_the_scheme_is_read_in_any_case(client):
    """`bearer` and `BEARER` are Bearer (RFC 9110, 11.1)."""
    pair = await client.sign_up()
    for scheme in ("bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {pair['access_token']}"}
        assert (await client("GET", "/v1/me", headers=headers))[0] == 200


@pytest.mark.parametrize(
    "query",
    [
        "access_token={}",
        "token={}",
        "ticket={}",
        "limit=1&access_token={}",
        "ACCESS_TOKEN={}",
        "access%5Ftoken={}",
        "a=1;token={}",
        "+token={}",
        "token",
        "refresh_token={}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/me", "/v1/auth/refresh", "/nothing/here"])
async def test_a_token_in_the_query_string_is_refused_and_not_logged(client, caplog, capsys, query, path):
    """Even a good one, even beside a good header, on every route and on none."""
    pair = await client.sign_up()
    secret = pair["access_token"]
    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logged:
        answer = await client("GET", f"{path}?{query.format(secret)}", token=secret)
    client.problem(answer, 401, "unauthenticated")
    out = capsys.readouterr()
    for text in (caplog.text, repr(logged), out.out, out.err, repr(answer)):
        assert secret not in text


async def test_other_query_strings_pass(client):
    """Only a parameter's name counts, and what has the form of an access token."""
    pair = await client.sign_up()
    for query in ("limit=1", "q=token", "tokens=1", "q=a%26token%3Db", "q=eyJ.a.b", ""):
        assert (await client("GET", f"/v1/me?{query}", token=pair["access_token"]))[0] == 200


@pytest.mark.parametrize("path", ["register", "login", "refresh", "signin", "logout", "ticket"])
async def test_no_field_is_smuggled(client, path):
    """A user id in a body is refused on every call, whoever asks."""
    pair = await client.sign_up()
    bodies = {
        "register": {"email": "bob@example.org", "password": "correct horse"},
        "login": CREDENTIALS,
        "refresh": {"refresh_token": pair["refresh_token"]},
        "signin": {"code": "x"},
    }
    body = {**bodies.get(path, {}), "user_id": "01890a5d-ac96-774b-bcce-b302099a8057"}
    answer = await client.post(path, body, token=pair["access_token"])
    assert client.problem(answer, 422, "invalid_field")["field"] == "user_id"
    assert (await client("GET", "/v1/me", token=pair["access_token"]))[0] == 200


async def test_what_is_no_body_is_400_or_422(client):
    """Bad JSON as a whole, or a field by name; text comes back harmless."""
    client.problem(await client.post("login", data=b'{"email": "a", "email": "b"}'), 400, "bad_json")
    client.problem(await client.post("login", data=b"[" * 100_000), 400, "bad_json")
    client.problem(await client.post("login", data=b""), 422, "invalid_field")
    answer = await client.post("login", data=b'{"email": "a", "password": "\\u0000"}')
    assert client.problem(answer, 422, "invalid_field")["field"] == "password"
    answer = await client.post("login", data=b'{"email": "a", "password": "b", "\\ud800": 1}')
    client.problem(answer, 422, "invalid_field")


async def test_a_sign_in_code_is_traded_for_a_pair(client, accounts):
    """Once; it is what the link of a new database carries."""
    code = await accounts.service.codes.for_first_user()
    status, pair = await client.post("signin", {"code": code})
    assert status == 200
    assert (await client("GET", "/v1/me", token=pair["access_token"]))[1]["roles"] == ["admin"]
    client.problem(await client.post("signin", {"code": code}), 400, "invalid_grant")


async def test_a_role_is_asked_for(client, accounts):
    """403 without it, and 200 as soon as it is given."""
    pair = await client.sign_up()
    client.problem(await client("GET", "/admin", token=pair["access_token"]), 403, "forbidden")
    await accounts.service.users.set_roles(CREDENTIALS["email"], ["admin"])
    assert (await client("GET", "/admin", token=pair["access_token"]))[0] == 200


async def test_every_other_error_is_a_problem(client, accounts, caplog):
    """Unknown paths, wrong methods, and a fault of ours, of which the caller learns nothing and the log all."""
    client.problem(await client("GET", "/nothing"), 404, "not_found")
    client.problem(await client("DELETE", "/v1/me"), 405, "method_not_allowed")
    assert "GET" in client.response.headers["Allow"]
    with structlog.testing.capture_logs() as logged:
        answer = await client("GET", "/broken")
    assert "secret" not in repr(client.problem(answer, 500, "internal"))
    assert isinstance(logged[0]["exc_info"], ZeroDivisionError)


async def test_concurrent_clients_keep_their_identities(client):
    """Many users at once, each sees themself."""

    async def one(number):
        mine = {"email": f"user{number}@example.org", "password": "correct horse"}
        pair = await client_of.sign_up(mine)
        for _ in range(5):
            assert (await client_of("GET", "/v1/me", token=pair["access_token"]))[1]["email"] == mine["email"]

    client_of = client
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
