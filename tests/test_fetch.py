"Data sets from a publisher on this machine, in MNIST's real layout: got whole, resumed, verified, refused."
import gzip
import hashlib
import json
import struct
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from server import publisher
from test_download import file, tar, zipped

from vlnotes import docmnist, fetch
from vlnotes.fetch import DATASETS, Dataset, File, check, get, notice, problems, register, status
from vlnotes.glyphs import MNIST_FILES, glyphs

pooch = pytest.importorskip("pooch")
QUIET = dict(say=lambda text: None, wait=.01, timeout=10)


def idx(array): return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def md5(data): return "md5:" + hashlib.md5(data).hexdigest()


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(fetch, "DATASETS", dict(DATASETS))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def site():
    "MNIST as its publisher lays it out, with 50 + 20 digits, and a data set that knows their sizes and checksums."
    rng = np.random.default_rng(0)
    y = (np.arange(70) % 10).astype(np.uint8)
    x = rng.integers(0, 256, (70, 28, 28), np.uint8)
    files = {f"{n}.gz": gzip.compress(idx(a), mtime=0) for n, a in zip(MNIST_FILES, (x[:50], y[:50], x[50:], y[50:]))}
    with publisher(files) as s:
        s.x, s.y = x, y
        small = tuple(replace(f, size=len(files[f.url]), hash=md5(files[f.url])) for f in DATASETS["mnist"].files)
        register(replace(DATASETS["mnist"], files=small))
        yield s


def test_mnist(site, tmp_path):
    said, seen = [], []
    folder = get("mnist", tmp_path, base=site.where + "/", **QUIET | dict(say=said.append), progress=lambda *a: seen.append(a))
    assert folder == tmp_path / "mnist" and [n for n, _ in site.asked] == [f.url for f in DATASETS["mnist"].files]
    g = glyphs("mnist", folder)
    assert (g.images == site.x).all() and (g.labels == site.y).all() and len(g.split("test")) == 20
    assert all(w in said[0] for w in ("CC BY-SA", "LeCun", "30 MB", str(folder))) and len(said) == 1 and seen
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mnist"]  # no downloads left
    assert str(tmp_path) not in (folder / "dataset.json").read_text()
    assert check("mnist", tmp_path) == f"mnist in {folder} is whole" and problems("mnist", tmp_path) == []
    site.asked.clear()
    assert get("mnist", tmp_path, base=site.where, **QUIET) == folder and not site.asked  # already there
    assert len(docmnist.generate(5, glyphs=g, split="test").texts) == 5


def test_the_registered_mnist_is_the_publishers():
    d = DATASETS["mnist"]
    assert d.base == "https://ossci-datasets.s3.amazonaws.com/mnist"
    assert [(f.url, f.hash[4:12]) for f in d.files] == [
        ("train-images-idx3-ubyte.gz", "f68b3c2d"), ("train-labels-idx1-ubyte.gz", "d53e105e"),
        ("t10k-images-idx3-ubyte.gz", "9fb629c4"), ("t10k-labels-idx1-ubyte.gz", "ec29112d")]
    assert all(len(f.hash) == 36 and f.size for f in d.files)


def test_a_bad_day(site, tmp_path):
    names = [f.url for f in DATASETS["mnist"].files]
    site.moods = {names[0]: ["truncate", "stall", "500"], names[1]: ["stall"], names[2]: ["503", "truncate"]}
    folder = get("mnist", tmp_path, base=site.where, **QUIET | dict(timeout=.5))
    assert (glyphs("mnist", folder).images == site.x).all()
    assert sum(r is not None for _, r in site.asked) >= 4


def test_goes_on_after_it_was_given_up(site, tmp_path):
    names = [f.url for f in DATASETS["mnist"].files]
    site.moods = {names[2]: ["truncate", "404"]}
    with pytest.raises(OSError, match="t10k-images.*404.*are kept"): get("mnist", tmp_path, base=site.where, **QUIET)
    assert not (tmp_path / "mnist").exists()
    site.asked.clear()
    get("mnist", tmp_path, base=site.where, **QUIET)
    assert [n for n, _ in site.asked] == names[2:] and site.asked[0][1]  # two were whole; the third is resumed
    assert check("mnist", tmp_path)


def test_wrong_checksum(site, tmp_path):
    name = DATASETS["mnist"].files[1].url
    good = site.files[name]
    site.files[name] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(ValueError, match="train-labels.*has not the checksum.*removed"): get("mnist", tmp_path, base=site.where, **QUIET)
    assert not (tmp_path / "mnist").exists() and not list(tmp_path.rglob("train-labels*"))
    site.files[name] = good
    assert get("mnist", tmp_path, base=site.where, **QUIET)


def test_wrong_size(site, tmp_path):
    name = DATASETS["mnist"].files[1].url
    site.files[name] += b"more"
    with pytest.raises(ValueError, match="offers .* bytes where"): get("mnist", tmp_path, base=site.where, **QUIET)


def test_right_checksums_of_a_wrong_thing(site, tmp_path):
    d = fetch.DATASETS["mnist"]
    bad = gzip.compress(b"no digits", mtime=0)
    site.files[d.files[0].url] = bad
    register(replace(d, files=(replace(d.files[0], size=len(bad), hash=md5(bad)),) + d.files[1:]))
    with pytest.raises(ValueError, match="mnist is not what it should be: .*not a whole IDX file.*nothing was kept") as e: get("mnist", tmp_path, base=site.where, **QUIET)
    assert str(tmp_path / "mnist") in str(e.value) and not (tmp_path / "mnist").exists()


def test_check_finds_damage(site, tmp_path):
    folder = get("mnist", tmp_path, base=site.where, **QUIET)
    path = folder / DATASETS["mnist"].files[0].dest
    raw = path.read_bytes()
    for bad, said in (raw[:-1], "bytes where"), (raw[:-1] + b"?", "checksum"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=f"mnist is not whole.*{said}"): check("mnist", tmp_path)
        with pytest.raises(FileExistsError, match="not whole.*move it away"): get("mnist", tmp_path, base=site.where, **QUIET)
        assert path.read_bytes() == bad
    path.unlink()
    with pytest.raises(ValueError, match="has no train-images"): check("mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder.*`vlnotes data mnist` gets it"): check("mnist", tmp_path / "else")


def test_no_pooch_no_download(site, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"pip install 'vlnotes\[data\]'"): get("mnist", tmp_path, base=site.where, **QUIET)
    assert not site.asked and not list(tmp_path.iterdir())
    assert get("docmnist", tmp_path, n=3, held_out=2, **QUIET)


def test_the_answer_no(site, tmp_path):
    asked = []
    with pytest.raises(ValueError, match="was not fetched"): get("mnist", tmp_path, base=site.where, yes=lambda t: asked.append(t), **QUIET)
    assert asked == ["Fetch mnist?"] and not site.asked and not list(tmp_path.iterdir())
    assert get("mnist", tmp_path, base=site.where, yes=lambda t: True, **QUIET)


def test_no_room(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda p: type("U", (), dict(free=10**6)))
    with pytest.raises(OSError, match="mnist needs 30 MB, .* has 1 MB free"): get("mnist", tmp_path, base=site.where, **QUIET)
    with pytest.raises(OSError, match="docmnist needs 1 GB"): get("docmnist", tmp_path, n=999_000, held_out=0, **QUIET)
    assert not site.asked


# ---- archives

def archive_set(site, *files, **kw):
    return register(Dataset(kw.pop("name", "toy"), "a toy", "none", "none", "nobody", kw.pop("disk", 10**5), base=site.where,
                            files=tuple(File(n, dest, len(site.files[n]), "sha256:" + hashlib.sha256(site.files[n]).hexdigest(), True) for n, dest in files), **kw))


def test_archives_are_unpacked(site, tmp_path):
    site.files |= {"sub/a.tar.gz": tar(tmp_path / "a.tar.gz", file("top/x", b"1"), mode="w:gz").read_bytes(),
                   "b.zip": zipped(tmp_path / "b.zip", ("y", b"2")).read_bytes(), "c.gz": gzip.compress(b"3")}
    archive_set(site, ("sub/a.tar.gz", ""), ("b.zip", "zip"), ("c.gz", "deep/gz"), layout=("top/x", "zip/*"))
    folder = get("toy", tmp_path / "root", **QUIET)
    assert {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file() and p.suffix != ".json"} == {
        "top/x": "1", "zip/y": "2", "deep/gz/c": "3"}
    (folder / "top" / "x").unlink()
    with pytest.raises(ValueError, match="has no top/x"): check("toy", tmp_path / "root")


@pytest.mark.parametrize("kind", ["names", "bomb", "link", "cut"])
def test_bad_archives_leave_nothing(site, tmp_path, kind):
    p, zeros = tmp_path / "a.tar.gz", bytes(200_000)
    members = dict(names=file("../../evil"), bomb=file("a", zeros), link=("l", "/etc", tarfile.SYMTYPE), cut=file("a"))[kind]
    site.files["a.tar.gz"] = tar(p, members, mode="w:gz").read_bytes()[:-20 if kind == "cut" else None]
    archive_set(site, ("a.tar.gz", ""))
    root = tmp_path / "deep" / "root"
    with pytest.raises(ValueError, match=dict(names="leaves its folder", bomb="unpacks to more", link="is a link", cut="damaged")[kind]): get("toy", root, **QUIET)
    assert not (root / "toy").exists() and not list(tmp_path.rglob("evil"))


def test_two_archives_with_one_name(site, tmp_path):
    for n in "a.tar", "b.tar": site.files[n] = tar(tmp_path / n, file("x", n.encode())).read_bytes()
    archive_set(site, ("a.tar", ""), ("b.tar", ""))
    with pytest.raises(FileExistsError, match="b.tar holds x"): get("toy", tmp_path / "root", **QUIET)


def test_conversion_and_absolute_addresses(site, tmp_path):
    site.files |= {"one/f": b"1", "two/f": b"2"}
    def make(folder, files, times): (folder / "sum").write_text(str(sum(int(p.read_text()) for p in files) * times))
    d = register(Dataset("toy", "a toy", "none", "none", "nobody", 10, base=site.where, make=make, options=dict(times=1), layout=("sum",),
                         files=(File("one/f", "f"), File(site.where + "/two/f", "f"))))
    assert (get("toy", tmp_path, times=10, **QUIET) / "sum").read_text() == "30" and check("toy", tmp_path)
    site.files |= {"mirror/one/f": b"3", "mirror/f": b"4"}
    assert (get("toy", tmp_path / "b", base=site.where + "/mirror/", **QUIET) / "sum").read_text() == "7"
    def fails(folder, files, times):
        (folder / "half").write_text("")
        raise ValueError("cannot convert")
    register(replace(d, make=fails))
    with pytest.raises(ValueError, match="cannot convert"): get("toy", tmp_path / "c", **QUIET)
    assert not (tmp_path / "c" / "toy").exists()


# ---- docmnist

def test_docmnist(tmp_path):
    said = []
    folder = get("docmnist", tmp_path, n=30, held_out=10, seed=1, **QUIET | dict(say=said.append))
    assert "5.05 MB" in said[0] and "CC BY 4.0" in said[0]
    for split, n in ("train", 30), ("val", 10), ("test", 10):
        s = docmnist.load(folder / split)
        assert s.texts == docmnist.generate(n, seed=1, split=split).texts and s.split == split
    assert get("docmnist", tmp_path, n=30, **QUIET) == get("docmnist", tmp_path, **QUIET) == folder
    with pytest.raises(FileExistsError, match="made with n=30"): get("docmnist", tmp_path, n=31, **QUIET)
    (folder / "val" / "scenes.safetensors").unlink()
    with pytest.raises(ValueError, match="val has no scenes.safetensors"): check("docmnist", tmp_path)


def test_docmnist_as_published(tmp_path):
    folder = get("docmnist", tmp_path, budget=300, target=6, **QUIET)
    pairs = [docmnist.load(folder / s).complexity.sum() for s in ("train", "val", "test")]
    assert all(m - 6 < p <= m for p, m in zip(pairs, (300, 10_000, 10_000)))


def test_docmnist_as_shards(tmp_path):
    folder = get("docmnist", tmp_path, n=6, held_out=2, regions=(1, 3), form="shards", **QUIET)
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.tar")) == [f"{s}/000000.tar" for s in ("test", "train", "val")]
    with tarfile.open(folder / "train" / "000000.tar") as t: found = [json.load(t.extractfile(m)) for m in t if m.name.endswith("json")]
    assert [r["id"] for r in found] == [f"train-{i:06d}" for i in range(6)] and all(1 <= len(r["regions"]) <= 3 for r in found)
    assert check("docmnist", tmp_path) and get("docmnist", tmp_path, regions=(1, 3), **QUIET)


def test_docmnist_with_mnists_glyphs(site, tmp_path):
    with pytest.raises(FileNotFoundError, match="`vlnotes data mnist` fetches it"): get("docmnist", tmp_path, glyphs="mnist", **QUIET)
    get("mnist", tmp_path, base=site.where, **QUIET)
    folder = get("docmnist", tmp_path, glyphs="mnist", n=20, held_out=5, **QUIET)
    assert docmnist.load(folder / "train").glyphs.name == "mnist"
    used = {i for i in docmnist.load(folder / "test").glyphs.index}
    assert min(used) >= 50


def test_docmnist_bad_options(tmp_path):
    for kw, said in (dict(m=3), "no option of docmnist 'm'"), (dict(form="tar"), "no form 'tar'"), (dict(target=2), "target=2"), (dict(n=0), "n=0"):
        with pytest.raises(ValueError, match=said): get("docmnist", tmp_path, **QUIET, **kw)
    assert not (tmp_path / "docmnist").exists()


# ---- gated

def test_gated_sets_are_never_fetched(tmp_path):
    for name in "imagenet", "llama", "mimic":
        with pytest.raises(PermissionError, match=f"{name} is never fetched: ask for it at https://.*--check"): get(name, tmp_path, **QUIET)
        with pytest.raises(FileNotFoundError, match="see https://"): check(name, tmp_path)
        assert DATASETS[name].files == () and name in status(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="gated"): register(replace(DATASETS["llama"], files=(File("a", "a"),)))


def test_local_copies_of_gated_sets(tmp_path):
    for k in range(1000):
        for part in "train", "val":
            (p := tmp_path / "imagenet" / part / f"n{k:08d}").mkdir(parents=True)
            (p / "a.JPEG").touch()
    assert check("imagenet", tmp_path) and get("imagenet", tmp_path, **QUIET) == tmp_path / "imagenet"
    (p / "a.JPEG").unlink()
    with pytest.raises(ValueError, match="n00000999 holds no .JPEG"): check("imagenet", tmp_path)
    p.rmdir()
    with pytest.raises(ValueError, match="has 999 class folders"): check("imagenet", tmp_path)
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(ValueError, match=r"has no tokenizer\*; .*has no \*.safetensors"): check("llama", tmp_path)
    for n in "tokenizer.json", "model.safetensors": (llama / n).touch()
    with pytest.raises(ValueError, match="model type 'opt' where 'llama'"): check("llama", tmp_path)
    (llama / "config.json").write_text('{"model_type": "llama"}')
    assert check("llama", tmp_path)
    for n in "mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-split.csv", "files/p10/x":
        (q := tmp_path / "mimic" / n).parent.mkdir(parents=True, exist_ok=True)
        q.touch()
    assert check("mimic", tmp_path)


# ---- the registry

def test_status_and_notice(tmp_path):
    (tmp_path / "mnist").mkdir()
    table = {r.split()[0]: r.split()[1] for r in status(tmp_path).splitlines()[2:]}
    assert table["mnist"] == "yes" and table["docmnist"] == "no" and table["imagenet"] == "gated" and str(tmp_path) in status(tmp_path)
    for d in DATASETS.values():
        text = notice(d, tmp_path)
        assert all(v and v in text for v in (d.name, d.about, d.licence, d.terms, d.citation))
        assert d.gated or d.files or d.make


def test_every_set_is_in_the_readme():
    text = (Path(__file__).parents[1] / "data" / "README.md").read_text()
    status()
    assert {"cc3m", "milan"} <= set(fetch.DATASETS)  # from their entry points
    for d in fetch.DATASETS.values():
        assert f"| `{d.name}` |" in text and (d.gated in text)


def test_unknown_names(tmp_path):
    for f in get, check, problems:
        with pytest.raises(ValueError, match="no data set 'minst'; the nearest is 'mnist'"): f("minst", tmp_path)
    for bad in "../x", "A", "", "a/b", ".x":
        with pytest.raises(ValueError, match="use small letters"): register(replace(DATASETS["mnist"], name=bad))


# ---- sets that others bring

class Offer:
    def __init__(self, name, found): self.name, self.value, self.found = name, f"package.module:{name.upper()}", found
    def load(self):
        if isinstance(self.found, Exception): raise self.found
        return self.found


@pytest.fixture
def offers(monkeypatch):
    found = [Offer("toy", Dataset("toy", "a toy", "none", "none", "nobody", 10, make=lambda folder, files: None)), Offer("away", ModuleNotFoundError("No module named 'away'")),
             Offer("other", Dataset("another", "a toy", "none", "none", "nobody", 10)), Offer("text", "no data set"), Offer("mnist", Dataset("mnist", "false", "none", "none", "nobody", 10))]
    monkeypatch.setattr(fetch, "entry_points", lambda group: found if group == "vlnotes.datasets" else [])


def test_entry_points_are_loaded_when_asked_for(offers, tmp_path):
    assert "toy" not in fetch.DATASETS and get("toy", tmp_path, **QUIET) == tmp_path / "toy" and "toy" in fetch.DATASETS
    table = {r.split()[0]: r for r in status(tmp_path).splitlines()[2:]}
    assert " yes " in table["toy"] and "cannot be loaded from package.module:AWAY (No module named 'away')" in table["away"] and "28 x 28" in table["mnist"]
    assert "no fetch.Dataset of the name 'other'" in table["other"] and "no fetch.Dataset of the name 'text'" in table["text"]
    with pytest.raises(ImportError, match="the data set away cannot be loaded from"): get("away", tmp_path, **QUIET)
    with pytest.raises(ValueError, match="no fetch.Dataset of the name 'text'"): check("text", tmp_path)
    with pytest.raises(ValueError, match="no data set 'tay'; the nearest is 'toy'"): get("tay", tmp_path, **QUIET)


def test_looking_up_one_set_loads_no_other(offers, monkeypatch, tmp_path):
    monkeypatch.setattr(Offer, "load", lambda self: pytest.fail("loaded"))
    assert problems("mnist", tmp_path) and problems("docmnist", tmp_path)


# ---- sets in parts

@pytest.fixture
def parts(site):
    site.files |= {n: n.encode() for n in ("index", "one", "two", "three")}
    return register(Dataset("parts", "a toy", "none", "none", "nobody", lambda o: 100 * len(o["sets"]), base=site.where, options=dict(sets=None), pick="sets",
                            files=(File("index", "index"), *(File(n, n, part=n) for n in ("one", "two", "three")))))


@pytest.mark.parametrize("sets, names", [(None, ["one", "two", "three"]), ("two", ["two"]), ("three, one", ["one", "three"]), (["two"], ["two"]), (("two", "three"), ["two", "three"])])
def test_parts_are_picked(parts, site, tmp_path, sets, names):
    said = []
    folder = get("parts", tmp_path, sets=sets, **QUIET | dict(say=said.append))
    assert [n for n, _ in site.asked] == ["index", *names] and sorted(p.name for p in folder.iterdir()) == sorted(["dataset.json", "index", *names])
    assert f"{len(names)}00 bytes" in said[0] and json.loads((folder / "dataset.json").read_text())["options"] == {"sets": names} and check("parts", tmp_path)
    assert get("parts", tmp_path, **QUIET) == get("parts", tmp_path, sets=names[0], **QUIET) == folder
    if len(names) < 3:
        with pytest.raises(FileExistsError, match="made with sets="): get("parts", tmp_path, sets="one,two,three", **QUIET)
    (folder / names[0]).unlink()
    with pytest.raises(ValueError, match=f"has no {names[0]}"): check("parts", tmp_path)


def test_unknown_parts(parts, site, tmp_path):
    for bad in "four", "one,,two", ["on"]:
        with pytest.raises(ValueError, match="there is no part of parts .sets=."): get("parts", tmp_path, sets=bad, **QUIET)
    assert not site.asked


def test_parts_go_to_make_in_order_and_keep_their_place_when_resumed(parts, site, tmp_path):
    seen = []
    register(replace(parts, make=lambda folder, files, sets: seen.append(([p.name for p in files], sets))))
    site.moods["three"] = ["404"]
    with pytest.raises(OSError, match="three could not be fetched .404"): get("parts", tmp_path, sets="three,two", **QUIET)
    site.asked.clear()
    get("parts", tmp_path, sets="three", **QUIET)
    assert seen == [(["index", "three"], ["three"])] and [n for n, _ in site.asked] == ["three"]


# ---- sets that take long

def test_what_was_made_stays_for_the_next_attempt(site, tmp_path):
    def make(folder, files, n, speed):
        (folder / f"{len(list(folder.iterdir()))}").touch()
        if len(list(folder.iterdir())) < n: raise OSError("a power cut")
        return "it is made"
    d = register(Dataset("slow", "a toy", "none", "none", "nobody", 10**5, make=make, options=dict(n=3, speed=1), manner=("speed",), resumes=True, layout=("0",), check=lambda f: []))
    said = []
    for _ in range(2):
        with pytest.raises(OSError, match="power cut"): get("slow", tmp_path, **QUIET)
        assert not (tmp_path / "slow").exists()
    folder = get("slow", tmp_path, **QUIET | dict(say=said.append))
    assert sorted(p.name for p in folder.iterdir()) == ["0", "1", "2", "dataset.json"] and said[-1] == "it is made" and [p.name for p in tmp_path.iterdir()] == ["slow"]
    assert get("slow", tmp_path, speed=2, **QUIET) == folder
    with pytest.raises(FileExistsError, match="made with n=3"): get("slow", tmp_path, n=4, **QUIET)
    register(replace(d, layout=("never",)))
    with pytest.raises(ValueError, match="has no never; it is kept in .*.slow-downloads/made"): get("slow", tmp_path / "else", n=1, **QUIET)
    assert (tmp_path / "else/.slow-downloads/made/0").exists()


def test_what_is_there_already_needs_no_more_room(site, tmp_path, monkeypatch):
    register(replace(DATASETS["docmnist"], name="big", disk=1_000_000))
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda p: type("U", (), dict(free=600_000)))
    with pytest.raises(OSError, match="big needs 1 MB, .* has 600 kB"): get("big", tmp_path, n=3, held_out=2, **QUIET)
    (tmp_path / ".big-downloads").mkdir()
    (tmp_path / ".big-downloads/x.part").write_bytes(bytes(500_000))
    assert get("big", tmp_path, n=3, held_out=2, **QUIET)
