"""Releases in object storage: built, verified and asked on a real S3 server that misbehaves."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import build_toy, write_cohort
from s3_server import DROP, DROP_AFTER, MOTO, Fault, Store, running_store
from typer.testing import CliRunner

from builder import store as stores
from builder.building import lease as leases
from builder.check import diff
from builder.cli.main import app, main
from builder.errors import BuilderError, NetworkError, UsageError
from builder.files import cache_folder, file_sha256
from builder.release.reader import open_release
from builder.store import Bucket

pytestmark = [
    pytest.mark.s3,
    pytest.mark.skipif(not MOTO.exists(), reason="no S3 server here: make .venv/.moto"),
]
pytest.importorskip("obstore", reason="pip install 'robust-filter-lens[s3]'")

OUT = "s3://bucket/some/where"
SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with running_store() as found:
        yield found


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    """An empty bucket; whoever asks in vain gives up soon."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("RFL_CACHE", str(tmp_path / "cache"))
    soon = timedelta(milliseconds=5)
    backoff = {"init_backoff": soon, "max_backoff": soon, "base": 2}
    monkeypatch.setattr(stores, "_RETRY", {**stores._RETRY, "max_retries": 2, "backoff": backoff})
    server.reset()
    return server


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort of two tiny networks, whose builds take as long as their requests."""
    ids = ("cifar10-robust-alpha", "cifar10-standard-alpha")
    return write_cohort(tmp_path_factory.mktemp("pair") / "c.csv", dict.fromkeys(ids, Path("x.pt")))


@pytest.fixture(scope="module")
def local(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "pair"
    assert not build_toy(pair, out, first_layer=False).failures
    return out


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def contents(address: str = OUT) -> dict[str, bytes]:
    bucket = Bucket(address)
    return {name: bucket.read(name) or b"" for name in bucket.names()}


def build(cohort: Path, out: str = OUT, **options: object) -> None:
    outcome = build_toy(cohort, out, first_layer=False, **options)  # type: ignore[arg-type]
    for failure in outcome.failures.values():
        raise failure


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.stdout, done.stderr


def from_request(first: int, fault: Fault) -> Callable[[int, str], Fault]:
    return lambda index, request: fault if index >= first else None


def test_a_build_in_a_bucket_has_the_bytes_of_a_local_one(
    store: Store, pair: Path, local: Path
) -> None:
    build(pair)
    assert contents() == files(local)
    assert not list(cache_folder().glob("builds/*"))
    manifest = next(i for i, r in enumerate(store.log) if r.startswith("PUT") and "manifest" in r)
    after = [r for r in store.log[manifest + 1 :] if not r.startswith(("GET", "HEAD"))]
    assert all(r.startswith(("POST /bucket?delete", "DELETE")) for r in after), after
    before = len(store.log)
    build(pair)  # already complete
    assert all(r.startswith(("GET", "HEAD")) for r in store.log[before:])


def test_what_reads_a_release_reads_one_in_a_bucket(
    store: Store, pair: Path, local: Path, tmp_path: Path
) -> None:
    build(pair)
    assert run("verify", OUT, "--full")[0] == 0
    for query in ("sparsity_by_model", "select count(*) n, sum(w00) s from filters", "audit/linf"):
        code, there, _ = run("query", query, "--release", OUT, "--format", "csv")
        assert (
            code == 0
            and there == run("query", query, "--release", str(local), "--format", "csv")[1]
        )
    assert run("findings", "--release", OUT, "--json") == run(
        "findings", "--release", str(local), "--json"
    )
    page = tmp_path / "page.html"
    assert run("report", OUT, "-o", str(page))[0] == 0 and page.stat().st_size > 1e6
    opened = open_release(OUT)
    assert opened.table("layers").equals(open_release(local).table("layers"))
    assert opened.sql("select count(*) n from filters").to_pylist()[0]["n"] > 0
    assert sum(map(len, opened.filters())) == opened.manifest["totals"]["filters"]
    assert not diff.diff(OUT, str(local)).models_changed


def test_only_the_columns_asked_for_are_read_from_the_filters(store: Store, pair: Path) -> None:
    build(pair)
    store.log.clear()
    open_release(OUT).sql("select min(linf) from filters")
    asked = [r for r in store.log if "filters/dataset" in r]
    assert asked and not list(cache_folder().rglob("dataset=*"))  # no file was fetched whole


@pytest.mark.slow
@pytest.mark.parametrize("fault", [DROP, DROP_AFTER, (503, "SlowDown")], ids=str)
def test_an_upload_interrupted_at_any_request_is_never_half_visible(
    store: Store, pair: Path, local: Path, fault: Fault
) -> None:
    build(pair)
    requests = len(store.log)
    expected = files(local)
    for first in range(requests):
        store.reset()
        store.fault = from_request(first, fault)
        with pytest.raises(NetworkError):
            build(pair)
            raise NetworkError("the last requests are the sweeping; nothing hangs on them")
        store.fault = lambda index, request: None
        there = contents()
        if "manifest.json" in there:
            assert {k: v for k, v in there.items() if not k.startswith(".build/")} == expected
        else:
            with pytest.raises(UsageError, match="is not a release"):
                open_release(OUT)
        build(pair)
        assert contents() == expected, first


@pytest.mark.parametrize("fault", [DROP, DROP_AFTER, (503, "SlowDown"), (429, "TooManyRequests")])
def test_a_server_that_fails_now_and_then_is_asked_again(
    store: Store, pair: Path, local: Path, fault: Fault
) -> None:
    failed: set[str] = set()

    def now_and_then(index: int, request: str) -> Fault:
        if index % 5 or request in failed:  # the same one never twice: it would be given up
            return None
        failed.add(request)
        return fault

    store.fault = now_and_then
    build(pair)
    assert len(failed) > 10
    assert contents() == files(local)


def test_a_slow_server_is_waited_for(store: Store, pair: Path, local: Path) -> None:
    store.fault = lambda index, request: 0.05
    build(pair)
    assert contents() == files(local)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("has no bucket other", None),
        ("credentials are missing or wrong", (403, "SignatureDoesNotMatch")),
        ("credentials are missing or wrong", (401, "InvalidAccessKeyId")),
        (r"could not do it \(HTTP 503 SlowDown\)", (503, "SlowDown")),
        ("no answer from", DROP),
    ],
    ids=["no bucket", "signature", "key", "503", "drop"],
)
@pytest.mark.parametrize("command", ["build", "verify", "query", "filters", "report"])
def test_what_is_wrong_with_a_store_is_one_message(
    store: Store,
    pair: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    fault: Fault,
    command: str,
) -> None:
    out = OUT if fault else OUT.replace("bucket", "other")
    if command == "filters" and fault:  # all but the filters can be read
        build(pair)
        store.fault = lambda index, request: fault if "filters/dataset" in request else None
    else:
        store.fault = lambda index, request: fault
    words_of = {
        "build": ("build", "--cohort", str(pair), "--weights", "seeded:0", "--out", out, "-q"),
        "verify": ("verify", out),
        "query": ("query", "sparsity_by_model", "--release", out),
        "filters": ("query", "select sum(w00) from filters", "--release", out),
        "report": ("report", out, "-o", str(tmp_path / "r.html")),
    }
    monkeypatch.setattr(sys, "argv", ["builder", *words_of[command]])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 4 and said.out == ""
    assert re.search(words, said.err) and said.err.count("error: ") == 1, said.err
    assert SECRET not in said.err and os.environ["AWS_ACCESS_KEY_ID"] not in said.err
    assert not (tmp_path / "r.html").exists()


def test_no_secret_is_written_anywhere(store: Store, pair: Path, tmp_path: Path) -> None:
    build(pair)
    run("verify", OUT)
    run("report", OUT, "-o", str(tmp_path / "r.html"))
    written = [*contents().values(), *files(tmp_path).values()]
    keys = (SECRET.encode(), os.environ["AWS_ACCESS_KEY_ID"].encode(), store.url.encode())
    assert not [key for text in written for key in keys if key in text]


@pytest.mark.parametrize(
    "address",
    ["s3://", "s3:///x", "s3://bucket", "s3://bucket/", "s3://key:pass@bucket/x", "s3://b/x?sig=1"],
)
def test_what_is_no_prefix_is_refused_without_a_request(store: Store, address: str) -> None:
    with pytest.raises(UsageError, match=r"no place in object storage|a whole bucket") as e:
        open_release(address)
    assert not store.log and "pass" not in str(e.value) and "sig=" not in str(e.value)


def test_a_prefix_that_holds_something_else_is_left_alone(store: Store, pair: Path) -> None:
    Bucket(OUT).write("thesis.tex", b"text")
    with pytest.raises(UsageError, match="is not empty and holds no build"):
        build(pair)
    assert contents() == {"thesis.tex": b"text"}


def test_another_build_of_the_prefix_is_refused(store: Store, pair: Path, local: Path) -> None:
    build(pair)
    with pytest.raises(UsageError, match="holds a different build"):
        build(pair, weights="seeded:1")
    assert contents() == files(local)
    build(pair, weights="seeded:1", fresh=True)
    assert contents().keys() == files(local).keys() and contents() != files(local)


def test_two_builds_do_not_share_a_prefix(store: Store, pair: Path) -> None:
    refused = pytest.raises(BuilderError, match="another build is running in s3://bucket")
    with leases.lease(Bucket(OUT)), refused:
        build(pair)
    build(pair)


def test_a_lock_whose_answer_was_lost_is_ours(store: Store) -> None:
    store.fault = lambda index, request: DROP_AFTER if index == 0 else None
    with leases.lease(Bucket(OUT)) as held:
        held.check()


def test_the_hold_of_another_machine_is_taken_when_it_was_not_renewed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = Bucket(OUT)
    theirs = {"machine": "far-1", "pid": 1, "token": "t", "renewed": 3}
    bucket.write(leases.LOCK, json.dumps(theirs).encode())
    refused = pytest.raises(BuilderError, match=r"another build is running in .* on far")
    with refused, leases.lease(bucket):
        pass
    assert json.loads(bucket.read(leases.LOCK) or b"") == theirs
    monkeypatch.setattr(leases, "LASTS", 1.0)
    time.sleep(2.1)  # S3 dates are whole seconds
    with leases.lease(bucket):
        assert json.loads(bucket.read(leases.LOCK) or b"")["machine"] != "far-1"
    assert bucket.read(leases.LOCK) is None


def test_a_hold_is_renewed_and_a_lost_one_writes_no_more(
    store: Store, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LASTS", 0.8)
    bucket = Bucket(OUT)
    with leases.lease(bucket) as held:
        time.sleep(1.5)
        held.check()
        bucket.write(leases.LOCK, b"{}")  # as if it had been taken over
        time.sleep(1)
        with pytest.raises(BuilderError, match="was lost"):
            held.check()
    assert bucket.read(leases.LOCK) == b"{}"  # not ours to delete


def test_a_killed_build_goes_on_at_once_on_its_machine(
    store: Store, pair: Path, local: Path
) -> None:
    words = ["build", "--cohort", str(pair), "--weights", "seeded:0", "--no-first-layer"]
    command = [sys.executable, "-m", "builder", *words, "--out", OUT]
    store.fault = lambda index, request: 30.0 if "standard-alpha.parquet" in request else None
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) as process:
        while not any("standard-alpha.parquet" in r for r in list(store.log)):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    store.fault = lambda index, request: None
    shutil.rmtree(cache_folder())  # all that counts is in the bucket
    store.log.clear()
    build(pair)
    sent = [r for r in store.log if r.startswith("PUT") and "dataset" in r]
    assert [("standard" in r) for r in sent] == [True]  # the other one was there
    assert contents() == files(local)


def test_a_file_changed_in_the_bucket_is_not_taken_for_the_release_s(
    store: Store, pair: Path
) -> None:
    build(pair)
    Bucket(OUT).write("data/models.parquet", b"something else")
    Bucket(OUT).write("data/stray", b"1")
    with pytest.raises(BuilderError, match="is not the file that the manifest lists"):
        open_release(OUT).table("models")
    code, said, _ = run("verify", OUT)
    assert code == 1 and "models.parquet: has 14 bytes" in said and "data/stray: is not" in said
    Bucket(OUT).delete("data/models.parquet")
    assert "models.parquet: is missing" in run("verify", OUT)[1]


def test_a_file_larger_than_a_piece_arrives_whole_or_not_at_all(
    store: Store, tmp_path: Path
) -> None:
    big, back = tmp_path / "big", tmp_path / "back"
    big.write_bytes(os.urandom(stores._PIECE * 2 + 123))
    bucket = Bucket(OUT)

    class Ended(BaseException):
        pass

    def end(done: int) -> None:
        if done > stores._PIECE:
            raise Ended

    with pytest.raises(Ended):
        bucket.send("big", big, end)
    assert bucket.size("big") is None
    told: list[int] = []
    bucket.send("big", big, told.append)
    assert told[-1] == big.stat().st_size and len(told) == 3
    with pytest.raises(Ended):
        bucket.fetch("big", back, moved=end)
    assert not list(tmp_path.glob("*back*"))
    bucket.fetch("big", back, sha256=file_sha256(big))
    assert back.read_bytes() == big.read_bytes()
