"Shards behind addresses and commands: servers that stall, hang up, lie and refuse; commands that fail; nothing secret is said."
import http.client
import os
import subprocess
import sys
import time
import tracemalloc

import pytest
from data_toys import coded, ids, noise, one, tar
from hypothesis import given
from hypothesis import strategies as st
from server import publisher
from torch.utils.data import DataLoader

from vlnotes.data import Skipped, StreamDataset, stream
from vlnotes.remote import Lost, ask, far, opened, shown

DATA = bytes(range(256)) * 2000
FAST = dict(wait=.01, timeout=10)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with publisher({"f": DATA}) as s: yield s


@pytest.fixture
def shards(site, tmp_path):
    "Three shards of four samples, of 13 kB each."
    for i in range(3):
        files = [(f"d/{k:04d}.{e}", d) for k in range(4 * i, 4 * i + 4) for e, d in (("png", coded(noise(64, k))), ("txt", b"number %d" % k))]
        site.files[f"{i:05d}.tar"] = tar(tmp_path/f"{i:05d}.tar", 0, extra=files).read_bytes()
    site.all = [f"d/{i:04d}" for i in range(12)]
    return site.where + "/{00000..00002}.tar"


# bytes

@pytest.mark.parametrize("mood", ["", "truncate", "stall", "no range", "no length", "other part", "408", "429", "500", "503", "redirect"])
def test_the_bytes_arrive_whatever_the_server_does(site, mood):
    site.moods["f"] = ["truncate", mood, mood] if mood else []
    with opened(site.where + "/f", wait=.01, timeout=.5 if mood == "stall" else 10) as f: assert f.read() == DATA
    assert len(site.asked) == 1 if not mood else site.asked[1] == ("f", "bytes=256000-")


def test_progress_resets_the_count_of_tries(site):
    site.moods["f"] = ["truncate"] * 6
    with opened(site.where + "/f", tries=2, **FAST) as f: assert f.read() == DATA
    at = [int(r[6:-1]) for _, r in site.asked[1:]]
    assert at == sorted(set(at)) and len(at) == 6


@pytest.mark.parametrize("mood, said", [("503", "503 Service Unavailable; 3 tries from byte 256000"), ("stall", "timed out; 3 tries from byte")])
def test_silence_and_trouble_are_given_up(site, mood, said):
    site.moods["f"] = ["truncate"] + [mood] * 99
    if mood == "stall": site.files["f"] = site.files["f"][:3] # half of one byte is none
    with pytest.raises(Lost, match=said), opened(site.where + "/f", tries=3, wait=.01, timeout=.3) as f: f.read()


@pytest.mark.parametrize("code", ["401", "403", "404", "410"])
def test_a_refusal_is_final(site, code):
    site.moods["f"] = ["truncate", code]
    with pytest.raises(Lost, match=f"^{code} "), opened(site.where + "/f", **FAST) as f: f.read()
    assert len(site.asked) == 2


def test_waits_longer_each_time(site, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    site.moods["f"] = ["500"] * 4
    with opened(site.where + "/f", wait=2) as f: assert f.read() == DATA
    assert [s for s in slept if s >= 1] == [2, 4, 8, 16]


@pytest.mark.parametrize("what", ["tag", "size"])
def test_a_file_that_changes_is_not_glued_together(site, what):
    site.moods["f"], site.extra["f"] = ["truncate"], {"ETag": '"1"'}
    with pytest.raises(Lost, match="changed while it was read"), opened(site.where + "/f", **FAST) as f:
        f.read(1)
        if what == "tag": site.extra["f"] = {"ETag": '"2"'}
        else: site.files["f"] += b"more"
        f.read()


@pytest.mark.parametrize("where, said", [("ftp://127.0.0.1/x", "ftp"), ("file:///etc/passwd", "file"), ("http://me:pw@127.0.0.1:1x/f", "leads to an address that is none")])
def test_redirects_elsewhere_are_not_followed(site, where, said):
    site.moods["f"] = ["redirect " + where]
    with pytest.raises(Lost, match=said) as e, opened(site.where + "/f", **FAST) as f: f.read()
    assert "pw" not in str(e.value) and "\n" not in str(e.value) and len(site.asked) == 1


def test_a_loop_of_redirects_ends(site):
    site.moods["f"] = [f"redirect {site.where}/f"] * 50
    with pytest.raises(Lost, match="^302") as e, opened(site.where + "/f", **FAST) as f: f.read()
    assert "\n" not in str(e.value)


def test_nobody_there():
    with pytest.raises(Lost, match="refused; 2 tries from byte 0"), opened("http://127.0.0.1:1/f", tries=2, **FAST) as f: f.read()


def test_who_asks_and_with_which_password(site):
    with publisher({"f": b"other"}) as other:
        site.moods["f"] = ["redirect " + other.where.replace("127.0.0.1", "localhost") + "/f"]
        with opened(site.where.replace("//", "//me:p%40ss@") + "/f?sig=1#part", **FAST) as f: assert f.read() == b"other"
        (path, first), (_, then) = site.heard[0], other.heard[0]
    assert path == "/f?sig=1" and first["Authorization"] == "Basic bWU6cEBzcw==" and first["User-Agent"].startswith("vlnotes/")
    assert "Authorization" not in then


def test_addresses_are_encoded(site):
    site.files["a%20b/%C3%A9.jpg"] = b"x"
    with ask(site.where + "/a b/é.jpg")[0] as r: assert r.read() == b"x"
    for bad in ("", "x", "ftp://h/x", "http://", "http:///x", "http://[x", "http://h:99999/x", "https://" + "é" * 70 + "/x", "http://h:0/"):
        with pytest.raises(ValueError, match="not an"): ask(bad)
    with pytest.raises((ValueError, OSError, http.client.InvalidURL)): ask("http://127.0.0.1\r\nX-Evil: 1/x", timeout=1)
    with pytest.raises(ValueError, match="neither http"): opened("a.tar")
    assert [far(s) for s in ("pipe:x", "HTTPS://h", "http://h", "s3://b", "a.tar", "/pipe:x")] == [True] * 3 + [False] * 3


# commands

def runs(mark, seconds=3): # whether a process with that word goes on running; the dead may take a moment to go
    for _ in range(int(seconds * 20)):
        if mark not in subprocess.run(["ps", "axww"], capture_output=True, text=True).stdout: return False
        time.sleep(.05)
    return True


def test_what_a_command_prints(tmp_path):
    (tmp_path/"f").write_bytes(DATA)
    with opened(f"pipe:cat {tmp_path}/f | cat") as f: assert f.read() == DATA
    for code, said in (("exit 3", "exit code 3, without a word"), ("echo one >&2; printf 'two\\r three\\n\\n' >&2; exit 4", "exit code 4: three$"),
                       ("no-such-program", "exit code 127: .*not found"), ("kill -9 $$", "exit code -9"),
                       ("echo 'GET https://me:pw@host/x?sig=1 failed' >&2; exit 1", "GET https://host/x failed$")):
        with pytest.raises(Lost, match=said), opened(f"pipe:cat {tmp_path}/f; {code}") as f: f.read()


@pytest.mark.parametrize("command, said", [("echo x; sleep 60", "gave nothing for 0.3 seconds"), ("exec >&-; sleep 60", "gave all but did not end within 0.3 seconds")])
def test_a_silent_command_is_ended_with_all_it_started(command, said):
    start, mark = time.monotonic(), f"60.0{os.getpid()}"
    with pytest.raises(Lost, match=said), opened("pipe:" + command.replace("60", mark), timeout=.3) as f: f.read()
    assert time.monotonic() - start < 3 and not runs(mark)


def test_a_command_that_is_not_wanted_any_more_is_ended(tmp_path):
    mark = f"61.0{os.getpid()}"
    tar(tmp_path/"a.tar")
    it = stream(f"pipe:cat {tmp_path}/a.tar; sleep {mark}")
    assert next(it).id == "d/0000" and runs(mark, .1)
    it.close()
    assert not runs(mark)


def test_much_is_said_on_the_side(): # no pipe that fills up
    with opened("pipe:yes trouble | head -c 1000000 >&2; echo x") as f: assert f.read() == b"x\n"


# shards

def test_shards_from_addresses_and_commands(shards, site, tmp_path):
    local = list(stream(tmp_path/"{00000..00002}.tar"))
    for source in (shards, f"pipe:cat {tmp_path}/{{00000..00002}}.tar", [tmp_path/"00000.tar", site.where + "/00001.tar", f"pipe:cat {tmp_path}/00002.tar"]):
        s = Skipped()
        found = list(stream(source, skipped=s, **FAST))
        assert ids(found) == site.all and len(s) == 0
        assert all(a.captions == b.captions and a.meta == b.meta and a.image.tobytes() == b.image.tobytes() for a, b in zip(local, found))
        assert ids(stream(source, shuffle=5, seed=1, **FAST)) == ids(stream(tmp_path/"{00000..00002}.tar", shuffle=5, seed=1))


def test_a_bad_day_changes_nothing(shards, site):
    site.moods = {"00000.tar": ["truncate", "stall", "no range"], "00001.tar": ["500", "truncate", "503"], "00002.tar": ["redirect"]}
    s = Skipped()
    assert ids(stream(shards, skipped=s, timeout=.4, wait=.01)) == site.all and len(s) == 0
    assert sum(r is not None for _, r in site.asked) >= 3


@pytest.mark.parametrize("moods, whole, said", [(["truncate"] + ["503"] * 99, {2, 3}, "503 Service Unavailable; 3 tries from byte"), (["404"], {0}, "404 Not Found"),
                                                (["truncate", "404"], {2, 3}, "404 Not Found"), (["no length"], {4}, "")])
def test_a_lost_shard_is_reported_and_the_next_one_read(shards, site, moods, whole, said):
    site.moods["00001.tar"] = moods
    s = Skipped()
    found = ids(stream(shards, skipped=s, tries=3, **FAST))
    n = sum(i in found for i in site.all[4:8])
    assert n in whole and found == [*site.all[:4], *site.all[4:4 + n], *site.all[8:]]
    if said: assert dict(s)[site.where + "/00001.tar"].startswith(f"the shard was given up after {n} whole samples ({said}")
    assert len(s) == (n < 4) or len(s) == 2 and n in (2, 3) # the sample at the cut has a name if one of its files is whole


def test_everything_lost_is_an_error(site):
    with pytest.raises(ValueError, match=r"nothing in http://127.*/x.tar could be used .1 skipped.; the first: http.*given up after 0 whole samples .404") as e:
        list(stream(site.where.replace("//", "//me:pw@") + "/x.tar?sig=abc"))
    assert "pw" not in str(e.value) and "abc" not in str(e.value)


def test_something_else_at_the_address(site):
    site.files |= {"a.tar": b"<html>not a tar</html>" * 99, "b.tar": b""}
    s = Skipped()
    with pytest.raises(ValueError, match="nothing in"): list(stream(site.where + "/{a,b}.tar", skipped=s))
    assert all("cut off or damaged after 0 whole samples" in r for _, r in s) and len(s) == 2


def test_a_failing_command_is_reported_with_its_code(tmp_path):
    tar(tmp_path/"a.tar"); tar(tmp_path/"b.tar", 2, 10)
    s, how = Skipped(), f"pipe:cat {tmp_path}/{{a,b,c}}.tar"
    assert ids(stream(how, skipped=s)) == [*(f"d/{i:04d}" for i in range(4)), "d/0010", "d/0011"]
    [(item, why)] = s
    assert item == f"pipe:cat {tmp_path}/c.tar" and why.startswith("the shard was given up after 0 whole samples (the command ended with exit code 1: cat: ") and "No such file" in why
    s = Skipped()
    assert len(ids(stream(f"pipe:cat {tmp_path}/a.tar; echo late trouble >&2; exit 5", skipped=s))) == 4 # all is there, and yet
    assert next(iter(s))[1] == "the shard was given up after 4 whole samples (the command ended with exit code 5: late trouble)"
    s = Skipped()
    assert len(ids(stream(f"pipe:head -c 6200 {tmp_path}/a.tar; exit 9", skipped=s))) == 2 and "after 2 whole samples" in next(iter(s))[1]


def test_two_tars_in_one_are_not_silently_halved(tmp_path):
    tar(tmp_path/"a.tar"); tar(tmp_path/"b.tar", 2, 10)
    s = Skipped()
    assert len(ids(stream(f"pipe:cat {tmp_path}/a.tar {tmp_path}/b.tar", skipped=s))) == 4
    assert [r for _, r in s] == ["something follows the end mark of the tar, such as another tar; it was not read"]


@pytest.mark.parametrize("mode", ["w:gz", "w:xz", "w:bz2"])
def test_compressed_shards(site, tmp_path, mode):
    site.files["a.tar.x"] = tar(tmp_path/"a.tar.x", mode=mode).read_bytes()
    site.moods["a.tar.x"] = ["truncate"]
    s = Skipped()
    assert len(ids(stream(site.where + "/a.tar.x", skipped=s, **FAST))) == 4 and len(s) == 0


def test_memory_is_bounded_by_a_sample(tmp_path):
    tar(tmp_path/"a.tar", 1, extra=[(f"x{i}.png", coded(noise(200, i))) for i in range(200)]) # 24 MB
    tracemalloc.start()
    assert sum(1 for _ in stream(f"pipe:cat {tmp_path}/a.tar")) == 201
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path/"a.tar").stat().st_size > 20e6 and peak < 3e6


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_far_shards(shards, site, workers):
    site.moods["00001.tar"] = ["truncate"]
    ds = StreamDataset(shards, one, shuffle=3, timeout=10, wait=.01)
    assert sorted(DataLoader(ds, batch_size=None, num_workers=workers)) == site.all and len(ds.skipped) == 0


def test_a_shard_lost_to_one_process_shifts_no_other(shards, site):
    every = [ids(stream(shards, rank=r, world=5, **FAST)) for r in range(5)]
    site.moods["00000.tar"] = ["truncate", "404"]
    again = [ids(stream(shards, rank=r, world=5, skipped=Skipped(), **FAST)) for r in range(5)]
    assert sorted(sum(every, [])) == site.all and again[1:] == every[1:] and set(again[0]) <= set(every[0])


# what may be said

word = st.text("abcXYZ019-._~%+", min_size=6, max_size=20).map("S3CR3T".__add__)


@given(word, word, word)
def test_no_secret_is_shown(user, password, query):
    url = f"https://{user}:{password}@host.org/a/00001.tar?sig={query}#{query}"
    for text in (url, f"pipe:curl -sf '{url}' | cat", f"GET {url} failed", f"pipe:curl -u {user}:{password} -H 'X: {query}' --header=\"Y: {query}\" https://host.org/a/00001.tar",
                 f"pipe:API_TOKEN={query} get --token {password} --api-key={user} https://host.org/a/00001.tar"):
        assert "S3CR3T" not in shown(text) and "https://host.org/a/00001.tar" in shown(text)


def test_what_is_no_secret_is_shown_as_it_is():
    for text in ("pipe:aws s3 cp s3://b/00001.tar -", "/data/a b/{0..3}.tar", "pipe:zstd -dc /data/x-00.tar.zst", "https://host:8080/a/{00..99}.tar"): assert shown(text) == text


def test_skipped_holds_no_secret(shards, site):
    s = Skipped()
    site.files["00001.tar"] = site.files["00001.tar"][:9000]
    list(stream(shards.replace("//", "//me:pw1234@") + "?key=abcd", skipped=s, **FAST))
    assert len(s) and not any(w in str(list(s)) for w in ("me:", "pw1234", "abcd"))


def test_no_torch_is_needed_for_it():
    subprocess.run([sys.executable, "-c", "import sys, vlnotes.remote, vlnotes.sources; assert 'torch' not in sys.modules"], check=True)
