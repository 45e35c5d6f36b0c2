"""Connections to a real S3 server that are cut in the middle of reading and of writing."""

import asyncio
import functools
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest

from alignflow import s3
from alignflow.artifacts import Artifact, ArtifactStore
from alignflow.errors import DataError, InputError, StoreError
from alignflow.sources import expand, fetch_file, fetch_folder

pytestmark = pytest.mark.integration

KEY = hashlib.sha256(b"a stage").hexdigest()
SMALL = os.urandom(2**20)
LARGE = os.urandom(2**20) * 40  # 40 MiB: three parts
CUT = r"127\.0\.0\.1:\d+ doesn't answer, or the connection to it is cut each time; check"

Direction = Literal["request", "answer"]


class CuttingProxy:
    """Passes bytes on to a server, and cuts connections when it is told to.

    Attributes:
        endpoint: URL that a client uses instead of the server's.
        num_cuts: Connections cut since the last `cut`.
    """

    def __init__(self, server: str) -> None:
        self.endpoint = ""
        self.num_cuts = 0
        self._server = urlsplit(server)
        self._direction: Direction | None = None
        self._after_bytes = 0
        self._times = 0.0
        self._then: Callable[[], object] | None = None
        self._open: set[asyncio.StreamWriter] = set()

    def cut(
        self,
        direction: Direction,
        *,
        after_bytes: int,
        times: float = float("inf"),
        then: Callable[[], object] | None = None,
    ) -> None:
        """Cut each request, or answer, that is longer than so many bytes right there.

        Args:
            direction: Which of the two.
            after_bytes: Bytes of it that still pass, headers counted.
            times: Cuts to make; what comes later passes whole.
            then: Called after each cut, before the client hears of it.
        """
        self._direction, self._after_bytes = direction, after_bytes
        self._times, self._then = times, then
        self.num_cuts = 0

    def mend(self) -> None:
        """Cut no more."""
        self._direction = None

    @contextmanager
    def serving(self) -> Iterator["CuttingProxy"]:
        """Serve in a thread of its own."""
        loop = asyncio.new_event_loop()
        listener = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        thread = threading.Thread(target=loop.run_forever, name="cutting-proxy")
        thread.start()
        try:
            yield self
        finally:
            asyncio.run_coroutine_threadsafe(self._end(listener), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection(self._server.hostname, self._server.port)
        passed: dict[Direction, int] = {"request": 0, "answer": 0}

        async def pump(
            direction: Direction, source: asyncio.StreamReader, target: asyncio.StreamWriter
        ) -> None:
            other: Direction = "answer" if direction == "request" else "request"
            with suppress(ConnectionError):
                while block := await source.read(2**16):
                    # A connection is used again: after the other side's word a new one begins.
                    passed[other] = 0
                    room = self._after_bytes - passed[direction]
                    passed[direction] += len(block)
                    if self._must_cut(direction, passed[direction]):
                        target.write(block[:room])
                        if self._then is not None:
                            await asyncio.to_thread(self._then)
                        break
                    target.write(block)
                    await target.drain()
            self._abort(to_client, to_server)

        self._open |= {to_client, to_server}
        await asyncio.gather(pump("request", client, to_server), pump("answer", server, to_client))

    def _must_cut(self, direction: Direction, passed_bytes: int) -> bool:
        is_due = direction == self._direction and passed_bytes > self._after_bytes
        if not is_due or self.num_cuts >= self._times:
            return False
        self.num_cuts += 1
        return True

    def _abort(self, *ends: asyncio.StreamWriter) -> None:
        for end in ends:
            end.transport.abort()
            self._open.discard(end)

    async def _end(self, listener: asyncio.Server) -> None:
        listener.close()
        self._abort(*self._open)
        # Each reads the end of its connection, and returns.
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})


@pytest.fixture
def proxy(
    s3_server: Any, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[CuttingProxy]:
    """A proxy before the server, which this process uses from now on."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    with CuttingProxy(s3_server.endpoint).serving() as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def store(s3_bucket: str) -> ArtifactStore:
    return ArtifactStore(f"s3://{s3_bucket}/store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "small.bin").write_bytes(SMALL)
    (folder / "large.bin").write_bytes(LARGE)
    return folder


def publish(store: ArtifactStore, folder: Path, key: str = KEY) -> Artifact:
    return store.publish(folder, kind="sft", key=key, code_version="v")


def put(url: str, content: bytes) -> None:
    s3.write_bytes(s3.S3Path.parse(url), content)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# Reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "after_bytes"),
    [(SMALL, 100_000), (LARGE, 5_000_000)],
    ids=["small", "in parts"],
)
def test_a_source_cut_while_it_is_read_is_read_on(
    proxy: CuttingProxy, s3_bucket: str, tmp_path: Path, content: bytes, after_bytes: int
) -> None:
    put(f"s3://{s3_bucket}/a.jsonl", content)
    proxy.cut("answer", after_bytes=after_bytes, times=2)
    file = fetch_file(f"s3://{s3_bucket}/a.jsonl", tmp_path)
    assert proxy.num_cuts == 2
    assert file.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("content", "after_bytes"),
    [(SMALL, 100_000), (LARGE, 5_000_000)],
    ids=["small", "in parts"],
)
def test_a_source_cut_each_time_is_an_error_and_never_short(
    proxy: CuttingProxy, s3_bucket: str, tmp_path: Path, content: bytes, after_bytes: int
) -> None:
    put(f"s3://{s3_bucket}/a.jsonl", content)
    proxy.cut("answer", after_bytes=after_bytes)
    with pytest.raises(DataError, match=f"can't read s3://{s3_bucket}/a.jsonl: {CUT}"):
        fetch_file(f"s3://{s3_bucket}/a.jsonl", tmp_path)
    assert proxy.num_cuts > 2
    assert files_below(tmp_path) == []


def test_a_source_overwritten_while_it_is_read_is_no_mixture(
    proxy: CuttingProxy, s3_bucket: str, tmp_path: Path
) -> None:
    url = f"s3://{s3_bucket}/a.jsonl"
    put(url, b"1" * len(LARGE))
    proxy.cut("answer", after_bytes=5_000_000, times=1, then=lambda: put(url, b"2" * len(LARGE)))
    with pytest.raises(DataError, match=f"can't read {url}: the object changed while it was read"):
        fetch_file(url, tmp_path)
    assert files_below(tmp_path) == []
    assert fetch_file(url, tmp_path).path.read_bytes() == b"2" * len(LARGE)


def test_an_artifact_is_fetched_whole_or_not_at_all(
    proxy: CuttingProxy, store: ArtifactStore, folder: Path, tmp_path: Path
) -> None:
    made = publish(store, folder)
    proxy.cut("answer", after_bytes=500_000)
    with pytest.raises(StoreError, match=f"can't read {made.uri}: {CUT}"):
        store.fetch(made, tmp_path / "cache")
    assert files_below(tmp_path / "cache") == []
    proxy.cut("answer", after_bytes=500_000, times=2)
    fetched = store.fetch(made, tmp_path / "cache")
    assert proxy.num_cuts == 2
    assert (fetched / "small.bin").read_bytes() == SMALL
    assert (fetched / "large.bin").read_bytes() == LARGE


def test_a_cut_answer_is_no_missing_object(
    proxy: CuttingProxy,
    store: ArtifactStore,
    folder: Path,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = publish(store, folder)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.cut("answer", after_bytes=50)
    uses: list[Callable[[], object]] = [
        lambda: store.find(KEY),
        lambda: store.get(made.digest),
        store.check_writable,
        lambda: store.lock(KEY).__enter__(),
        lambda: expand(f"s3://{s3_bucket}/data/"),
        lambda: fetch_file(f"s3://{s3_bucket}/a.jsonl", tmp_path / "cache"),
        lambda: fetch_folder(f"s3://{s3_bucket}/model", tmp_path / "cache"),
    ]
    for use in uses:
        with pytest.raises(InputError, match=f"s3://{s3_bucket}/.*: {CUT}"):
            use()


# Writing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_bytes", [100_000, 5_000_000], ids=["small", "in parts"])
def test_an_upload_cut_twice_is_made_again(
    proxy: CuttingProxy, store: ArtifactStore, folder: Path, tmp_path: Path, after_bytes: int
) -> None:
    proxy.cut("request", after_bytes=after_bytes, times=2)
    made = publish(store, folder)
    assert proxy.num_cuts == 2
    assert store.find(KEY) == made
    fetched = store.fetch(made, tmp_path / "cache")
    assert (fetched / "small.bin").read_bytes() == SMALL
    assert (fetched / "large.bin").read_bytes() == LARGE


@pytest.mark.parametrize("after_bytes", [100_000, 5_000_000], ids=["small", "in parts"])
def test_an_upload_cut_each_time_leaves_nothing_half_written(
    proxy: CuttingProxy, store: ArtifactStore, folder: Path, s3_bucket: str, after_bytes: int
) -> None:
    proxy.cut("request", after_bytes=after_bytes)
    with pytest.raises(StoreError, match=f"can't write {store.url}/artifacts/[0-9a-f]+: {CUT}"):
        publish(store, folder)
    proxy.mend()
    assert store.find(KEY) is None
    left = {item.path.key.rpartition("/")[2]: item.size for item in uploaded(store)}
    whole = {"small.bin": len(SMALL), "large.bin": len(LARGE)}
    assert left.items() <= whole.items()
    assert "large.bin" not in left
    uploads = s3.client().call_s3("list_multipart_uploads", Bucket=s3_bucket)
    assert not uploads.get("Uploads")
    assert store.find(publish(store, folder).key) is not None


def test_the_failure_of_another_transfer_leaves_no_parts(s3_bucket: str, folder: Path) -> None:
    path = s3.S3Path(s3_bucket, "large.bin")

    async def fail(fs: Any) -> None:
        while not (await fs._call_s3("list_multipart_uploads", Bucket=s3_bucket)).get("Uploads"):
            await asyncio.sleep(0.01)
        raise DataError("the other one")

    upload = functools.partial(s3.upload, source=folder / "large.bin", path=path, metadata={})
    calls: list[Callable[[Any], Awaitable[None]]] = [upload, fail]
    with pytest.raises(DataError, match="the other one"):
        s3.run_parallel(calls)
    assert not s3.client().call_s3("list_multipart_uploads", Bucket=s3_bucket).get("Uploads")


PUBLISH = """
import sys
from pathlib import Path
from alignflow.artifacts import ArtifactStore

url, folder, key = sys.argv[1:]
ArtifactStore(url).publish(Path(folder), kind="sft", key=key, code_version="v")
"""


def test_a_writer_killed_in_the_middle_leaves_nothing_half_written(
    proxy: CuttingProxy, store: ArtifactStore, folder: Path
) -> None:
    writer = subprocess.Popen([sys.executable, "-c", PUBLISH, store.url, str(folder), KEY])
    proxy.cut("request", after_bytes=5_000_000, times=1, then=writer.kill)
    assert writer.wait(timeout=60) == -signal.SIGKILL
    assert proxy.num_cuts == 1
    assert store.find(KEY) is None
    assert "large.bin" not in {item.path.key.rpartition("/")[2] for item in uploaded(store)}
    made = publish(store, folder)
    assert store.find(KEY) == made


def uploaded(store: ArtifactStore) -> list[s3.S3Object]:
    return s3.list_objects(s3.S3Path.parse(f"{store.url}/artifacts"))
