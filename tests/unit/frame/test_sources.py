import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignflow import known_files
from alignflow.errors import DataError
from alignflow.sources import expand, fetch_digest, fetch_file, fetch_folder, file_sha256

FolderOf = Callable[[Mapping[str, bytes | str]], Path]


def test_a_local_file_stays_where_it_is(folder_of: FolderOf, tmp_path: Path) -> None:
    path = folder_of({"pairs.jsonl": "{}\n"}) / "pairs.jsonl"
    for uri in (str(path), f"file://{path}"):
        file = fetch_file(uri, tmp_path / "cache")
        assert (file.path, file.uri, file.size) == (path, uri, 3)
        assert file.sha256 == hashlib.sha256(b"{}\n").hexdigest() == file_sha256(path)
    assert not (tmp_path / "cache").exists()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file whose last change is longer ago than the clock of any file system is coarse."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"one")
    time.sleep(known_files._YOUNG_S + 0.1)
    return path


def test_a_known_file_is_not_read_again_and_a_changed_one_is(
    old_file: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    assert fetch_digest(str(old_file), cache) == sha256(b"one")
    (record,) = (cache / "known").iterdir()
    record.write_text("what is remembered")
    assert fetch_digest(str(old_file), cache) == "what is remembered"
    assert fetch_digest(str(old_file), cache, read_again=True) == sha256(b"one")
    assert fetch_digest(str(old_file), cache) == sha256(b"one"), "what was read is remembered"

    before = old_file.stat()
    old_file.write_bytes(b"two")
    os.utime(old_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fetch_digest(str(old_file), cache) == sha256(b"two"), "same size and date"


def test_a_file_written_just_now_is_not_taken_for_known(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    for content in (b"one", b"two"):
        path.write_bytes(content)
        assert fetch_digest(str(path), tmp_path / "cache") == sha256(content)
    assert not (tmp_path / "cache").exists()


def test_a_path_may_start_with_the_home_folder(
    folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of({"pairs.jsonl": "{}"})
    monkeypatch.setenv("HOME", str(folder))
    assert fetch_file("~/pairs.jsonl", tmp_path).path == folder / "pairs.jsonl"
    assert expand("~/*.jsonl") == [str(folder / "pairs.jsonl")]


def test_a_missing_file_is_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (expand, lambda uri: fetch_file(uri, tmp_path)):
        with pytest.raises(DataError) as caught:
            use("data/none.jsonl")
        assert str(caught.value) == (
            f"{tmp_path}/data/none.jsonl: there is no such file; check the path."
        )


def test_a_folder_gives_its_data_files_in_order(folder_of: FolderOf) -> None:
    names = ["b.jsonl", "a.csv.gz", "sub/c.parquet", "sub/D.JSON.zst"]
    others = ["README.md", ".cache/d.json", ".hidden.json", "dataset_infos.json", "data.bin"]
    folder = folder_of(dict.fromkeys(names + others, "x"))
    expected = ["a.csv.gz", "b.jsonl", "sub/D.JSON.zst", "sub/c.parquet"]
    assert expand(str(folder)) == [str(folder / name) for name in expected]
    assert expand(f"file://{folder}") == expand(str(folder))


def test_a_glob_takes_what_it_meets(folder_of: FolderOf) -> None:
    folder = folder_of({"a.txt": "x", "b.txt": "x", "sub/c.txt": "x", "d.csv": "x"})
    (folder / "folder.txt").mkdir()
    assert expand(f"{folder}/*.txt") == [f"{folder}/a.txt", f"{folder}/b.txt"]
    assert expand(f"{folder}/**/c.*") == [f"{folder}/sub/c.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(folder_of: FolderOf) -> None:
    path = folder_of({"a[1].jsonl": "x", "a1.jsonl": "y"}) / "a[1].jsonl"
    assert expand(str(path)) == [str(path)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("*.jsonl", "no file fits this pattern"),
        ("", r"the folder holds no \.jsonl, \.json, \.csv or \.parquet file"),
        ("none.jsonl", "there is no such file"),
    ],
)
def test_what_names_no_data_is_refused(folder_of: FolderOf, name: str, message: str) -> None:
    folder = folder_of({"README.md": "x"})
    with pytest.raises(DataError, match=message):
        expand(str(folder / name))


def test_a_folder_is_no_file_and_a_file_no_folder(folder_of: FolderOf, tmp_path: Path) -> None:
    folder = folder_of({"config.json": "{}"})
    assert fetch_folder(str(folder), tmp_path) == folder
    with pytest.raises(DataError, match="this is a folder; give a file"):
        fetch_file(str(folder), tmp_path)
    with pytest.raises(DataError, match="this is a file, not a folder"):
        fetch_folder(str(folder / "config.json"), tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        fetch_folder(str(folder / "none"), tmp_path)


@pytest.mark.parametrize("uri", ["http://host/a.jsonl", "gs://bucket/a.jsonl"])
def test_other_schemes_are_refused(uri: str, tmp_path: Path) -> None:
    for use in (expand, lambda uri: fetch_file(uri, tmp_path)):
        with pytest.raises(DataError, match="is not supported as a source"):
            use(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "hf://",
        "hf://one",
        "hf://datasets/one",
        "hf://../etc/passwd",
        "hf://a/b/../../c",
        "hf://a/%",
    ],
)
def test_what_is_no_path_on_the_hub_is_refused(uri: str) -> None:
    with pytest.raises(DataError, match="not a path on the hub"):
        expand(uri)


# The hub ---------------------------------------------------------------------------------------

COMMIT = "c" * 40
DATASET = {"README.md": b"#", "data/train.jsonl": b'{"a": 1}\n', "data/test.jsonl": b"{}\n"}
MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle"}


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that downloads use, for one dataset and one model."""

    repositories = {"datasets/owner/pairs": DATASET, "models/owner/tiny": MODEL}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/"):
            self._answer_api(path.removeprefix("api/"))
        else:
            self._answer_file(path)

    def _answer_api(self, path: str) -> None:
        kind, owner, name, *rest = path.split("/")
        files = self.repositories.get(f"{kind}/{owner}/{name}")
        if name == "gated":
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name == "broken":
            self._answer(500, b"{}")
        elif files is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
            self._answer(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": path} for path in files]
            content = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}
            self._answer(200, json.dumps(content).encode())

    def _answer_file(self, path: str) -> None:
        repository, _, file = path.partition("/resolve/")
        kind = repository if repository.startswith("datasets/") else f"models/{repository}"
        content = self.repositories.get(kind, {}).get(file.partition("/")[2])
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            etag = hashlib.sha1(content).hexdigest()
            self._answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


ASK = """
import json, sys
from pathlib import Path
from alignflow import sources
from alignflow.errors import DataError

cache = Path(sys.argv[1])
for line in sys.stdin:
    function, uri = json.loads(line)
    try:
        result = getattr(sources, function)(uri, *([] if function == "expand" else [cache]))
    except DataError as error:
        result = f"DataError: {error}"
    print(json.dumps(result if isinstance(result, list) else str(getattr(result, "path", result))))
"""


def ask(
    endpoint: str, tmp_path: Path, *questions: tuple[str, str], offline: str = "0"
) -> list[Any]:
    """Call functions of sources in a process of its own: the hub's address is read at import."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": offline,
    }
    result = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path / "cache")],
        input="\n".join(json.dumps(question) for question in questions),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_files_and_models_come_from_the_hub(hub: str, tmp_path: Path) -> None:
    repository = "hf://datasets/owner/pairs"
    everything, globbed, one, pinned, model, again = ask(
        hub,
        tmp_path,
        ("expand", repository),
        ("expand", f"{repository}/data/tr*"),
        ("expand", f"{repository}/data/any"),
        ("fetch_file", f"{repository}@{COMMIT}/data/train.jsonl"),
        ("fetch_folder", "hf://owner/tiny"),
        ("fetch_folder", "hf://owner/tiny"),
    )
    assert everything == [f"{repository}/data/test.jsonl", f"{repository}/data/train.jsonl"]
    assert globbed == [f"{repository}/data/train.jsonl"]
    assert one == [f"{repository}/data/any"]
    assert Path(pinned).name == "train.jsonl"
    assert Path(pinned).read_bytes() == DATASET["data/train.jsonl"]
    assert model == again == str(tmp_path / f"cache/hub/owner--tiny@{COMMIT}")
    assert {p.name for p in Path(model).iterdir()} == {"config.json", "model.safetensors"}
    assert not any(path.is_symlink() for path in Path(model).iterdir())
    cached, missing = ask(
        hub,
        tmp_path,
        ("fetch_folder", "hf://owner/tiny"),
        ("fetch_folder", "hf://owner/other"),
        offline="1",
    )
    assert cached == model
    assert "not in the cache, and HF_HUB_OFFLINE forbids to ask the hub" in missing


def test_what_the_hub_lacks_is_told_apart(hub: str, tmp_path: Path) -> None:
    uris = {
        "hf://datasets/owner/none/a.jsonl": "there is no such repository, or it is private",
        "hf://datasets/owner/gated/a.jsonl": "the repository is gated; accept its terms",
        "hf://datasets/owner/pairs@v9/a.jsonl": "the repository has no revision v9",
        "hf://datasets/owner/pairs/none.jsonl": "the repository has no such file",
        "hf://datasets/owner/broken/a.jsonl": "the hub answered 500",
        "hf://datasets/owner/pairs": "this is a repository; name a file in it",
    }
    answers = ask(hub, tmp_path, *(("fetch_file", uri) for uri in uris))
    for (uri, reason), answer in zip(uris.items(), answers, strict=True):
        assert answer.startswith(f"DataError: {uri}: {reason}"), answer


def test_without_a_network_the_hub_is_given_up_at_once(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"
    answers = ask(
        nowhere,
        tmp_path,
        ("fetch_file", "hf://datasets/owner/pairs/a.jsonl"),
        ("expand", "hf://datasets/owner/pairs"),
        ("fetch_folder", "hf://owner/tiny"),
    )
    for answer in answers:
        assert f"{nowhere} doesn't answer; check the network and HF_ENDPOINT." in answer
