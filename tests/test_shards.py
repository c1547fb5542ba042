"Shards from lists of addresses: every row accounted for, every kind of rot named, resumed to the same bytes; CC3M in its real layout."
import io
import json
import random
import shutil
import tarfile
import threading
from dataclasses import replace
from email.message import Message

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from server import publisher

from vlnotes import fetch, shards
from vlnotes.data import Skipped, stream
from vlnotes.remote import AGENT
from vlnotes.shards import CC3M, check, make, manifest, opted_out, read_list, summary, told

FAST = dict(timeout=5, wait=.01, threads=4)
QUIET = dict(say=lambda text: None, wait=.01, timeout=10)


def photo(i=0, size=(400, 300), form="JPEG", **k):
    a = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(a).resize(size).save(b := io.BytesIO(), form, **k)
    return b.getvalue()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with publisher({f"{i}.jpg": photo(i) for i in range(12)}) as s: yield s


@pytest.fixture
def tsv(site, tmp_path):
    def write(*names, name="list.tsv"):
        names = names or [f"{i}.jpg" for i in range(12)]
        (tmp_path/name).write_text("".join(f"caption of {n}\t{n if '://' in n or not n else site.where + '/' + n}\n" for n in names))
        return tmp_path/name
    return write


def members(path):
    with tarfile.open(path) as t: return {m.name: t.extractfile(m).read() for m in t}


def rows(out): return {r["key"]: r for r in manifest(out).to_pylist()}


# what is written

def test_layout(site, tsv, tmp_path):
    made = make(tsv(), tmp_path/"out", per_shard=5, **FAST)
    assert made == dict(rows=12, images=12, shards=[3, 3], statuses={"ok": 12}) == summary(tmp_path/"out")
    assert sorted(p.name for p in (tmp_path/"out").iterdir()) == sorted(["list.json", *(f"{i:05d}.{e}" for i in range(3) for e in ("json", "parquet", "tar"))])
    got = members(tmp_path/"out/00001.tar")
    assert list(got) == [f"00001{k}.{e}" for k in range(5) for e in ("jpg", "txt", "json")]
    about = json.loads(got["000010.json"])
    assert got["000010.txt"] == b"caption of 5.jpg" and Image.open(io.BytesIO(got["000010.jpg"])).size == (341, 256)
    assert about | {"sha256": 0} == dict(key="000010", url=site.where + "/5.jpg", caption="caption of 5.jpg", status="ok", width=341, height=256,
                                          original_width=400, original_height=300, sha256=0)
    table = manifest(tmp_path/"out")
    assert table.num_rows == 12 and table["key"].to_pylist() == [f"{i // 5:05d}{i % 5}" for i in range(12)] and set(table["status"].to_pylist()) == {"ok"}
    assert table["sha256"][5].as_py() == about["sha256"] == shards.sha256(site.files["5.jpg"]).hexdigest()
    s = Skipped()
    found = list(stream(tmp_path/"out"/"{00000..00002}.tar", skipped=s))
    assert [x.captions for x in found] == [[f"caption of {i}.jpg"] for i in range(12)] and len(s) == 0 and check(tmp_path/"out") == []
    assert all(h["User-Agent"] == AGENT for _, h in site.heard) and len(site.asked) == 12


def test_keys_of_the_published_size():
    assert f"{331:05d}{12:0{len(str(10_000 - 1))}d}" == "003310012" and -(-shards.ROWS["train"] // 10_000) == 332 and -(-shards.ROWS["valid"] // 10_000) == 2


@pytest.mark.parametrize("size, side, becomes", [((400, 300), 256, (341, 256)), ((300, 400), 224, (224, 299)), ((100, 50), 256, (100, 50)), ((400, 300), None, (400, 300)), ((2000, 40), 32, (1600, 32))])
def test_sizes_keep_their_aspect(site, tsv, tmp_path, size, side, becomes):
    site.files["a.jpg"] = photo(size=size)
    make(tsv("a.jpg"), tmp_path/"out", side=side, **FAST)
    [x] = stream(tmp_path/"out/00000.tar")
    assert x.image.size == becomes and (x.meta["original_width"], x.meta["original_height"]) == size


def test_every_format_becomes_rgb_and_upright(site, tsv, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera that tells"
    Image.new("RGBA", (60, 40)).save(a := io.BytesIO(), "PNG"), Image.new("CMYK", (60, 40)).save(b := io.BytesIO(), "JPEG")
    site.files = {"a.png": a.getvalue(), "b.jpg": b.getvalue(), "c.webp": photo(size=(60, 40), form="WEBP"), "d.jpg": photo(size=(60, 40), exif=exif), "e.gif": photo(size=(60, 40), form="GIF")}
    make(tsv(*site.files), tmp_path/"out", **FAST)
    got = members(tmp_path/"out/00000.tar")
    found = [Image.open(io.BytesIO(d)) for n, d in got.items() if n.endswith("jpg")]
    assert [f.size for f in found] == [(60, 40)] * 3 + [(40, 60), (60, 40)] and {(f.mode, f.format) for f in found} == {("RGB", "JPEG")}
    assert not any(b"camera" in d for d in got.values())


# rot

def test_every_kind_of_rot_is_named(site, tsv, tmp_path):
    big = photo(9, (900, 900), quality=100)
    site.files |= {"page.jpg": b"<html>gone</html>", "half.jpg": photo()[:900], "dot.gif": photo(size=(1, 1), form="GIF"), "big.jpg": big, "wide.png": photo(size=(3000, 2000), form="PNG"),
                   "empty.jpg": b"", "shy.jpg": photo(), "other.jpg": photo(), "text.jpg": photo(), "slow.jpg": photo()}
    site.extra = {"shy.jpg": {"X-Robots-Tag": "noai, noimageai"}, "other.jpg": {"X-Robots-Tag": "otherbot: noindex"}, "text.jpg": {"Content-Type": "text/html"}, "page.jpg": {"Content-Type": "image/jpeg"}}
    site.moods = {"1.jpg": ["404"], "2.jpg": ["410"], "3.jpg": ["503", "503"], "4.jpg": ["503"], "5.jpg": ["truncate", "truncate"], "6.jpg": ["redirect"], "7.jpg": ["stall", "stall"],
                  "8.jpg": [f"redirect {site.where}/8.jpg"] * 30, "9.jpg": ["no length"], "10.jpg": ["redirect ftp://127.0.0.1/x"], "slow.jpg": ["drip"]}
    want = {"0.jpg": "ok", "1.jpg": "http 404", "2.jpg": "http 410", "3.jpg": "http 503", "4.jpg": "ok", "5.jpg": "cut off", "6.jpg": "ok", "7.jpg": "timed out", "8.jpg": "http 302",
            "9.jpg": "ok", "10.jpg": "no address", "page.jpg": "not an image", "half.jpg": "damaged", "dot.gif": "too small", "big.jpg": "too large", "wide.png": "too large",
            "empty.jpg": "not an image", "shy.jpg": "opted out", "other.jpg": "ok", "text.jpg": "ok", "slow.jpg": "timed out", "http://127.0.0.1:1/x": "no connection",
            "ftp://127.0.0.1/x": "no address", "http://": "no address", "http://[": "no address", "": "no address", "http://no-such-host.invalid/x": "no such host"}
    (tmp_path/"list.tsv").write_text(tsv(*want).read_text() + f"\t{site.where}/11.jpg\nonly a caption\n")
    made = make(tmp_path/"list.tsv", tmp_path/"out", max_bytes=len(big) - 1, max_pixels=2e6, **FAST | dict(timeout=.5, deadline=2))
    got = rows(tmp_path/"out")
    said = {name: got[f"00000{i:04d}"]["status"] for i, name in enumerate(want)}
    # the guard against the network says `no connection` for hosts that need a look-up as well
    assert said | {"http://no-such-host.invalid/x": "no such host"} == want and said["http://no-such-host.invalid/x"] in ("no such host", "no connection")
    assert [got[f"00000{i:04d}"]["status"] for i in (27, 28)] == ["no caption", "no address"] and made["rows"] == 29 == sum(made["statuses"].values())
    assert made["images"] == 6 == len(list(stream(tmp_path/"out/00000.tar")))
    assert got["000000003"]["detail"].startswith("HTTP Error 503") and got["000000013"]["detail"] == "1 x 1" and "4.00e" not in str(got)
    asked = [n for n, _ in site.asked]
    assert asked.count("1.jpg") == 1 and asked.count("3.jpg") == asked.count("5.jpg") == 2 # a refusal is final, trouble is tried again
    assert told(made, 2).startswith("6 of 29 images; ") and told(made, 2).endswith("more reasons")


def test_one_may_disregard_the_header(site, tsv, tmp_path):
    site.extra["0.jpg"] = {"X-Robots-Tag": "noai"}
    assert make(tsv("0.jpg"), tmp_path/"a", **FAST)["statuses"] == {"opted out": 1} and make(tsv("0.jpg"), tmp_path/"b", respect=False, **FAST)["images"] == 1


@pytest.mark.parametrize("value, out", [("noai", True), ("NOINDEX, nofollow", True), ("none", True), ("all", False), ("nofollow", False), ("googlebot: noai", False), ("vlnotes: noai", True),
                                        ("VLNOTES : follow, noimageai", True), ("max-snippet: 3, noai", True), ("noai, max-snippet: 3", True), ("unavailable_after: 25 Jun 2030 15:00:00 PST", False), ("", False)])
def test_opt_out(value, out):
    m = Message()
    m["X-Robots-Tag"], m["X-Robots-Tag"] = "all", value
    assert opted_out(m.get_all("X-Robots-Tag")) is out


def test_passwords_in_a_list_are_used_and_not_stored(site, tsv, tmp_path):
    there = site.where.replace("//", "//me:s3cret@")
    (tmp_path/"list.tsv").write_text(f"a\t{there}/0.jpg?id=7\nb\t{there}/x.jpg?id=8\n")
    make(tmp_path/"list.tsv", tmp_path/"out", **FAST)
    assert "Authorization" in site.heard[0][1] and {r["url"] for r in manifest(tmp_path/"out").to_pylist()} == {site.where + "/0.jpg?id=7", site.where + "/x.jpg?id=8"}
    assert not any(b"s3cret" in p.read_bytes() for p in (tmp_path/"out").iterdir())


# going on

def test_finished_shards_are_kept_and_others_made_again(site, tsv, tmp_path):
    make(tsv(), tmp_path/"out", per_shard=4, **FAST)
    before = {p.name: p.read_bytes() for p in (tmp_path/"out").iterdir()}
    site.asked.clear()
    make(tsv(), tmp_path/"out", per_shard=4, **FAST | dict(threads=2))
    assert site.asked == []
    (tmp_path/"out/00001.json").unlink()
    tar = tmp_path/"out/00002.tar"
    tar.write_bytes(tar.read_bytes()[:-10]) # cut off
    make(tsv(), tmp_path/"out", per_shard=4, **FAST)
    assert sorted(n for n, _ in site.asked) == sorted(f"{i}.jpg" for i in range(4, 12)) and {p.name: p.read_bytes() for p in (tmp_path/"out").iterdir()} == before


def test_stopped_in_the_middle_and_gone_on_with(site, tsv, tmp_path, monkeypatch):
    whole, real, seen = tmp_path/"whole", shards._image, []
    make(tsv(), whole, per_shard=4, **FAST)
    def stops(key, *a):
        seen.append(key)
        if len(seen) == 10: raise KeyboardInterrupt # rows 0 to 7 are in: two are asked for ahead
        return real(key, *a)
    monkeypatch.setattr(shards, "_image", stops)
    with pytest.raises(KeyboardInterrupt): make(tsv(), tmp_path/"out", per_shard=4, **FAST | dict(threads=1))
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    left = sorted(p.name for p in (tmp_path/"out").glob("*.tar"))
    assert left == ["00000.tar", "00001.tar"] and "lacks 1 of 3 shards: 00002" in check(tmp_path/"out")[0] and summary(tmp_path/"out")["shards"] == [2, 3]
    site.asked.clear()
    make(tsv(), tmp_path/"out", per_shard=4, **FAST)
    assert sorted(n for n, _ in site.asked) == ["10.jpg", "11.jpg", "8.jpg", "9.jpg"]
    assert all((tmp_path/"out"/p.name).read_bytes() == p.read_bytes() for p in whole.iterdir())


def test_the_rest_of_a_killed_process_is_cleared_away(site, tsv, tmp_path):
    import os
    (tmp_path/"out").mkdir()
    for n, age in (("old", 7200), ("new", 10)):
        p = tmp_path/f"out/.{n}45678-00000.tar"
        p.touch()
        os.utime(p, (p.stat().st_mtime - age,) * 2)
    make(tsv(), tmp_path/"out", **FAST)
    assert [p.name for p in (tmp_path/"out").glob(".*")] == [".new45678-00000.tar"]


def test_the_order_of_arrival_does_not_matter(site, tsv, tmp_path, monkeypatch):
    make(tsv(), tmp_path/"a", per_shard=7, **FAST)
    real, rng = shards._image, random.Random(0)
    def late(*a): threading.Event().wait(rng.random() / 20); return real(*a)
    monkeypatch.setattr(shards, "_image", late)
    make(tsv(), tmp_path/"b", per_shard=7, **FAST | dict(threads=12))
    assert all((tmp_path/"b"/p.name).read_bytes() == p.read_bytes() for p in (tmp_path/"a").iterdir())


def test_machines_share_the_work(site, tsv, tmp_path):
    make(tsv(), tmp_path/"one", per_shard=2, **FAST)
    site.asked.clear()
    for r in range(4): make(tsv(), tmp_path/"many", per_shard=2, rank=r, world=4, **FAST)
    assert len(site.asked) == 12 and all((tmp_path/"many"/p.name).read_bytes() == p.read_bytes() for p in (tmp_path/"one").iterdir())


def test_other_settings_are_not_mixed_in(site, tsv, tmp_path):
    make(tsv(), tmp_path/"out", limit=5, **FAST)
    for k, said in (dict(side=64), "side=256"), (dict(per_shard=3), "per_shard=10000"), (dict(limit=None), "rows=5"), (dict(min_side=64), "min_side=32"):
        with pytest.raises(FileExistsError, match=f"was begun with {said}; go on with that"): make(tsv(), tmp_path/"out", **{"limit": 5} | FAST | k)
    with pytest.raises(FileExistsError, match="sha256="): make(tsv(*[f"{i}.jpg" for i in range(6, 12)]), tmp_path/"out", limit=5, **FAST)
    assert make(tsv(), tmp_path/"out", limit=5, **FAST | dict(threads=1, tries=9))["rows"] == 5


# trouble at home

def test_offline_is_not_rot(site, tsv, tmp_path):
    dead = ["http://127.0.0.1:1/x"] * 300
    for per, n in (10, 10), (300, 200):
        with pytest.raises(OSError, match=f"not one of {n} addresses in a row could be reached .no connection: .*refused.*; is this machine online.*goes on from there"):
            make(tsv(*[f"{i}.jpg" for i in range(10)], *dead), tmp_path/f"out{per}", per_shard=per, **FAST)
    assert summary(tmp_path/"out10") == dict(rows=10, images=10, shards=[1, 31], statuses={"ok": 10}) and summary(tmp_path/"out300")["shards"] == [0, 2]
    with pytest.raises(OSError, match="not one of 3 addresses"): make(tsv(*dead[:3]), tmp_path/"few", **FAST)
    assert summary(tmp_path/"few")["shards"] == [0, 1]
    few = ["http://127.0.0.1:1/x"] * 3 + ["gone.jpg"]
    assert make(tsv(*few), tmp_path/"some", **FAST)["statuses"] == {"no connection": 3, "http 404": 1} # a server has answered
    assert list(stream([tmp_path/"some/00000.tar", tmp_path/"out10/00000.tar"]))[0].id == "000000" # a shard without images is a whole tar


def test_disk_full(site, tsv, tmp_path, monkeypatch):
    def full(*a): raise OSError(28, "No space left on device")
    monkeypatch.setattr(shards._Shard, "add", full)
    with pytest.raises(OSError, match="the disk of .*out is full; finished shards are kept"): make(tsv(), tmp_path/"out", **FAST)


def test_check_finds_what_changed(site, tsv, tmp_path):
    out = tmp_path/"out"
    make(tsv(), out, per_shard=4, **FAST)
    raw = bytearray((out/"00000.tar").read_bytes())
    raw[700] ^= 1
    (out/"00000.tar").write_bytes(raw)
    (out/"00001.tar").unlink()
    (out/"00002.parquet").write_bytes(b"x")
    a, b, c = check(out)
    assert "00000.tar is not what 00000.json says it was; remove 00000.json" in a and b.startswith("there is no ") and "00002.parquet is not" in c
    assert "holds no shards" in check(tmp_path)[0] and "holds no shards" in check(tmp_path/"none")[0]


def test_bad_arguments(tsv, tmp_path):
    for k, said in (dict(rank=2, world=2), "rank 2 is outside"), (dict(side=0), "side must be a positive number, not 0"), (dict(quality=None), "quality must"), (dict(limit=0), "limit must be"), (dict(threads=0), "threads must"):
        with pytest.raises(ValueError, match=said): make(tsv(), tmp_path/"out", **k)
    with pytest.raises(TypeError, match="sides"): make(tsv(), tmp_path/"out", sides=3)
    assert not (tmp_path/"out").exists()


# lists

CAPS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20).map(str.strip)


@given(st.lists(st.tuples(CAPS, CAPS), max_size=8))
def test_lists_are_read_as_written(pairs):
    import tempfile
    from pathlib import Path
    pairs = [p for p in pairs if "\ufeff" not in "".join(p)]
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        (tmp/"a.tsv").write_text("".join(f"{c}\t{u}\n" for c, u in pairs), encoding="utf-8")
        pq.write_table(pa.table({"id": range(len(pairs)), "URL": [u for _, u in pairs], "TEXT": [c for c, _ in pairs]}), tmp/"a.parquet")
        (tmp/"a.csv").write_text("n,URL,TEXT\n" + "".join(f'1,"{u.replace(chr(34), chr(34) * 2)}","{c.replace(chr(34), chr(34) * 2)}"\n' for c, u in pairs), encoding="utf-8")
        assert list(read_list(tmp/"a.tsv")) == list(read_list(tmp/"a.parquet", "TEXT", "URL")) == list(read_list(tmp/"a.parquet", 2, 1)) == list(read_list(tmp/"a.csv", "TEXT", "URL")) == pairs


def test_bad_lists(site, tmp_path):
    out = tmp_path/"out"
    for name, raw, said in (("a.tsv", b"", "it is empty"), ("b.tsv", b"<html>\nnot found\n", "begins with '<html> | '"), ("c.tsv", b"a\tb\n" * 3000, "no list of addresses"), ("d.tsv", b"\xff\xfe\tx\n", "not text in UTF-8"),
                            ("e.parquet", b"x", "not Parquet"), ("f.txt", b"x", "not '.txt'"), ("g.csv", b'a,"b', "no list of addresses")):
        (tmp_path/name).write_bytes(raw)
        with pytest.raises(ValueError, match=said) as e: make(tmp_path/name, out, **FAST)
        assert "\n" not in str(e.value) and name in str(e.value)
    with pytest.raises(FileNotFoundError, match="there is no list"): make(tmp_path/"none.tsv", out)
    (tmp_path/"h.csv").write_text("url,text\nhttp://h/x,y\n")
    with pytest.raises(ValueError, match="has no columns 'caption' and 'url'; it has 'url', 'text'"): make(tmp_path/"h.csv", out, caption="caption", url="url")
    with pytest.raises(ValueError, match="both columns by name or both by position"): make(tmp_path/"h.csv", out, caption="text", url=0)
    assert not out.exists()


def test_a_caption_stays_one_line(site, tmp_path):
    (tmp_path/"a.csv").write_text(f'"a dog\nand a  cat",{site.where}/0.jpg\n')
    make(tmp_path/"a.csv", tmp_path/"out", **FAST)
    assert next(stream(tmp_path/"out/00000.tar")).captions == ["a dog and a cat"]


# CC3M

@pytest.fixture
def cc3m(site, monkeypatch):
    "The two lists at their addresses below the publisher's, of images of the same site."
    monkeypatch.setattr(fetch, "DATASETS", dict(fetch.DATASETS) | {"cc3m": CC3M})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda p: type("U", (), dict(free=10**12)))
    line = lambda i: f"a caption , as they are , of {i}\t{site.where}/{i}.jpg\n"
    site.files |= {"gcc/Train/GCC-training.tsv": "".join(map(line, range(10))).encode(), "gcc/Validation/GCC-1.1.0-Validation.tsv": "".join(map(line, (10, 11, 12))).encode()}
    fetch.DATASETS["cc3m"] = replace(CC3M, base=site.where + "/gcc")
    return site


def test_cc3m(cc3m, tmp_path):
    said = []
    folder = fetch.get("cc3m", tmp_path, per_shard=4, threads=3, **QUIET | dict(say=said.append))
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.tar")) == ["train/00000.tar", "train/00001.tar", "train/00002.tar", "valid/00000.tar"]
    assert said[1] == "valid: 2 of 3 images; http 404: 1\ntrain: 10 of 10 images" and all(w in said[0] for w in ("freely used for any purpose", "belong to their owners", "ACL 2018"))
    found = list(stream(folder/"train/{00000..00002}.tar"))
    assert [x.captions for x in found] == [[f"a caption , as they are , of {i}"] for i in range(10)] and min(found[0].image.size) == 256
    assert fetch.check("cc3m", tmp_path).endswith("is whole") and [p.name for p in tmp_path.iterdir()] == ["cc3m"]
    cc3m.asked.clear()
    assert fetch.get("cc3m", tmp_path, threads=9, **QUIET) == folder and not cc3m.asked # how many threads made it does not matter
    with pytest.raises(FileExistsError, match="made with per_shard=4"): fetch.get("cc3m", tmp_path, per_shard=5, **QUIET)
    (folder/"train/00001.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match="00001.tar is not what"): fetch.check("cc3m", tmp_path)
    shutil.rmtree(folder/"valid")
    with pytest.raises(ValueError, match=r"has no valid/\*.tar"): fetch.check("cc3m", tmp_path)


def test_cc3m_goes_on_after_a_break(cc3m, tmp_path, monkeypatch):
    real, seen = shards._image, []
    def breaks(key, *a):
        seen.append(key)
        if len(seen) == 10: raise KeyboardInterrupt
        return real(key, *a)
    monkeypatch.setattr(shards, "_image", breaks)
    ask = dict(per_shard=4, threads=1, **QUIET)
    with pytest.raises(KeyboardInterrupt): fetch.get("cc3m", tmp_path, **ask)
    monkeypatch.setattr(shards, "_image", real)
    assert not (tmp_path/"cc3m").exists() and (tmp_path/".cc3m-downloads/made/train/00000.json").exists()
    with pytest.raises(FileExistsError, match="was begun with side=256"): fetch.get("cc3m", tmp_path, side=64, **ask)
    cc3m.asked.clear()
    fetch.get("cc3m", tmp_path, **ask)
    assert sorted(n for n, _ in cc3m.asked) == [f"{i}.jpg" for i in range(4, 10)] # neither the lists nor what was there
    assert [p.name for p in tmp_path.iterdir()] == ["cc3m"] and fetch.check("cc3m", tmp_path)


def test_a_beginning_of_cc3m(cc3m, tmp_path):
    folder = fetch.get("cc3m", tmp_path, limit=2, side=64, **QUIET)
    assert [summary(folder/s)["rows"] for s in ("train", "valid")] == [2, 2] and next(stream(folder/"train/00000.tar")).image.size == (85, 64)
    assert CC3M.disk(CC3M.options | dict(limit=2)) < 1e9 < 100e9 < CC3M.disk(CC3M.options)


def test_cc3m_without_an_image_or_with_another_page(cc3m, tmp_path):
    lists = {k: v for k, v in cc3m.files.items() if k.startswith("gcc")}
    cc3m.files = dict(lists)
    with pytest.raises(ValueError, match="cc3m is not what it should be: .*train holds not one image: 0 of 10 images; http 404: 10; it is kept in"): fetch.get("cc3m", tmp_path/"a", **QUIET)
    cc3m.files = lists | {"gcc/Validation/GCC-1.1.0-Validation.tsv": b"<html>moved</html>"}
    with pytest.raises(ValueError, match="Validation.tsv is no list of addresses in column 1: it begins with '<html>moved"): fetch.get("cc3m", tmp_path/"b", **QUIET)


def test_the_registered_cc3m_is_the_publishers():
    assert [fetch._address(CC3M, f, None) for f in CC3M.files] == [
        "https://storage.googleapis.com/gcc-data/Train/GCC-training.tsv", "https://storage.googleapis.com/gcc-data/Validation/GCC-1.1.0-Validation.tsv"]
