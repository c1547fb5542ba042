"One file from a bad server, and archives that mean harm."
import errno
import gzip
import io
import os
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server import publisher

from vlnotes.download import download, nice, unpack

DATA = bytes(range(256)) * 2000
FAST = dict(wait=.01, timeout=10)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with publisher({"f": DATA, "empty": b""}) as s: yield s


def test_whole(site, tmp_path):
    seen = []
    p = download(site.where + "/f", tmp_path / "deep" / "f.part", len(DATA), progress=lambda *a: seen.append(a), **FAST)
    assert p.read_bytes() == DATA and site.asked == [("f", None)]
    assert [d for _, d, _ in seen] == sorted(d for _, d, _ in seen) and seen[-1] == ("f", len(DATA), len(DATA))
    assert download(site.where + "/empty", tmp_path / "e").read_bytes() == b""


@pytest.mark.parametrize("size", [len(DATA), None])
@pytest.mark.parametrize("mood", ["truncate", "stall"])
def test_resumes_where_it_broke_off(site, tmp_path, mood, size):
    site.moods["f"] = [mood, mood]
    timeout = dict(truncate=10, stall=.5)[mood]
    assert download(site.where + "/f", tmp_path / "f", size, wait=.01, timeout=timeout).read_bytes() == DATA
    at = [int(r[6:-1]) for _, r in site.asked[1:] if r]
    assert len(at) >= 2 and 0 < at[0] < at[-1] < len(DATA)


def test_resumes_in_another_run(site, tmp_path):
    site.moods["f"] = ["truncate", "500", "500", "503"]
    with pytest.raises(OSError, match="503.*256 kB are kept, and the same command goes on"): download(site.where + "/f", tmp_path / "f", tries=3, **FAST)
    assert (tmp_path / "f").read_bytes() == DATA[:256000]
    assert download(site.where + "/f", tmp_path / "f", **FAST).read_bytes() == DATA and site.asked[-1] == ("f", "bytes=256000-")


def test_a_whole_part_is_not_fetched_again(site, tmp_path):
    (tmp_path / "f").write_bytes(DATA)
    download(site.where + "/f", tmp_path / "f", len(DATA), **FAST)
    assert site.asked == []
    download(site.where + "/f", tmp_path / "f", **FAST)  # size unknown: the server says there is no more
    assert site.asked == [("f", f"bytes={len(DATA)}-")] and (tmp_path / "f").read_bytes() == DATA


@pytest.mark.parametrize("size", [len(DATA), None])
def test_too_long_a_part_begins_again(site, tmp_path, size):
    (tmp_path / "f").write_bytes(DATA + b"more")
    assert download(site.where + "/f", tmp_path / "f", size, **FAST).read_bytes() == DATA


@pytest.mark.parametrize("mood", ["no range", "other part", "no length", "408", "429", "500", "redirect"])
def test_other_moods(site, tmp_path, mood):
    (tmp_path / "f").write_bytes(DATA[:1000])
    site.moods["f"] = [mood]
    assert download(site.where + "/f", tmp_path / "f", len(DATA), **FAST).read_bytes() == DATA


def test_no_length_and_cut_off_is_found_by_the_size(site, tmp_path):
    site.files["short"] = DATA[:100]
    site.moods["short"] = ["no length"] * 9
    with pytest.raises(OSError, match="100 of 512000|416"): download(site.where + "/short", tmp_path / "f", len(DATA), tries=2, **FAST)


@pytest.mark.parametrize("code", ["403", "404", "410"])
def test_refusal_is_final(site, tmp_path, code):
    site.moods["f"] = [code]
    with pytest.raises(OSError, match=f"/f could not be fetched .{code}"): download(site.where + "/f", tmp_path / "f", **FAST)
    assert len(site.asked) == 1


def test_gives_up_on_silence(site, tmp_path):
    site.files["dumb"] = b"x"
    site.moods["dumb"] = ["stall"] * 9
    with pytest.raises(OSError, match="could not be fetched .timed out"): download(site.where + "/dumb", tmp_path / "f", 1, tries=2, wait=.01, timeout=.2)
    with pytest.raises(OSError, match="refused"): download("http://127.0.0.1:1/f", tmp_path / "g", tries=2, **FAST)
    assert not (tmp_path / "g").exists()


def test_wrong_size(site, tmp_path):
    with pytest.raises(ValueError, match="offers 512000 bytes where 9 are right"): download(site.where + "/f", tmp_path / "f", 9, **FAST)
    site.moods["f"] = ["no length"]
    with pytest.raises(ValueError, match="sends more than the 9 bytes"): download(site.where + "/f", tmp_path / "f", 9, **FAST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd", "data:,x"])
def test_only_http(tmp_path, url):
    with pytest.raises(ValueError, match="not an http"): download(url, tmp_path / "f")


def test_disk_full(site, tmp_path, monkeypatch):
    def full(*a): raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="disk is full"): download(site.where + "/f", tmp_path / "f", progress=full, **FAST)
    assert len(site.asked) == 1


def test_interrupt_keeps_what_arrived(site, tmp_path):
    def stop(name, done, total):
        if done > 200000: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): download(site.where + "/f", tmp_path / "f", progress=stop, **FAST)
    assert 0 < (tmp_path / "f").stat().st_size < len(DATA)
    assert download(site.where + "/f", tmp_path / "f", **FAST).read_bytes() == DATA and len(site.asked) == 2


# ---- archives

def tar(path, *members, mode="w"):
    with tarfile.open(path, mode) as t:
        for name, data, kind in members:
            m = tarfile.TarInfo(name)
            m.type = kind
            if kind == tarfile.REGTYPE: m.size = len(data)
            else: m.linkname = data
            t.addfile(m, io.BytesIO(data) if kind == tarfile.REGTYPE else None)
    return path


def file(name, data=b"x"): return name, data, tarfile.REGTYPE


def zipped(path, *members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members: z.writestr(name, data)
    return path


def untouched(tmp_path, path):
    return sorted(p.name for p in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("end, mode", [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")])
def test_tar(tmp_path, end, mode):
    path = tar(tmp_path / f"a.{end}", file("a/b.txt", b"hello"), file("./c", b""), ("d", "", tarfile.DIRTYPE), mode=mode)
    out = unpack(path, tmp_path / "out", 5)
    assert (out / "a" / "b.txt").read_bytes() == b"hello" and (out / "c").exists() and (out / "d").is_dir()


def test_zip_and_gz(tmp_path):
    out = unpack(zipped(tmp_path / "a.zip", ("a/b.txt", b"hello"), ("d/", b"")), tmp_path / "z", 5)
    assert (out / "a" / "b.txt").read_bytes() == b"hello" and (out / "d").is_dir()
    (tmp_path / "idx.gz").write_bytes(gzip.compress(b"hello"))
    assert (unpack(tmp_path / "idx.gz", tmp_path / "g", 5) / "idx").read_bytes() == b"hello"


NAMES = ["../x", "a/../../x", "/etc/x", "..", "a/..", "..\\x", "C:\\x", "c:x", "a\\b"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_name_leaves_its_folder(tmp_path, name, kind):
    path = tmp_path / f"bad.{kind}"
    if kind == "tar": tar(path, file("good"), file(name))
    else: zipped(path, ("good", b"x"), (name, b"x"))
    with pytest.raises(ValueError, match="leaves its folder; nothing was unpacked"): unpack(path, tmp_path / "out", 10**6)
    assert untouched(tmp_path, path) and not (tmp_path.parent / "x").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_no_links_or_devices(tmp_path, kind):
    path = tar(tmp_path / "bad.tar", file("good"), ("link", "good", kind), file("link/x"))
    with pytest.raises(ValueError, match="'link', which is a link or a device"): unpack(path, tmp_path / "out", 10**6)
    assert untouched(tmp_path, path)


def test_no_links_in_zip(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    path = zipped(tmp_path / "bad.zip", (link, "/etc"))
    with pytest.raises(ValueError, match="is a link"): unpack(path, tmp_path / "out", 10**6)
    assert untouched(tmp_path, path)


def test_bombs(tmp_path):
    zeros = bytes(10**6)
    paths = [tar(tmp_path / "b.tar.gz", file("a", zeros), file("b", zeros), mode="w:gz"), zipped(tmp_path / "b.zip", ("a", zeros), ("b", zeros)), tmp_path / "b.gz"]
    paths[2].write_bytes(gzip.compress(zeros * 2))
    for p in paths:
        assert p.stat().st_size < 20000
        with pytest.raises(ValueError, match="unpacks to more than the 1.5 MB it may take"): unpack(p, tmp_path / "out", 1_500_000)
        assert not (tmp_path / "out").exists()
        unpack(p, tmp_path / p.name.replace(".", ""), 2 * 10**6)


def test_a_tar_that_states_a_terabyte(tmp_path):
    m = tarfile.TarInfo("huge")
    m.size = 10**12
    (tmp_path / "b.tar").write_bytes(m.tobuf() + bytes(1024))
    with pytest.raises(ValueError, match="more than"): unpack(tmp_path / "b.tar", tmp_path / "out", 10**9)


def test_a_zip_that_lies_about_its_size(tmp_path):
    path = zipped(tmp_path / "b.zip", ("a", bytes(10**6)))
    raw, size = path.read_bytes(), (10**6).to_bytes(4, "little")
    path.write_bytes(raw.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="damaged"): unpack(path, tmp_path / "out", 1000)
    assert untouched(tmp_path, path)


@pytest.mark.parametrize("end", ["tar", "tar.gz", "tar.bz2", "tar.xz", "zip", "gz"])
def test_cut_off_or_other_files(tmp_path, end):
    data = os.urandom(5000)
    good = {"zip": lambda p: zipped(p, ("a", data)), "gz": lambda p: p.write_bytes(gzip.compress(data))}.get(
        end, lambda p: tar(p, file("a", data), mode="w:" + end[4:]))
    path = tmp_path / f"f.{end}"
    good(path)
    raw = path.read_bytes()
    for bad in raw[:3000], raw[:20], b"<html>not found</html>", b"":
        path.write_bytes(bad)
        if end == "gz" and not bad: continue  # an empty gzip file is an empty file
        if end == "tar" and len(bad) == 0: continue
        with pytest.raises(ValueError, match="damaged or no such archive"): unpack(path, tmp_path / "out", 10**6)
        assert untouched(tmp_path, path)


def test_flipped_byte_in_gz(tmp_path):
    raw = bytearray(gzip.compress(os.urandom(5000)))
    raw[-6] ^= 1
    (tmp_path / "f.gz").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"): unpack(tmp_path / "f.gz", tmp_path / "out", 10**6)


def test_bad_places(tmp_path):
    (tmp_path / "f.rar").write_bytes(b"")
    with pytest.raises(ValueError, match="no archive known here"): unpack(tmp_path / "f.rar", tmp_path / "out", 9)
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match="new folder only"): unpack(tar(tmp_path / "a.tar", file("a")), tmp_path / "out", 9)
    with pytest.raises(FileNotFoundError): unpack(tmp_path / "none.tar", tmp_path / "new", 9)
    assert not (tmp_path / "new").exists()


@given(st.integers(0, 10**15))
def test_nice(n):
    number, unit = nice(n).split()
    assert abs(float(number) * dict(bytes=1, kB=1e3, MB=1e6, GB=1e9)[unit] - n) <= n * .006
