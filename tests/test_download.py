"""Downloads over a real socket, with everything a server may do wrong."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from fileserver import Fault, FileServer, serve

from builder.errors import BuilderError, NetworkError
from builder.files import file_sha256
from builder.progress import Report
from builder.sources import digests
from builder.sources.download import ATTEMPTS, download

BLOCK = 1 << 16  # a broken connection may lose the last piece of this size
DATA = os.urandom(5 * BLOCK)
PATH = "/weights.pt"


def silent(subject: str, what: str, done: int, total: int | None) -> None:
    pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve() as s:
        s.files[PATH] = DATA
        yield s


def get(
    server: FileServer,
    folder: Path,
    pause: Callable[[float], None] = lambda seconds: None,
    path: str = PATH,
) -> str:
    return download(
        server.url + path,
        folder / "w.pt",
        shown="the file",
        check=file_sha256,
        subject="net",
        report=silent,
        pause=pause,
    )


def left(folder: Path) -> list[str]:
    """Files in a folder but for those that are only there to be locked."""
    return sorted(p.name for p in folder.iterdir() if not p.match(".*.lock"))


def test_a_download_has_its_name_only_when_whole_and_leaves_nothing_else(
    server: FileServer, tmp_path: Path
) -> None:
    digest = get(server, tmp_path)
    assert digest == hashlib.sha256(DATA).hexdigest()
    assert (tmp_path / "w.pt").read_bytes() == DATA
    assert left(tmp_path) == ["w.pt"]


def test_progress_is_told_with_the_total(server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[str, str, int, int | None]] = []
    download(
        server.url + PATH,
        tmp_path / "w.pt",
        shown="the file",
        check=file_sha256,
        subject="net",
        report=lambda *p: told.append(p),
    )
    assert told[-1] == ("net", "w.pt", len(DATA), len(DATA))
    assert [n for _, _, n, _ in told] == sorted(n for _, _, n, _ in told)


def test_a_dropped_connection_resumes_where_it_stopped(server: FileServer, tmp_path: Path) -> None:
    server.faults[PATH] = [Fault(drop_after=2 * BLOCK + 9), Fault(drop_after=BLOCK)]
    get(server, tmp_path)
    assert (tmp_path / "w.pt").read_bytes() == DATA
    assert server.ranges_asked() == [None, f"bytes={2 * BLOCK}-", f"bytes={3 * BLOCK}-"]


def test_an_interrupted_run_is_resumed_by_the_next(server: FileServer, tmp_path: Path) -> None:
    server.faults[PATH] = [Fault(drop_after=2 * BLOCK), *[Fault(status=503)] * ATTEMPTS]
    with pytest.raises(NetworkError, match="503") as error:
        get(server, tmp_path)
    assert f"{2 * BLOCK:,} bytes" in error.value.hint
    assert left(tmp_path) == ["w.pt.part", "w.pt.part.from"]
    server.faults[PATH] = []
    get(server, tmp_path)
    assert server.ranges_asked()[-1] == f"bytes={2 * BLOCK}-"
    assert left(tmp_path) == ["w.pt"]


def test_a_file_that_changed_between_two_attempts_is_fetched_anew(
    server: FileServer, tmp_path: Path
) -> None:
    server.faults[PATH] = [Fault(drop_after=2 * BLOCK), Fault(status=503)]

    def change(_: float) -> None:
        server.files[PATH] = DATA[::-1]

    get(server, tmp_path, change)
    assert (tmp_path / "w.pt").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("shown", ["etag", "modified", "length", "nothing"])
def test_the_rest_of_another_file_was_appended_where_a_server_ignores_if_range(
    server: FileServer, tmp_path: Path, shown: str
) -> None:
    other = DATA[::-1] + (b"longer" if shown == "length" else b"")
    rest = {"Content-Range": f"bytes {2 * BLOCK}-{len(other) - 1}/{len(other)}"}
    if shown == "etag":
        rest["ETag"] = '"another"'
    elif shown == "modified":
        rest["Last-Modified"] = "Thu, 02 Jan 2025 00:00:00 GMT"
    server.validators = False  # those of the faults alone
    first = {"ETag": '"one"'} if shown in ("etag", "length", "nothing") else {}
    first |= {"Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
    server.faults[PATH] = [
        Fault(drop_after=2 * BLOCK, headers=first),
        Fault(status=206, body=other[2 * BLOCK :], headers=rest),
    ]

    def change(_: float) -> None:
        server.files[PATH] = other

    get(server, tmp_path, change)
    assert (tmp_path / "w.pt").read_bytes() == other
    assert server.ranges_asked() == [None, f"bytes={2 * BLOCK}-", None]


@pytest.mark.parametrize("missing", ["ranges", "validators"])
def test_a_server_that_cannot_resume_is_asked_for_the_whole_file_again(
    server: FileServer, tmp_path: Path, missing: str
) -> None:
    setattr(server, missing, False)
    server.faults[PATH] = [Fault(drop_after=2 * BLOCK)]
    get(server, tmp_path)
    assert (tmp_path / "w.pt").read_bytes() == DATA


def test_a_part_that_is_whole_already_is_taken(server: FileServer, tmp_path: Path) -> None:
    server.faults[PATH] = [Fault(drop_after=2 * BLOCK), *[Fault(status=503)] * ATTEMPTS]
    with pytest.raises(NetworkError):
        get(server, tmp_path)
    (tmp_path / "w.pt.part").write_bytes(DATA)  # killed between the last byte and the rename
    get(server, tmp_path)
    assert (tmp_path / "w.pt").read_bytes() == DATA


def test_a_wrong_length_never_gets_the_final_name(server: FileServer, tmp_path: Path) -> None:
    server.faults[PATH] = [Fault(announce=len(DATA) + 7)] * 2 * ATTEMPTS
    server.ranges = False
    waits: list[float] = []
    with pytest.raises(NetworkError, match="before the announced length"):
        get(server, tmp_path, waits.append)
    assert not (tmp_path / "w.pt").exists()
    assert len(waits) == ATTEMPTS - 1
    assert waits == sorted(waits)  # backs off


def test_429_waits_as_long_as_the_server_asks(server: FileServer, tmp_path: Path) -> None:
    later = formatdate(time.time() + 30, usegmt=True)
    server.faults[PATH] = [
        Fault(status=429, headers={"Retry-After": "7"}),
        Fault(status=503, headers={"Retry-After": later}),
    ]
    waits: list[float] = []
    get(server, tmp_path, waits.append)
    assert waits[0] == 7
    assert 20 < waits[1] <= 30


def test_a_wait_beyond_reason_is_an_error_that_says_so(server: FileServer, tmp_path: Path) -> None:
    server.faults[PATH] = [Fault(status=429, headers={"Retry-After": "86400"})]
    with pytest.raises(NetworkError, match="asks to wait 86,400 s"):
        get(server, tmp_path)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_repeated(server: FileServer, tmp_path: Path, status: int) -> None:
    server.faults[PATH] = [Fault(status=status)]
    with pytest.raises(NetworkError, match=str(status)) as error:
        get(server, tmp_path)
    assert len(server.log) == 1
    assert re.search("login" if status == 403 else "address", error.value.hint)


def test_drives_quota_page_is_recognised_and_explained(server: FileServer, tmp_path: Path) -> None:
    page = (
        "<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head>"
        '<body><p class="uc-error-caption">Sorry, too many users have viewed</p></body></html>'
    )
    server.faults[PATH] = [Fault(page=page)]
    with pytest.raises(NetworkError, match="web page titled 'Google Drive - Quota") as error:
        get(server, tmp_path)
    assert "quota for this file is used up" in str(error.value)
    assert "with a browser" in error.value.hint
    assert not (tmp_path / "w.pt").exists()


def test_drives_confirmation_form_is_followed(server: FileServer, tmp_path: Path) -> None:
    page = (
        f'<html><title>Google Drive - Virus scan warning</title><form id="download-form" '
        f'action="{server.url}/download" method="get"><input type="submit" value="go"/>'
        '<input type="hidden" name="id" value="X"><input type="hidden" name="confirm" value="t">'
        '<input type="hidden" name="uuid" value="1-2"></form></html>'
    )
    server.faults[PATH] = [Fault(page=page)] * 2
    target = "/download?id=X&confirm=t&uuid=1-2"
    server.files[target] = DATA
    server.faults[target] = [Fault(drop_after=BLOCK)]
    get(server, tmp_path)
    assert (tmp_path / "w.pt").read_bytes() == DATA
    assert [p for p, _ in server.log] == [PATH, target, PATH, target]
    assert server.ranges_asked()[-1] == f"bytes={BLOCK}-"


def test_a_server_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with serve() as gone:
        pass
    with pytest.raises(NetworkError, match="refuses the connection"):
        get(gone, tmp_path)


def test_a_file_that_fails_its_check_is_removed(server: FileServer, tmp_path: Path) -> None:
    def check(path: Path) -> str:
        raise digests.WrongContent("not this one")

    with pytest.raises(BuilderError, match="not this one"):
        download(
            server.url + PATH,
            tmp_path / "w.pt",
            shown="the file",
            check=check,
            subject="net",
            report=silent,
        )
    assert left(tmp_path) == []


def test_a_check_that_fails_for_other_reasons_keeps_what_arrived(
    server: FileServer, tmp_path: Path
) -> None:
    def check(path: Path) -> str:
        raise BuilderError("cannot write the digests")

    with pytest.raises(BuilderError, match="cannot write the digests"):
        download(
            server.url + PATH,
            tmp_path / "w.pt",
            shown="the file",
            check=check,
            subject="net",
            report=silent,
        )
    assert (tmp_path / "w.pt.part").read_bytes() == DATA
    get(server, tmp_path)
    assert server.ranges_asked() == [None, f"bytes={len(DATA)}-"]  # asked for nothing it had


def test_a_folder_that_cannot_be_made_is_one_sentence(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(BuilderError, match="cannot write"):
        get(server, tmp_path / "file" / "cache")


@pytest.fixture
def small_disk(tmpfs: Callable[[str], Path]) -> Path:
    """A file system of 256 KiB."""
    return tmpfs("size=256k")


def test_a_file_larger_than_the_disk_is_refused_before_it_is_fetched(
    server: FileServer, small_disk: Path
) -> None:
    with pytest.raises(BuilderError, match=r"disk is full.*needs 327,680 more bytes"):
        get(server, small_disk)
    assert (small_disk / "w.pt.part").stat().st_size == 0


def test_a_disk_that_fills_up_is_one_sentence_and_a_later_run_goes_on(
    server: FileServer, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    server.files[PATH] = DATA[: 3 * BLOCK]

    def fill(subject: str, what: str, at: int, total: int | None) -> None:
        if at == BLOCK:
            ballast.write_bytes(bytes(100_000))

    def run(report: Report) -> str:
        path = small_disk / "w.pt"
        return download(
            server.url + PATH,
            path,
            shown="the file",
            check=file_sha256,
            subject="net",
            report=report,
        )

    with pytest.raises(BuilderError, match="disk is full"):
        run(fill)
    assert not (small_disk / "w.pt").exists()
    ballast.unlink()
    run(silent)
    assert (small_disk / "w.pt").read_bytes() == DATA[: 3 * BLOCK]
    assert (server.ranges_asked()[-1] or "").startswith("bytes=")


def test_a_read_only_disk_is_one_sentence(server: FileServer, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(BuilderError, match="read-only"):
        get(server, small_disk)


def test_two_downloads_of_one_file_at_once_fetch_it_once(
    server: FileServer, tmp_path: Path
) -> None:
    threads = [threading.Thread(target=get, args=(server, tmp_path)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (tmp_path / "w.pt").read_bytes() == DATA
    assert left(tmp_path) == ["w.pt"]
    assert len(server.log) == 1


def test_digests_are_pinned_once_and_enforced(tmp_path: Path) -> None:
    pins = tmp_path / "release" / "checkpoints.lock"
    first, second = "a" * 64, "b" * 64
    digests.enforce(pins, "https://z.org/2", second, 2)
    digests.enforce(pins, "https://a.org/1", first, 1)
    digests.enforce(pins, "https://a.org/1", first, 1)
    assert pins.read_text() == f"{first} 1 https://a.org/1\n{second} 2 https://z.org/2\n"
    with pytest.raises(BuilderError) as error:
        digests.enforce(pins, "https://a.org/1", second, 1)
    assert first in str(error.value)
    assert second in str(error.value)
    assert "checkpoints.lock" in error.value.hint
    assert left(pins.parent) == ["checkpoints.lock"]


def test_an_address_with_a_space_can_be_read_back(tmp_path: Path) -> None:
    pins = tmp_path / "checkpoints.lock"
    digests.enforce(pins, "https://a.org/my net.pt", "a" * 64, 1)
    assert digests.read_pins(pins) == {"https://a.org/my net.pt": ("a" * 64, 1)}


def test_pinning_from_many_threads_loses_no_line(tmp_path: Path) -> None:
    pins = tmp_path / "checkpoints.lock"
    threads = [
        threading.Thread(target=digests.enforce, args=(pins, f"https://x/{i}", "c" * 64, i))
        for i in range(16)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(digests.read_pins(pins)) == 16


def test_a_damaged_file_of_pins_names_its_line(tmp_path: Path) -> None:
    pins = tmp_path / "checkpoints.lock"
    pins.write_text("a" * 64 + " 1 https://x\nnonsense\n")
    with pytest.raises(BuilderError, match="line 2 is damaged"):
        digests.read_pins(pins)
