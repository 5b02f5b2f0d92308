"""Known data sets: found, downloaded from a real server, or refused with what to do."""

import hashlib
import re
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from p2rec_core.errors import DataError
from storage import datasets
from storage.datasets import DATASETS, check_statistics, http_fetch, locate

BODY = b"".join(b"%d %d %d\n" % (u, u + 1, u + 2) for u in range(20_000))
PAIRS = b"7 1\n7 2\n9 1\n7 3\n"
JOINED = b"7 1 2 3\n9 1\n"
DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        body = {"/page": b"<html>Log in</html>", "/pairs": PAIRS, "/nothing": b""}.get(self.path, BODY)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def toy(monkeypatch):
    """Enter a data set of which every field can be chosen."""

    def enter(url, **changes):
        fields = {"name": "toy", "file": "toy.txt", "url": url, "sha256": DIGEST, "origin_sha256": DIGEST}
        known = replace(DATASETS["beauty"], **(fields | changes))
        monkeypatch.setattr(datasets, "DATASETS", {"toy": known})

    return enter


def get(tmp_path, **changes):
    arguments = {"datasets_dir": None, "cache_dir": tmp_path / "cache", "fetch": http_fetch}
    return locate("toy", **(arguments | changes))


def test_a_download_is_checked_kept_and_used_again(server, toy, tmp_path):
    toy(f"{server}/good")
    seen = []
    path = get(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "cache" / "toy.txt"
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert len(seen) > 1
    assert [entry.name for entry in path.parent.iterdir()] == ["toy.txt"]
    assert get(tmp_path, fetch=None) == path


def test_a_damaged_file_in_the_cache_is_downloaded_again(server, toy, tmp_path):
    toy(f"{server}/good")
    path = get(tmp_path)
    path.write_bytes(b"damaged")
    assert get(tmp_path).read_bytes() == BODY


def test_pair_lines_are_joined_by_user(server, toy, tmp_path):
    toy(
        f"{server}/pairs",
        origin_pairs=True,
        origin_sha256=hashlib.sha256(PAIRS).hexdigest(),
        sha256=hashlib.sha256(JOINED).hexdigest(),
    )
    assert get(tmp_path).read_bytes() == JOINED


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("page", "begins with '<html>Log in</html>'"),
        ("cut", f"ended after {len(BODY) // 2} of {len(BODY)} bytes"),
        ("missing", "answers 404 Not Found"),
        ("nothing", "sends no bytes"),
        ("pairs", f"has SHA-256 {hashlib.sha256(PAIRS).hexdigest()}, expected {DIGEST}"),
    ],
)
def test_a_bad_download_is_refused_and_not_kept(server, toy, tmp_path, page, words):
    toy(f"{server}/{page}")
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        get(tmp_path)
    assert f"{server}/{page}" in caught.value.problem
    assert "Put toy.txt into a directory and name that in P2REC_DATASETS_DIR" in caught.value.remedy
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unreachable_origin_says_what_to_do_instead(toy, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/toy"
    toy(url)
    with pytest.raises(DataError, match="cannot be downloaded") as caught:
        get(tmp_path)
    assert url in caught.value.problem
    assert "Put toy.txt into a directory and name that in P2REC_DATASETS_DIR" in caught.value.remedy
    with pytest.raises(DataError, match="downloads are switched off"):
        get(tmp_path, fetch=None)


def test_a_download_has_a_size_limit_and_needs_http(server, tmp_path):
    with pytest.raises(DataError, match="sends more than 1000 bytes"):
        http_fetch(f"{server}/good", tmp_path / "file", progress=None, max_bytes=1000)
    with pytest.raises(DataError, match="no http or https address"):
        http_fetch("file:///etc/hostname", tmp_path / "file", progress=None)


def test_the_users_directory_comes_first_and_is_checked(toy, tmp_path):
    toy("http://127.0.0.1:9/never")
    (tmp_path / "toy.txt").write_bytes(BODY)
    assert get(tmp_path, datasets_dir=tmp_path) == tmp_path / "toy.txt"
    (tmp_path / "toy.txt").write_bytes(PAIRS)
    with pytest.raises(DataError, match=f"has SHA-256 {hashlib.sha256(PAIRS).hexdigest()}, expected {DIGEST}"):
        get(tmp_path, datasets_dir=tmp_path)
    assert (tmp_path / "toy.txt").exists()


def test_the_sample_needs_no_network(tmp_path):
    path = locate("sample", datasets_dir=None, cache_dir=tmp_path, fetch=None)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == DATASETS["sample"].sha256
    assert DATASETS["sample"].synthetic
    names = ["sample.items.tsv", "sample.txt", "sample.users.tsv"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == names
    assert DATASETS["sample"].items_file in names


def test_an_unknown_name_lists_the_known(tmp_path):
    with pytest.raises(DataError, match="no data set 'netflix'") as caught:
        locate("netflix", datasets_dir=None, cache_dir=tmp_path, fetch=None)
    assert "beauty, ml-1m, yelp, sample" in caught.value.remedy


def test_statistics_are_compared_with_the_published_ones():
    counts = {"n_users": 22_363, "n_items": 12_100, "n_interactions": 198_502, "length_mean": 8.876}
    assert check_statistics("beauty", counts) == ["Amazon Beauty: n_items is 12100, published 12101."]


@pytest.mark.data
def test_the_pair_lines_of_movielens_are_pinned(datasets_dir, tmp_path):
    """The origin's arrangement, rebuilt from the file, has the pinned digest and joins back to it."""
    path = locate("ml-1m", datasets_dir=datasets_dir, cache_dir=tmp_path, fetch=None)
    lines = (line.split() for line in path.read_text().splitlines())
    text = "".join(f"{user} {item}\n" for user, *items in lines for item in items)

    def fetch(url, target, *, progress):
        target.write_text(text)

    assert hashlib.sha256(text.encode()).hexdigest() == DATASETS["ml-1m"].origin_sha256
    made = locate("ml-1m", datasets_dir=None, cache_dir=tmp_path, fetch=fetch)
    assert made.read_bytes() == path.read_bytes()
