"""Text patterns: which are refused or flagged, and in which texts of a record.

Patterns are those of Rust's regex engine, which runs in linear time: no look-around, no
back-references. `-u` keeps classes and word ends to ASCII, which is ten times faster in some.
"""

from typing import Literal, NamedTuple

from alignflow.data_validation.ascii_texts import CONTROLS

MIN_REPETITION_WORDS = 200
"""In a text of no more words, one may stand as often as it likes."""

Where = Literal["any", "prompt", "response"]
"""`response` is what an assistant says, `prompt` everything else."""

_TAGS = (
    "a|abbr|article|aside|audio|b|blockquote|body|br|button|canvas|center|code|dd|div|dl|dt|em|"
    "embed|fieldset|figure|font|footer|form|frame|h[1-6]|head|header|hr|html|i|iframe|img|input|"
    "label|li|link|main|meta|nav|object|ol|option|p|pre|script|section|select|small|span|strong|"
    "style|sub|sup|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|u|ul|video"
)


class TextPattern(NamedTuple):
    """A regular expression and where it counts.

    ASCII texts are looked at by it only where they may match, of which `signs` or `words` tell.
    """

    code: str
    where: Where
    pattern: str
    signs: str | None = None
    """Characters of which an ASCII text that matches has one; with none of them, none matches."""
    words: tuple[str, ...] = ()
    """Texts of which an ASCII text that matches has one, once it is in lower case."""


REFUSED_PATTERNS = (
    TextPattern("control_character", "any", r"[\x00-\x08\x0b\x0c\x0e-\x1f]", signs=CONTROLS),
    TextPattern(
        "special_token",
        "any",
        # ChatML and Llama 3, DeepSeek, SteerLM labels, sentence ends, Gemma, Llama 2.
        r"<\|[A-Za-z0-9_]+\|>|<\x{FF5C}[^\x{FF5C}<>]+\x{FF5C}>|<extra_id_\d+>|</s>|<(?:start|end)_of_turn>"
        r"|<(?:bos|eos|pad|unk)>|\[/?INST\]|<</?SYS>>",
        signs="<[",
    ),
    TextPattern("bidi_control", "any", r"[\x{202A}-\x{202E}\x{2066}-\x{2069}]", signs=""),
    TextPattern(
        "judge_injection",
        "response",
        r"(?i-u)\b(?:note|message|attention|instructions?) (?:to|for) (?:the |all )?"
        r"(?:graders?|judges?|evaluators?|raters?|reviewers?)\b\s*[:,-]",
        words=("grader", "judge", "evaluator", "rater", "reviewer"),
    ),
    TextPattern(
        "judge_injection",
        "response",
        r"(?ix-u)\b(?:disregard|ignore)\ (?:the|your|all|any)\ (?:rubric|grading|scoring)\b"
        r"| \b(?:rate|score|grade)\ this\ (?:response|answer)\ (?:a\ |as\ )?\d+\b",
        words=("rubric", "grading", "scoring", "this response", "this answer"),
    ),
    TextPattern(
        "judge_injection",
        "response",
        # A tool call and nothing else.
        r'\A\s*\{\s*"(?:tool|tool_calls?|function|function_call)"\s*:[\s\S]*\}\s*\z',
        signs="{",
    ),
)
"""A text that matches is refused with the code."""

PAGE_MARKUP = rf"(?i)</?(?:{_TAGS})(?:\s[^<>]*)?/?>"
"""An HTML tag."""
PAGE_BOILERPLATE = (
    r"(?i-u)\baccept (?:all )?cookies\b|\bcookie policy\b|\bskip to (?:main )?content\b"
    r"|\ball rights reserved\b|>\s*(?:log ?in|sign ?(?:in|up))\s*<"
)
"""What pages say around their content."""
CODE_FENCE = "```"

FLAGGED_PATTERNS = (
    TextPattern("replacement_character", "any", "\\x{FFFD}", signs=""),
    TextPattern(
        "mojibake",
        "any",
        r"â€[\x{2010}-\x{2122}œ™\x{9d}]?|Ã[\x{80}-\x{bf}]|Â[\x{a0}-\x{bf}]",
        signs="",
    ),
    TextPattern("html", "any", PAGE_MARKUP, signs="<"),
    TextPattern("formula_prefix", "any", r"\A[=+\-@]", signs="=+-@"),
    TextPattern(
        "injection",
        "prompt",
        r"(?i-u)\b(?:ignore|disregard|forget) (?:all |any )?(?:of )?(?:the |your |my )?"
        r"(?:previous|prior|above|earlier|preceding) (?:instructions?|prompts?|messages?|rules)\b",
        words=("ignore", "disregard", "forget"),
    ),
    TextPattern("suspicious_output", "response", r"(?i)\A\s*(?:none|null|nan|undefined)\s*\z"),
    TextPattern(
        "placeholder",
        "response",
        r"\[(?:[A-Z]{2,}[A-Z _]*|(?:[Yy]our|[Ii]nsert) [A-Za-z ]+)\]",
        signs="[",
    ),
    TextPattern(
        "placeholder",
        "response",
        r"\bTODO\b|(?i:\binsert (?:\w+ ){0,3}here\b)",
        words=("todo", "insert"),
    ),
)
"""A text that matches is accepted, and the row carries the code as a flag."""
