"Words: the published ones, others from files, and what a bad file gets."
import json

import pytest

from vlnotes.vocabulary import STENCILS, Vocabulary, circle, named, published, rectangle

V = published()


def test_published_words():
    assert " ".join(V.attributes) == ("zero one two three four five six seven eight nine red yellow green blue purple "
                                      "rectangle circle small medium large")
    assert list(V.first) == [0, 10, 15, 17, 20] and len(V.sentences) == 77 == len(set(V.sentences)) == len(V.sentence_attribute)
    assert V.first_sentence[-1] == 77 and list(V.n_templates) == [4, 4, 4, 3]
    for s, a in zip(V.sentences, V.sentence_attribute):
        assert [w for ws in named(s).values() for w in ws] == [V.attributes[a]]
    assert V.sentences[V.first_sentence[8]] == "the image shows a eight"


def test_stencils_against_their_definition():
    for k in range(1, 8):
        box = {(r, c) for r in range(-1, k + 2) for c in range(-1, k + 2)}
        assert set(rectangle(k)) == box - {(r, c) for r in range(k + 1) for c in range(k + 1)}
    for radius in (1, 3, 5):
        p = set(circle(radius))
        assert p == {(-r, c) for r, c in p} == {(c, r) for r, c in p}  # symmetric
        assert all(abs((r*r + c*c)**.5 - radius) < .75 for r, c in p)
    assert circle(3) == tuple(sorted({(s*a, t*b) for a, b in ((3, 0), (3, 1), (2, 2), (0, 3), (1, 3)) for s in (1, -1) for t in (1, -1)}))


def test_nothing_ever_clips():
    for steps in STENCILS.values():
        assert all(0 <= at + d <= 27 for p in steps for d in p for at in (5, 19))


def test_subset_and_json_round_trip(tmp_path):
    v = V.subset("nine", "red", "circle", "large")
    assert len(v.attributes) == 16 and "the shape is large" not in v.sentences
    assert set(v.stencils) == {("rectangle", "small"), ("rectangle", "medium")}
    for w in v, V:
        (tmp_path / "v.json").write_text(json.dumps(w.to_json()))
        assert Vocabulary.from_json(tmp_path / "v.json") == w == Vocabulary.from_json(w.to_json())
    bare = V.subset("rectangle", "circle")
    assert bare.factors["size"] == () and len(bare.attributes) == 15


def test_additions():
    v = Vocabulary.from_json({"digits": ["two", "seven"], "colours": ["red", "blue"], "leave_out": ["circle"], "add": {
        "colours": {"dark red": [90, 0, 0]}, "sizes": ["huge"], "shapes": ["dot"], "templates": {"size": ["how X it is"]},
        "stencils": {"rectangle": {"huge": [[-5, 8], [8, -5]]}, "dot": {z: [[0, 0]] for z in ("small", "medium", "large", "huge")}}}})
    assert v.attributes == ("two", "seven", "red", "blue", "dark red", "rectangle", "dot", "small", "medium", "large", "huge")
    assert "how huge it is" in v.sentences and len(v.sentences) == 2*4 + 3*4 + 2*4 + 4*4
    assert named("A dark red image", v)["colour"] == ["red", "dark red"]  # a word inside another is mentioned too


def test_named():
    assert named("reduced, bluish fours") == dict(digit=[], colour=[], shape=[], size=[])
    assert named("RED . blue. the two-circle") == dict(digit=["two"], colour=["red", "blue"], shape=["circle"], size=[])
    assert named("") == named(" . . ")


@pytest.mark.parametrize("bad, said", [
    ({"digits": ["ten"]}, "no digit 'ten'"), ({"digits": []}, "at least one digit"), ({"colours": {}}, "at least one digit and one colour"),
    ({"colour": []}, "no key 'colour'; the nearest is 'colours'"), ({"colours": ["orange"]}, "no colour 'orange'"),
    ({"colours": {"red": [255, 0]}}, "'red' has the RGB value"), ({"colours": {"red": [256, 0, 0]}}, "from 0 to 255"),
    ({"colours": {"red": [1., 0, 0]}}, "whole numbers"), ({"colours": {"red": "#ff0000"}}, "RGB value"), ({"colours": 3}, "wrong form"),
    ({"colours": "red"}, "wrong form"), ({"digits": "one"}, "wrong form"), ({"digits": [1]}, "wrong form"), ({"add": []}, "wrong form"),
    ({"sizes": []}, "at least one size"), ({"add": {"shapes": ["star"]}}, "no stencil for 'small' 'star'"),
    ({"add": {"sizes": ["huge"]}}, "no stencil for 'huge' 'rectangle'"), ({"add": {"digits": ["ten"]}}, "no key in 'add' 'digits'"),
    ({"stencils": {"circle": {"small": [[-6, 0]]}}}, "leaves its cell"), ({"stencils": {"circle": {"small": [[0, 9]]}}}, "leaves its cell"),
    ({"stencils": {"circle": {"small": [[0]]}}}, "leaves its cell"), ({"stencils": {"circle": {"small": []}}}, "no stencil"),
    ({"stencils": {"circle": [[0, 0]]}}, "wrong form"), ({"templates": {"digit": ["no word"]}}, "the word X once"),
    ({"templates": {"digit": ["X and X"]}}, "the word X once"), ({"templates": {"digit": ["a . X"]}}, "no full stop"),
    ({"templates": {"digit": []}}, "no template for the factor 'digit'"), ({"templates": {"digits": ["X"]}}, "nearest is 'digit'"),
    ({"add": {"templates": {"colour": ["the color is X"]}}}, "occurs twice"), ({"add": {"colours": {"one": [1, 1, 1]}}}, "occurs twice"),
    ({"add": {"colours": {" ": [1, 1, 1]}}}, "is empty"), ({"leave_out": ["rde"]}, "word to leave out: 'rde'; the nearest is 'red'"), ([], "wrong form"),
])
def test_bad_vocabularies_get_one_sentence(tmp_path, bad, said):
    path = tmp_path / "words.json"
    path.write_text(json.dumps(bad))
    with pytest.raises(ValueError) as e: Vocabulary.from_json(path)
    assert said in str(e.value) and "words.json" in str(e.value) and "\n" not in str(e.value)


def test_not_json(tmp_path):
    (tmp_path / "v.json").write_text("{")
    with pytest.raises(ValueError, match="v.json: this is not JSON"): Vocabulary.from_json(tmp_path / "v.json")
    with pytest.raises(FileNotFoundError): Vocabulary.from_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no word to leave out: 'blu'; the nearest is 'blue'"): V.subset("blu")
