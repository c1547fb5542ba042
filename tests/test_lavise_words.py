"Word tables: files of any dimension, embedders, vocabularies, and files that lie."
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlnotes.sources import Skipped
from vlnotes.text import _line, word_vectors
from vlnotes.words import Table, make_table, read_words, space

WORDS = ["the", "red", "traffic", "light", "caf\u00e9"]


def write(path, words=WORDS, dim=5, seed=0, header=False, encoding="utf-8"):
    rows = np.random.default_rng(seed).normal(size=(len(words), dim)).round(5)
    lines = [f"{w} {' '.join(map(str, r))}" for w, r in zip(words, rows.tolist())]
    path.write_bytes("\n".join([f"{len(words)} {dim}"] * header + lines + [""]).encode(encoding))
    return rows.astype(np.float32)


@pytest.mark.parametrize("dim", [1, 50, 300])
@pytest.mark.parametrize("header", [False, True])
def test_any_dimension_with_and_without_a_first_line(tmp_path, dim, header):
    rows = write(tmp_path / "w.txt", dim=dim, header=header)
    for _again in range(2): # parsed, then mapped
        t = space(tmp_path / "w.txt", cache=tmp_path / "cache")
        assert t.words == WORDS and t.dim == dim and (t.vectors == rows).all() and isinstance(t.vectors, np.memmap)
    assert (word_vectors(tmp_path / "w.txt").vectors == rows).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=3), st.sampled_from(["x", "null", "nan", '"q', "'", "a,b", "#", "\u4e2d"]))
def test_columns_are_read_as_lines_are(tmp_path_factory, values, word):
    path = tmp_path_factory.mktemp("w") / "w.txt"
    line = f"{word} {' '.join(map(repr, values))}"
    path.write_text(f"first 1 2 3\n{line}\n", encoding="utf-8")
    t, (name, row) = word_vectors(path), _line(path, 2, line.encode(), 3)
    assert t.words == ["first", word] == ["first", name] and (t.vectors[1] == row).all()


@pytest.mark.parametrize("text, said", [
    (b"a 1 2 3\nb 1 2\n", "line 2: 2 numbers where 3 were expected"), (b"a 1 2\nb 1 2 x\n", "line 2: a column after 'b 1' is not a number"),
    (b"a 1 2\nb 1 nan\n", "line 2: the vector of 'b' is not finite"), (b"a 1 2\nb 1 inf\n", "not finite"), (b"a 1 2\n\nb 1 2\n", "line 2: empty"),
    ("a 1 2\ncaf\u00e9 1 2\n".encode("latin-1"), "line 2: the word b'caf.xe9' is not UTF-8"), ("a 1 2\n".encode("utf-16"), "not UTF-8"),
    (b"3 2\na 1 2\nb 1 2\n", "says 3 words in its first line and holds 2"), (b"a\n", "its first line has 1 columns")])
def test_files_that_lie(tmp_path, text, said):
    (tmp_path / "w.txt").write_bytes(text)
    with pytest.raises(ValueError, match=said) as e: space(tmp_path / "w.txt", cache=tmp_path / "c")
    assert "w.txt" in str(e.value) and "\n" not in str(e.value)


def test_an_editors_mark_is_no_word(tmp_path):
    rows = write(tmp_path / "w.txt", encoding="utf-8-sig")
    assert word_vectors(tmp_path / "w.txt").words == WORDS and (word_vectors(tmp_path / "w.txt").vectors == rows).all()
    write(tmp_path / "w.vec", header=True, encoding="utf-8-sig")
    assert word_vectors(tmp_path / "w.vec").words == WORDS


def test_a_vocabulary_and_what_is_not_in_it(tmp_path):
    rows, told = write(tmp_path / "w.txt"), Skipped()
    t = space(tmp_path / "w.txt", ["light", "traffic light", "zebra crossing", "red", "zebra", "red", ""], cache=tmp_path, skipped=told)
    assert t.words == ["light", "traffic light", "red"] and (t.vectors[[0, 2]] == rows[[3, 1]]).all() and np.allclose(t.vectors[1], rows[[2, 3]].mean(0))
    assert [w for w, _ in told] == ["zebra crossing", "zebra", ""] and all("has no vector for it" in r for _, r in told)
    again = space(cache=tmp_path, **json.loads(json.dumps(t.spec)))
    assert again.words == t.words and (again.vectors == t.vectors).all() and again.index == {w: i for i, w in enumerate(t.words)}
    with pytest.raises(ValueError, match="a vector for none of the 1 words, such as 'zebra'"): space(tmp_path / "w.txt", ["zebra"], cache=tmp_path)
    (tmp_path / "v.txt").write_text("red\nthe\n")
    assert space(tmp_path / "w.txt", tmp_path / "v.txt", cache=tmp_path).words == ["red", "the"]


def test_the_first_words_of_a_file(tmp_path):
    write(tmp_path / "w.txt")
    t = space(tmp_path / "w.txt", first=2, cache=tmp_path)
    assert t.words == WORDS[:2] and "traffic" not in t and t.vectors.shape == (2, 5) and space(tmp_path / "w.txt", first=99, cache=tmp_path).words == WORDS
    with pytest.raises(ValueError, match="no vector|a vector for none"): space(tmp_path / "w.txt", ["traffic"], first=2, cache=tmp_path)
    with pytest.raises(ValueError, match="first=0"): space(tmp_path / "w.txt", first=0, cache=tmp_path)


def test_a_word_that_comes_twice_is_its_first_row(tmp_path):
    rows = write(tmp_path / "w.txt", ["a", "b", "a"])
    t = space(tmp_path / "w.txt", cache=tmp_path, skipped=(told := Skipped()))
    assert [w for w, _ in told] == ["a"] and "row 3 of" in list(told)[0][1] and "row 1, counts" in list(told)[0][1]
    assert len(t) == 3 and t.index == {"a": 0, "b": 1} and (t.only(["a"]).vectors[0] == rows[0]).all()


def test_glove_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("VLNOTES_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no file of word vectors glove.6B.50d, .*`vlnotes data glove`"): space("glove.6B.50d")
    (tmp_path / "glove").mkdir()
    write(tmp_path / "glove/glove.6B.50d.txt", dim=50)
    assert space("glove.6B.50d").dim == 50 and space("glove.6B.50d.txt").words == WORDS and (tmp_path / "words").is_dir()
    with pytest.raises(FileNotFoundError, match="no file of word vectors .*x.vec"): space(tmp_path / "x.vec")


# ---- embedders

def test_embedders_need_words():
    t = space("hash/32", ["red", "traffic light", "red"])
    assert t.words == ["red", "traffic light"] and t.dim == 32 and np.allclose(np.linalg.norm(t.vectors, axis=1), 1)
    said = space("hash/32", ["red"], prompt="a photo of a {}")
    assert not np.allclose(said.vectors[0], t.vectors[0]) and (space(**said.spec).vectors == said.vectors).all()
    for kw, why in (dict(), "no words of its own"), (dict(vocabulary=["a"], first=2), "first=2 is for files"), (dict(vocabulary=["a"], prompt="photo"), "once"), (dict(vocabulary=[]), "is empty"):
        with pytest.raises(ValueError, match=why): space("hash/32", **kw)
    with pytest.raises(ValueError, match="unknown embedder 'hush'"): space("hush", ["a"])


def test_a_prompt_is_not_for_files(tmp_path):
    write(tmp_path / "w.txt")
    with pytest.raises(ValueError, match="the prompt 'a {}' is for embedders"): space(tmp_path / "w.txt", prompt="a {}", cache=tmp_path)


def test_clip_text_as_a_word_table():
    pytest.importorskip("open_clip")
    t = space("clip/RN50@random", ["red", "a large circle"], seed=3)
    assert t.vectors.shape == (2, t.dim) and np.allclose(np.linalg.norm(t.vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(space(**t.spec).vectors, t.vectors, atol=1e-6) and not np.allclose(space("clip/RN50@random", ["red"], seed=4).vectors, t.vectors[:1], atol=1e-3)


# ---- tables and lists

def test_tables_of_ones_own():
    t = make_table(["a", "b"], [[1, 2], [3, 4]], source="toy")
    assert isinstance(t, Table) and t.dim == 2 and t.spec == {"source": "toy"} and repr(t) == "Table(2 words, 2 numbers each, toy)" and t.only(["b"]).vectors.tolist() == [[3, 4]]
    for words, v, said in ((["a"], [[1], [2]], "1 words need as many rows"), (["a"], [1.], "need as many rows"), (["a", "b"], [[1], [np.nan]], "'b' is not finite")):
        with pytest.raises(ValueError, match=said): make_table(words, v)


@pytest.mark.parametrize("name, text, found", [("w.txt", "a\r\n b c \n\na\n", ["a", "b c"]), ("w.txt", "\ufeffa\nb", ["a", "b"]), ("w.json", '["x", "y", "x"]', ["x", "y"]), ("w.json", '{"x": 3, "y": 1}', ["x", "y"])])
def test_word_lists(tmp_path, name, text, found):
    (tmp_path / name).write_text(text, encoding="utf-8")
    told = Skipped()
    assert read_words(tmp_path / name, told) == found and len(told) == (text.count("a\n") == 1 and "\r" in text or text.count('"x"') == 2)


def test_bad_word_lists(tmp_path):
    p = tmp_path / "w.json"
    for text, said in ("[1]", "not a JSON list of words"), ("[", "is not JSON"), ("3", "not a JSON list"), ("[]", "holds no words"):
        p.write_text(text)
        with pytest.raises(ValueError, match=said): read_words(p)
    (tmp_path / "w.txt").write_bytes(b"ok\n\xe9\n")
    with pytest.raises(ValueError, match="is not UTF-8 text .byte 3 is 0xe9"): read_words(tmp_path / "w.txt")
    with pytest.raises(FileNotFoundError, match="no word list"): read_words(tmp_path / "no")
