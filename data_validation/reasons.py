"""Reason codes of refusals and flags of accepted rows: the words of every report.

A refused row has one reason: the first that applies in the order of `REASONS`, which goes by group:
bytes, file, JSON, schema, content, dataset, policy.
"""

from typing import Any

REASONS: dict[str, str] = {
    # bytes
    "invalid_utf8": "the bytes are not UTF-8",
    "not_utf8": "the file is in another encoding than UTF-8",
    # file
    "empty_file": "the file holds no record",
    "truncated_archive": "the compressed file ends before its end marker",
    "corrupt_archive": "the checksum or the structure of the archive is wrong",
    "not_gzip": "the name ends in .gz but the content is no gzip",
    "not_zstd": "the name ends in .zst but the content is no zstd",
    "not_parquet": "the name ends in .parquet but the content is no Parquet",
    "line_too_long": "a line is over the limit",
    "lfs_pointer": "the file is a Git LFS pointer in place of the data",
    "not_jsonl": "no line parses as JSON",
    "truncated_last_line": "the last record is not complete",
    "column_count": "the record has another number of fields than the header",
    "unclosed_quote": "a quote never closes",
    # JSON
    "invalid_json": "not JSON by RFC 8259",
    "too_deep": "nested beyond the limit",
    "duplicate_key": "a key stands twice in one object",
    "not_an_object": "the row is not an object",
    "non_finite_number": "a number is infinite or not a number as a double",
    # schema
    "missing_key": "a required key is not there",
    "null_value": "null where a value is required",
    "empty_value": "nothing, or only white space and zero-width characters",
    "wrong_type": "another type than required",
    "bad_message": "a message without role or content",
    "bad_role": "a role outside system, user and assistant",
    "role_order": "turns in an order that the chat template can't render",
    "mixed_form": "text and message lists in one row",
    "prefix_mismatch": "chosen and rejected don't share a prompt",
    "bad_id": "an id with path parts",
    "out_of_range": "an attribute outside 0 to 4",
    "unknown_attribute": "an attribute that is not in the list",
    # content
    "identical_responses": "chosen equals rejected after NFC and trimming",
    "control_character": "a control character other than tab, LF and CR",
    "lone_surrogate": "an unpaired surrogate escape",
    "special_token": "a chat template or label token in the text",
    "score_contradiction": "the chosen response has the lower score",
    # dataset
    "duplicate_row": "the same row stands earlier",
    "conflicting_preference": "the same pair stands earlier the other way round",
    "duplicate_id": "the id is used earlier",
    "conflicting_attributes": "the same conversation stands earlier with other attributes",
    "conflicting_label": "the same response stands earlier with the other label",
    "near_duplicate": "most of the text stands in an earlier row",
    "split_leak": "the prompt is one of the training split",
    "eval_contamination": "the text holds an item of a benchmark",
    # policy
    "bidi_control": "a bidirectional override",
    "too_long": "the text is over the limit",
    "degenerate_repetition": "one word is more than half of a long text",
    "prompt_echo": "the response repeats the prompt",
    "html_markup": "page boilerplate in a response",
    "pii": "personal data",
    "secret": "a credential",
    "judge_injection": "text aimed at a judge or a tool",
}
"""One sentence part for each code, in the order of precedence."""

RANK = {code: rank for rank, code in enumerate(REASONS)}

BEFORE_DATASET = RANK["duplicate_row"]
"""Reasons ranked below this are decided before a row is compared with others."""

FLAGS: dict[str, str] = {
    "implicit_prompt": "the prompt is the shared prefix of both conversations",
    "duplicate_prompt": "the prompt was seen earlier",
    "score_tie": "both responses have the same score",
    "replacement_character": "U+FFFD: a decoding error upstream",
    "mojibake": "UTF-8 that was read as Windows-1252",
    "html": "markup: escape it on display",
    "formula_prefix": "starts with = + - or @: neutralise it in CSV",
    "injection": "an instruction override in the prompt",
    "suspicious_output": "None, null, nan or undefined as the whole response",
    "placeholder": "a placeholder such as [NAME] or TODO in a response",
    "near_duplicate": "most of the text stands in an earlier row",
    "pii": "personal data, kept as the recipe says",
    "secret": "a credential, kept as the recipe says",
    "pii_masked": "personal data, replaced by [pii]",
    "secret_masked": "a credential, replaced by [secret]",
}


class RowRefused(Exception):  # noqa: N818 - an outcome, not an error
    """A row is refused before it can stand in a frame.

    Attributes:
        reason: A key of `REASONS`.
        detail: What exactly, where the code alone doesn't say it.
    """

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason if detail is None else f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it be pickled by its two parts, not by its message."""
        return type(self), (self.reason, self.detail)


def explain(reason: str, detail: str | None) -> str:
    """Return the sentence part for a reason, with where or what in front."""
    return f"{detail}: {REASONS[reason]}" if detail else REASONS[reason]
