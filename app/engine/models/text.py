"""Text that arrives in pieces."""

from __future__ import annotations


class TextJoiner:
    """Joins characters that were cut in two.

    Gateways that cut text into UTF-16 units send the halves of an emoji as lone surrogates in two pieces.
    """

    def __init__(self) -> None:
        self._half = ""

    def join(self, text: str) -> str:
        """Return `text` as it can be shown: a half at its end waits for the next piece, a lone one is replaced."""
        text = self._half + text
        self._half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text
