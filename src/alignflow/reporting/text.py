"""Text for people: numbers, sizes and times in words, and hostile text made harmless to read."""

import unicodedata

_KEPT = {"\n", "\t", "\u200c", "\u200d", "\u00ad"}  # joiners are part of words and emoji

_ACRONYMS = {
    "sft": "SFT",
    "dpo": "DPO",
    "ppo": "PPO",
    "steerlm": "SteerLM",
    "steerlm2": "SteerLM 2.0",
}


def visible(text: str) -> str:
    """Return the text with every character that hides or reorders others spelled out.

    Control, bidirectional, tag and other format characters become `[U+202E]`; a carriage return
    before a line feed is dropped. What remains can't forge a line or turn text around on a page
    or a terminal, and is valid UTF-8.
    """
    return "".join(_spelled_out(c) for c in text.replace("\r\n", "\n"))


def _spelled_out(character: str) -> str:
    if character in _KEPT or character.isprintable():
        return character
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return f"[U+{ord(character):04X}]"
    return character


def format_seconds(seconds: float) -> str:
    """Return a duration in its two largest units, such as `2 min 08 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def format_compact(value: float) -> str:
    """Return a count in at most five characters, such as `950`, `3.1k` or `12M`."""
    for bound, factor, suffix in ((999.5, 1.0, ""), (999_500, 1e3, "k"), (999.5e6, 1e6, "M")):
        if abs(value) < bound:
            scaled = value / factor
            decimals = 1 if suffix and abs(scaled) < 9.95 else 0
            return f"{scaled:.{decimals}f}".removesuffix(".0") + suffix
    return f"{value / 1e9:.1f}G"


def format_bytes(count: int) -> str:
    """Return a size in binary units, such as `1.4 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_number(value: float) -> str:
    """Return a number with three or four significant digits and no needless zeros."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def humanise(code: str) -> str:
    """Return a code such as `held_out_loss` as words: `held out loss`."""
    return code.replace("_", " ").replace("/", ": ").strip()


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as `1 rule` or `5 rules`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def stage_name(name: str) -> str:
    """Return a stage's name for a person, with its acronyms in capitals."""
    words = humanise(name).replace("-", " ").split()
    named = " ".join(_ACRONYMS.get(word, word) for word in words)
    return named[:1].upper() + named[1:]
