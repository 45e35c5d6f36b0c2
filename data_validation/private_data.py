"""Personal data and credentials in texts: how they look, and which look-alikes are none.

One pattern a code screens every text; what it finds is looked at once more by the detectors, where
numbers with check digits have to add up. Patterns are those of Rust's engine, see `patterns`.
"""

import ipaddress
from collections.abc import Callable
from string import ascii_uppercase, digits
from typing import Literal, NamedTuple, get_args

import polars as pl

from alignflow.data_validation.config import PrivatePolicy, RowLimits

PrivateCode = Literal["secret", "pii"]

PRIVATE_CODES: tuple[PrivateCode, ...] = get_args(PrivateCode)
"""Secrets first: a key may hold what looks like a number of somebody."""


def codes_under(limits: RowLimits, policy: PrivatePolicy) -> tuple[PrivateCode, ...]:
    """Return what the limits treat in one way."""
    policies = {"secret": limits.secrets, "pii": limits.pii}
    return tuple(code for code in PRIVATE_CODES if policies[code] == policy)


def passes_luhn(number: str) -> bool:
    """Return whether the digits of a card number add up (ISO/IEC 7812-1, annex B)."""
    figures = [int(character) for character in number if character.isdigit()]
    doubled = [sum(divmod(2 * figure, 10)) for figure in figures[-2::-2]]
    return (sum(figures[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Return whether the check digits of an account number are right (ISO 13616-1: 1 mod 97)."""
    compact = text.replace(" ", "")
    rearranged = compact[4:] + compact[:4]
    return int("".join(str(int(character, 36)) for character in rearranged)) % 97 == 1


def is_public_address(text: str) -> bool:
    """Return whether an IP address is one of the internet: not private, local or for examples."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def looks_random(token: str) -> bool:
    """Return whether a long token has both digits and capitals, as keys do and slugs don't."""
    characters = set(token)
    return bool(characters & set(digits) and characters & set(ascii_uppercase))


class Detector(NamedTuple):
    """A pattern, and what a match has to be."""

    name: str
    pattern: str
    is_real: Callable[[str], bool] = lambda match: True
    signs: str | None = None
    """Characters of which an ASCII text that matches has one; None where that tells nothing."""


DETECTORS: dict[PrivateCode, tuple[Detector, ...]] = {
    "secret": (
        Detector(
            "private_key",
            # With its body, to the end marker or to the end of the text.
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----"
            r"(?s:.*?-----END (?:[A-Z]+ )*PRIVATE KEY(?: BLOCK)?-----|.*)",
        ),
        Detector("aws", r"(?-u:\b)(?:AKIA|ASIA)[A-Z0-9]{16}(?-u:\b)"),
        Detector(
            "github",
            r"(?-u:\b)gh[pousr]_[A-Za-z0-9]{36,}|(?-u:\b)github_pat_[A-Za-z0-9_]{40,}",
        ),
        Detector("gitlab", r"(?-u:\b)glpat-[A-Za-z0-9_-]{20,}"),
        Detector("openai_style", r"(?-u:\b)sk-(?:[a-z]+-)?[A-Za-z0-9_-]{32,}", looks_random),
        Detector("hugging_face", r"(?-u:\b)hf_[A-Za-z0-9]{30,}"),
        Detector("stripe", r"(?-u:\b)[rs]k_live_[A-Za-z0-9]{16,}"),
        Detector("slack", r"(?-u:\b)xox[abprs]-[A-Za-z0-9-]{10,}"),
        Detector("google", r"(?-u:\b)AIza[A-Za-z0-9_-]{35}"),
        Detector(
            "jwt",
            # Header and payload are JSON objects, which begin so in base64.
            r"(?-u:\b)eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
        ),
    ),
    "pii": (
        Detector(
            "email",
            r"(?-u)\b[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}\b",
            signs="@",
        ),
        Detector(
            "phone",
            r"(?-u)\+\d{1,3}[ .-]\(?\d{2,4}\)?(?:[ .-]\d{2,4}){2,4}\b|(?:\A|\s)\+\d{9,14}\b"
            r"|\(\d{3}\) ?\d{3}-\d{4}\b|\b\d{3}-\d{3}-\d{4}\b",  # the last two North American
            signs=digits,
        ),
        Detector("social_security_number", r"(?-u)\b\d{3}-\d{2}-\d{4}\b", signs=digits),
        Detector(
            "card",
            # Visa, Mastercard, Discover and JCB with 16 digits, American Express with 15.
            r"(?-u)\b(?:4\d{3}|5[1-5]\d{2}|2[2-7]\d{2}|6\d{3}|35\d{2})(?:[ -]?\d{4}){3}\b"
            r"|\b3[47]\d{2}[ -]?\d{6}[ -]?\d{5}\b",
            passes_luhn,
            signs=digits,
        ),
        Detector(
            "iban",
            r"(?-u)\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
            is_iban,
            signs=digits,
        ),
        Detector(
            "ip_address",
            r"(?-u)\b(?:\d{1,3}\.){3}\d{1,3}\b|\b(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}\b",
            is_public_address,
            signs=f"{digits}:",
        ),
    ),
}

SCREENS: dict[PrivateCode, str] = {
    code: "|".join(f"(?:{detector.pattern})" for detector in detectors)
    for code, detectors in DETECTORS.items()
}
"""A text that doesn't match holds nothing of the kind."""


def signs_of(code: PrivateCode) -> str | None:
    """Return characters of which an ASCII text that a screen matches has one, None for any."""
    signs = [detector.signs for detector in DETECTORS[code]]
    return None if None in signs else "".join(sign for sign in signs if sign)


def holds_private(texts: pl.Series, code: PrivateCode) -> pl.Series:
    """Return which texts hold personal data or credentials; null where there is no text."""
    screened = texts.str.contains(SCREENS[code])
    suspects = screened.arg_true()
    if suspects.is_empty():
        return screened
    is_real = [bool(parts) for parts in private_parts(texts.gather(suspects), code)]
    return screened.scatter(suspects, is_real)


def private_parts(texts: pl.Series, code: PrivateCode) -> list[set[str]]:
    """Return the personal data or the credentials in each text."""
    found: list[set[str]] = [set() for _ in texts]
    for detector in DETECTORS[code]:
        for parts, matches in zip(found, texts.str.extract_all(detector.pattern), strict=True):
            parts.update(match.strip() for match in matches if detector.is_real(match))
    return found
