"Notes: exact round trips, every bad file in one sentence, queries with absent values."
import json
import math
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from vlnotes.notes import REQUIRED, SCHEMA, Note, Notes

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
small = st.none() | st.integers(0, 2**31 - 1)
number = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | number | text,
                      lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3), max_leaves=6)
note = st.builds(Note, image_id=text, encoder=text, layer=text, text=text, score=number, score_kind=text, method=text, run=text,
                 unit=small, row=small, col=small, grid_h=small, grid_w=small, x0=st.none() | number, extra=st.dictionaries(text, values, max_size=3))


def made(n=6, **k): return Notes(Note(f"im{i % 3}", "zoo/convnet", f"layer{i}", f"word {i}", float(i), "logprob", "devil", **k) for i in range(n))


@settings(max_examples=40, deadline=None)
@given(st.lists(note, max_size=5))
def test_round_trip_is_exact(tmp_path_factory, notes):
    folder = tmp_path_factory.mktemp("n")
    table = Notes(notes)
    assert list(table) == notes
    for suffix in (".parquet", ".jsonl"):
        back = Notes.read(table.write(folder/f"a{suffix}"))
        assert back == table and list(back) == notes
        assert [repr(n) for n in back] == [repr(n) for n in notes] # 1 stays 1, 1.0 stays 1.0, -0.0 stays -0.0


def test_empty(tmp_path):
    for suffix in (".parquet", ".jsonl"): assert len(Notes.read(Notes().write(tmp_path/f"e{suffix}"))) == 0
    e = Notes()
    assert list(e) == [] and list(e.filter(layer="x").sort()) == [] and e.groups("layer") == {} and len(e.best("layer")) == 0
    assert len(Notes.concat([])) == 0 and len(e + made()) == 6 and len(e[:3]) == 0 and "0 rows" in repr(e) and e.table.schema == SCHEMA


def test_indexing():
    n = made()
    assert n[-1] == n[5] == list(n)[5] and list(n[1:4]) == list(n)[1:4] and list(n[::-2]) == list(n)[::-2]
    assert list(n[[4, 0]]) == [n[4], n[0]] and list(n[[True] + [False] * 5]) == [n[0]] and len(n[[]]) == 0
    with pytest.raises(IndexError, match="6 notes"): n[6]


def test_notes_hash_and_equal():
    a, b = (Note("i", "e", "l", "t", 1., "k", "m", extra={"a": [1]}) for _ in range(2))
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1


@pytest.mark.parametrize("extra", [{"a": (1, 2)}, {1: "a"}, {"a": math.nan}, {"a": math.inf}, {"a": {1, 2}}, {"a": b"x"}, [1], "x", None])
def test_extra_that_would_change_is_refused(extra):
    with pytest.raises(ValueError, match="note 0: extra must be a dict of JSON values"): Notes([Note("i", "e", "l", "t", 1., "k", "m", extra=extra)])


@pytest.mark.parametrize("bad", [dict(score=math.nan), dict(score=math.inf), dict(score="high"), dict(text=None), dict(text=3), dict(row=1.5), dict(unit=2**40),
                                 dict(image_id=7), dict(x0="a"), dict(layer=None)])
def test_a_bad_note_is_refused(bad):
    good = dict(image_id="i", encoder="e", layer="l", text="t", score=1., score_kind="k", method="m")
    with pytest.raises(ValueError, match=next(iter(bad))): Notes([Note(**good), Note(**{**good, **bad})])


@pytest.mark.parametrize("name", REQUIRED)
def test_missing_column(tmp_path, name):
    t = made().table.drop_columns([name])
    pq.write_table(t, tmp_path/"a.parquet")
    with pytest.raises(ValueError, match=f"a.parquet has no column '{name}'; it has "): Notes.read(tmp_path/"a.parquet")
    (tmp_path/"a.jsonl").write_text("\n".join(json.dumps({k: v for k, v in r.items() if k != "extra"}) for r in t.to_pylist()))
    with pytest.raises(ValueError, match=f"line 1 has no '{name}'"): Notes.read(tmp_path/"a.jsonl")


def test_optional_columns_may_be_absent(tmp_path):
    pq.write_table(made().table.select(list(REQUIRED)), tmp_path/"a.parquet")
    (tmp_path/"a.jsonl").write_text("\n".join(json.dumps(r) for r in made().table.select(list(REQUIRED)).to_pylist()) + "\n\n")
    assert Notes.read(tmp_path/"a.parquet") == made() == Notes.read(tmp_path/"a.jsonl")


@pytest.mark.parametrize("name,column", [("score", pa.array(["1.5"] * 6)), ("text", pa.array(range(6))), ("row", pa.array([1.5] * 6)), ("image_id", pa.array([b"a"] * 6)),
                                         ("unit", pa.array([2**40] * 6)), ("score", pa.array([True] * 6)), ("score", pa.array([None] * 6, pa.float64())),
                                         ("text", pa.array(["a"] * 5 + [None])), ("extra", pa.array(["{"] * 6)), ("extra", pa.array(["[1]"] * 6)),
                                         ("score", pa.array([1.] * 5 + [math.nan]))])
def test_wrong_type(tmp_path, name, column):
    t = made().table
    t = t.set_column(t.column_names.index(name), name, column)
    pq.write_table(t, tmp_path/"a.parquet")
    with pytest.raises(ValueError, match=rf"a\.parquet.*{name}"): Notes.read(tmp_path/"a.parquet")


def test_types_of_the_same_kind_are_taken(tmp_path):
    t = made().table
    t = t.set_column(t.column_names.index("text"), "text", t["text"].cast(pa.large_string()).combine_chunks().dictionary_encode())
    t = t.set_column(t.column_names.index("unit"), "unit", pa.array(range(6), pa.int64()))
    pq.write_table(t, tmp_path/"a.parquet")
    assert Notes.read(tmp_path/"a.parquet").column("unit") == list(range(6))


def test_unknown_column(tmp_path):
    pq.write_table(made().table.append_column("scores", pa.array(range(6))), tmp_path/"a.parquet")
    with pytest.raises(ValueError, match="no column 'scores'; the nearest is 'score'"): Notes.read(tmp_path/"a.parquet")
    for ask in (lambda n: n.filter(layr="x"), lambda n: n.column("layr"), lambda n: n.sort("layr"), lambda n: n.unique("layr"), lambda n: n.join(n, on=["layr"]),
                lambda n: n.groups("layr")):
        with pytest.raises(ValueError, match="nearest is 'layer'"): ask(made())


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("keep", [0, 1, 10, .53, -1, -20])
def test_truncated(tmp_path, suffix, keep):
    path = made().write(tmp_path/f"a{suffix}")
    raw = path.read_bytes()
    cut = raw[:int(len(raw) * keep) if isinstance(keep, float) else keep]
    path.write_bytes(cut)
    if suffix == ".jsonl" and (keep == 0 or keep == -1): # an empty file is no notes; the last newline is not needed
        assert len(Notes.read(path)) == (0 if keep == 0 else 6)
        return
    with pytest.raises(ValueError, match=rf"a\{suffix}.*cut off"): Notes.read(path)


@pytest.mark.parametrize("line", ["[1]", "3", '{"image_id": "a"}', "\x00\xff", "{'a': 1}"])
def test_bad_line(tmp_path, line):
    good = (made(1).write(tmp_path/"g.jsonl")).read_text()
    (tmp_path/"a.jsonl").write_text(good + line + "\n", encoding="latin-1")
    with pytest.raises(ValueError, match="a.jsonl"): Notes.read(tmp_path/"a.jsonl")


@pytest.mark.parametrize("name,value", [("score", "1"), ("score", True), ("row", 1.5), ("text", 3), ("image_id", None), ("extra", [1]), ("extra", "{}"), ("score", None)])
def test_wrong_type_in_a_line(tmp_path, name, value):
    row = json.loads(made(1).write(tmp_path/"g.jsonl").read_text()) | {name: value}
    (tmp_path/"a.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=rf"a\.jsonl.*{name}"): Notes.read(tmp_path/"a.jsonl")


def test_foreign_files(tmp_path):
    (tmp_path/"a.parquet").write_text("hello")
    with pytest.raises(ValueError, match="not a Parquet file"): Notes.read(tmp_path/"a.parquet")
    with pytest.raises(FileNotFoundError, match="b.parquet"): Notes.read(tmp_path/"b.parquet")
    for act in (lambda: Notes.read(tmp_path/"a.csv"), lambda: made().write(tmp_path/"a.csv")):
        with pytest.raises(ValueError, match="'.csv'"): act()


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = made(2).write(tmp_path/"a.jsonl")
    def full(table, tmp): tmp.write_text("half"); raise OSError(28, "No space left on device")
    monkeypatch.setitem(sys.modules["vlnotes.notes"]._WRITE, ".jsonl", full)
    with pytest.raises(OSError, match="disk is full.*a.jsonl"): made(6).write(path)
    assert len(Notes.read(path)) == 2 and [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_filter():
    n = Notes([*made(), *made(2, row=1, col=2)])
    assert len(n.filter(row=None)) == 6 and len(n.filter(row=1)) == 2 and len(n.filter(row=[1, None])) == 8 and len(n.filter(row=2.5)) == 0
    assert n.filter(image_id={"im0", "im2"}, score=lambda s: s > 1).column("text") == ["word 2", "word 3", "word 5"]
    assert len(n.filter()) == 8 and len(n.filter(score=3)) == 1 and len(n.filter(image_id=[])) == 0
    assert len(n.filter(extra=lambda e: not e)) == 8
    for wrong in (dict(row="1"), dict(text=1), dict(row=True)):
        with pytest.raises(ValueError, match="is never"): n.filter(**wrong)


def test_filter_takes_numpy():
    np = pytest.importorskip("numpy")
    assert len(made().filter(score=np.arange(3))) == 3 and len(made().filter(score=np.float32(2))) == 1 and len(made()[np.array([1, 2])]) == 2


def test_sort_groups_best():
    n = Notes(reversed(list(made())))
    assert n.sort().column("score") == [0, 1, 2, 3, 4, 5] and n.sort(["image_id", "score"], descending=True)[0].text == "word 5"
    assert list(n.groups("image_id")) == ["im2", "im1", "im0"] and list(n.groups("image_id", "layer"))[0] == ("im2", "layer5")
    assert n.best("image_id").column("score") == [5, 4, 3]
    same = Notes(Note(str(i), "e", "l", "t", 1., "k", "m") for i in range(500))
    assert same.sort(descending=True).column("image_id") == [str(i) for i in range(500)] # stable


def test_join_meets_absent_values():
    a = Notes([*made(3), *made(3, row=0, col=0)])
    j = a.join(a, on=["layer", "row", "col"])
    assert j.num_rows == 6 and j["text"].to_pylist() == j["text_other"].to_pylist() and "row_other" not in j.column_names
    assert a.join(Notes(), on="layer").num_rows == 0
    with pytest.raises(ValueError, match="at least one column"): a.join(a, on=[])


def test_pandas(monkeypatch):
    pytest.importorskip("pandas")
    frame = made(2, row=3, extra={"a": 1}).to_pandas()
    assert frame["extra"][1] == {"a": 1} and str(frame["row"].dtype) == "Int32" and frame["unit"].isna().all()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"vlnotes\[data\]"): made().to_pandas()


def test_html_is_escaped(): assert "<script>" not in Notes([Note("i", "e", "l", "<script>", 1., "k", "m")])._repr_html_()


def test_many_notes_are_fast_enough(tmp_path):
    n = Notes(Note("i", "e", "l", f"t{i}", 1., "k", "m", row=i % 7) for i in range(20000))
    assert len(Notes.read(n.write(tmp_path/"a.parquet")).filter(row=3)) == 2857


def test_no_torch_is_imported():
    code = "import sys, vlnotes.notes, vlnotes.runs, vlnotes.launcher; assert 'torch' not in sys.modules; assert 'papermill' not in sys.modules"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr


def test_the_beginning_of_a_file(tmp_path):
    notes = Notes([Note(f"i{k}", "e", "l", "t", 0., "s", "m", extra={"k": k}) for k in range(9)])
    for name in ("n.parquet", "n.jsonl"):
        notes.write(tmp_path/name)
        for most in (0, 1, 5, 9, 20): assert Notes.read(tmp_path/name, most=most) == notes[:most]
    assert "".join(notes.lines()) == (tmp_path/"n.jsonl").read_text()
