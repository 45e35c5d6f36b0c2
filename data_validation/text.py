"""How texts are compared: normal forms and their hashes."""

import hashlib
import re
import string
import unicodedata

_LETTERS_AND_DIGITS = (string.ascii_letters + string.digits).encode()
_NOT_ALPHANUMERIC = bytes(code for code in range(128) if code not in _LETTERS_AND_DIGITS)
_NOT_ALPHANUMERIC_UNICODE = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """Return the text after NFKC and case folding, with all but letters and digits dropped."""
    if text.isascii():
        return text.encode("ascii").lower().translate(None, _NOT_ALPHANUMERIC).decode("ascii")
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding can undo the normal form.
    return _NOT_ALPHANUMERIC_UNICODE.sub("", unicodedata.normalize("NFKC", folded))


def trimmed(text: str) -> str:
    """Return the text in NFC without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def prompt_key(text: str) -> str:
    """Return the normal form of a prompt; one of symbols alone is only trimmed."""
    return normalised(text) or trimmed(text)


def hash_of(*parts: str) -> int:
    """Return a 64-bit hash of some texts, the same in every process."""
    # No text holds a lone continuation byte: what it parts stays apart.
    joined = b"\x80".join([part.encode("utf-8") for part in parts])
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little")
