"""Archives, lines, and what refuses a file as a whole."""

import gzip
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard

from alignflow.data_validation.streams import NamedFile, open_stream, read_lines, read_to_end
from alignflow.errors import DataError

MakeFile = Callable[[str, bytes], NamedFile]

TEXT = b"".join(b"line %d\n" % number for number in range(50_000))


def read(file: NamedFile, max_line_bytes: int = 100) -> list[bytes]:
    with open_stream(file) as stream:
        return [line.text for line in read_lines(stream, file, max_line_bytes)]


def refusal(file: NamedFile, max_line_bytes: int = 100) -> str | None:
    with pytest.raises(DataError, match=file.name) as caught:
        read(file, max_line_bytes)
    return caught.value.reason


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstandard.compress)]
)
def test_lines_come_out_of_every_compression(
    make_file: MakeFile, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    assert read(make_file(f"a.jsonl{suffix}", pack(TEXT))) == TEXT.split(b"\n")[:-1]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_members_of_an_archive_are_read_on(
    make_file: MakeFile, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    assert len(read(make_file(f"a.jsonl{suffix}", pack(TEXT) + pack(TEXT)))) == 100_000


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("cut.gz", gzip.compress(TEXT)[:-9], "truncated_archive"),
        ("cut.zst", zstandard.compress(TEXT)[:-3], "truncated_archive"),
        ("crc.gz", gzip.compress(TEXT)[:-8] + b"\0\0\0\0\0\0\0\0", "corrupt_archive"),
        (
            "crc.zst",
            zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)[:-1] + b"\0",
            "corrupt_archive",
        ),
        ("tail.gz", gzip.compress(TEXT) + b"garbage", "corrupt_archive"),
        ("tail.zst", zstandard.compress(TEXT) + b"garbage", "corrupt_archive"),
        ("plain.gz", TEXT, "not_gzip"),
        ("plain.zst", TEXT, "not_zstd"),
        ("empty", b"", "empty_file"),
        ("empty.gz", b"", "empty_file"),
        ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "lfs_pointer"),
        ("utf16", "text".encode("utf-16"), "not_utf8"),
        ("utf16_unmarked", "more text".encode("utf-16-le"), "not_utf8"),
        ("long", b"short\n" + b"x" * 101, "line_too_long"),
    ],
)
def test_a_file_is_refused_as_a_whole(
    make_file: MakeFile, name: str, content: bytes, reason: str
) -> None:
    assert refusal(make_file(name, content)) == reason


def test_a_missing_file_is_named(make_file: MakeFile) -> None:
    file = make_file("there", b"x")
    with pytest.raises(DataError, match="gone: no such file"):
        read(NamedFile(file.path.with_name("gone"), "gone"))


def test_lines_end_at_lf_only_and_know_whether_they_end(make_file: MakeFile) -> None:
    file = make_file("a", "\ufeffone\u2028one\x85\r\n\ntwo".encode())
    with open_stream(file) as stream:
        lines = list(read_lines(stream, file, 100))
    assert [line.number for line in lines] == [1, 2, 3]
    assert [line.text for line in lines] == ["one\u2028one\x85\r".encode(), b"", b"two"]
    assert [line.is_complete for line in lines] == [True, True, False]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
def test_an_endless_line_stops_at_the_limit_in_bounded_memory(
    make_file: MakeFile, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    file = make_file(f"bomb{suffix}", pack(b"x" * (64 << 20)))
    tracemalloc.start()
    assert refusal(file, max_line_bytes=1 << 20) == "line_too_long"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_the_rest_of_a_broken_archive_is_found_out(make_file: MakeFile) -> None:
    with pytest.raises(DataError, match="ends before its end marker"):
        read_to_end(make_file("cut.gz", gzip.compress(TEXT)[:-9]))
