"""How texts are compared: normal forms and their hashes."""

import hashlib
import string
import unicodedata

_ASCII = bytes(range(128))
_LOWER_CASE = bytes(range(256)).lower()
_LETTERS_AND_DIGITS = (string.ascii_letters + string.digits).encode()
_NOT_ALPHANUMERIC = bytes(code for code in range(128) if code not in _LETTERS_AND_DIGITS)


def normalised(text: str) -> bytes:
    """Return the text after NFKC and case folding, letters and digits alone, in UTF-8."""
    if text.isascii():
        return ascii_normal_form(text.encode("ascii"))
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding can undo the normal form.
    folded = unicodedata.normalize("NFKC", folded)
    kept = folded.encode().translate(_LOWER_CASE, _NOT_ALPHANUMERIC)
    # Few different characters are left to look at.
    for character in set(kept.translate(None, _ASCII).decode()):
        if not character.isalnum():
            kept = kept.replace(character.encode(), b"")
    return kept


def ascii_normal_form(text: bytes) -> bytes:
    """Return the lower-case letters and digits of a text in ASCII; other bytes stay."""
    return text.translate(_LOWER_CASE, _NOT_ALPHANUMERIC)


def trimmed(text: str) -> str:
    """Return the text in NFC without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def prompt_key(text: str) -> str:
    """Return the normal form of a prompt; one of symbols alone is only trimmed."""
    return normalised(text).decode() or trimmed(text)


def hash_of(*parts: str) -> int:
    """Return a 64-bit hash of some texts, the same in every process."""
    digest = hashlib.blake2b(joined(*(part.encode("utf-8") for part in parts)), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def joined(*parts: bytes) -> bytes:
    """Return texts in UTF-8 as one from which each can be told."""
    # No text holds a lone continuation byte: what it parts stays apart.
    return b"\x80".join(parts)
