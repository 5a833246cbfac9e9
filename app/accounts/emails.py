"""Email addresses: which ones are accepted, and what makes two of them the same account."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from app.errors import InvalidEmail

LONGEST: Final = 254  # RFC 5321, 4.5.3.1.3, less the brackets

# Only a message can prove an address, so this asks no more than that one could be sent: a local part of
# 1 to 64 visible characters, and a domain of dot-separated labels. "admin@localhost" is an address.
_LABEL: Final = r"[^\W_](?:(?:[^\W_]|-){0,61}[^\W_])?"
_ADDRESS: Final = re.compile(rf'[^\s@"(),:;<>\[\]\\]{{1,64}}@{_LABEL}(?:\.{_LABEL})*')


def email_key(email: str) -> str:
    """Return the form in which two spellings of one address are equal."""
    return unicodedata.normalize("NFKC", email).casefold()


def check_email(email: str) -> None:
    """Raise `InvalidEmail` unless `email` looks like an address of at most 254 characters."""
    if len(email) > LONGEST or len(email_key(email)) > LONGEST:
        raise InvalidEmail("email", f"may have at most {LONGEST} characters")
    if not email.isprintable() or not _ADDRESS.fullmatch(email) or ".." in email:
        raise InvalidEmail("email", "is not an address")
