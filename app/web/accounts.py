"""`/v1/auth/*` and `/v1/me`: one route, one call of the account service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Blueprint, Response, request

from app.web.authentication import require_identity
from app.web.bodies import Body, Empty, json_response, no_content, read_body

if TYPE_CHECKING:
    from app.accounts.service import AccountService


class Credentials(Body, frozen=True):
    """Who wants to be known, and what proves it."""

    email: str
    password: str


class RefreshToken(Body, frozen=True):
    """The refresh token to be used up."""

    refresh_token: str


class SigninCode(Body, frozen=True):
    """The code of a sign-in link."""

    code: str


def accounts_blueprint(service: AccountService) -> Blueprint:
    """Return the routes of the accounts; errors are left to `install_problems`."""
    accounts = Blueprint("accounts", __name__)

    @accounts.after_request
    async def not_stored(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"  # RFC 6749, 5.1
        return response

    @accounts.post("/v1/auth/register")
    async def register() -> Response:
        body = await read_body(Credentials)
        user_id = await service.register(body.email, body.password, address=request.remote_addr)
        return json_response({"user_id": user_id}, 201)

    @accounts.post("/v1/auth/login")
    async def login() -> Response:
        body = await read_body(Credentials)
        return json_response(
            await service.login(body.email, body.password, address=request.remote_addr or "")
        )

    @accounts.post("/v1/auth/refresh")
    async def refresh() -> Response:
        body = await read_body(RefreshToken)
        return json_response(await service.refresh(body.refresh_token, address=request.remote_addr))

    @accounts.post("/v1/auth/signin")
    async def signin() -> Response:
        body = await read_body(SigninCode)
        return json_response(await service.signin(body.code, address=request.remote_addr))

    @accounts.post("/v1/auth/logout")
    async def logout() -> Response:
        identity = await require_identity(service)
        await read_body(Empty)
        await service.logout(identity, address=request.remote_addr)
        return no_content()

    @accounts.post("/v1/auth/ticket")
    async def ticket() -> Response:
        identity = await require_identity(service)
        await read_body(Empty)
        return json_response(await service.ticket(identity), 201)

    @accounts.get("/v1/me")
    async def me() -> Response:
        identity = await require_identity(service)
        return json_response({"user_id": identity.user_id, "email": identity.email, "roles": identity.roles})

    return accounts
