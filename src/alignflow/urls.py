"""URLs as they may be shown and stored."""

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/?#\s]*@")


def without_credentials(text: str) -> str:
    """Return a URL, or a text with URLs in it, without their `user:password@`."""
    return _CREDENTIALS.sub("", text)
