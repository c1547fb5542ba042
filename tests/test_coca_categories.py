"Labels, groups, the readers of answers, and shares: the counting is checked by hand, by brute force and by properties."
import csv
import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from vlnotes.coca import categories as C
from vlnotes.coca.categories import GROUPS, LABELS, UNKNOWN, Parsed, by_layer, causes, chart, parse, prominent, read_csv, read_groups, shares, write_csv, write_groups
from vlnotes.notes import Note, Notes

WORD = st.text("abc xyzé'-", min_size=1, max_size=8)
PHRASES = st.lists(st.tuples(WORD, st.lists(st.sampled_from([*LABELS, "", "gold"]), min_size=1, max_size=3).map(tuple)), min_size=1, max_size=9)


def answer(phrases, comma=", "): return "{" + comma.join(f"{json.dumps(p, ensure_ascii=False)}: {json.dumps(list(v))}" for p, v in phrases) + "}"
def says(*labels): return Parsed(tuple((f"p{i}", (k, "", "")) for i, k in enumerate(labels)))


# ---- labels, groups, prompts

def test_the_lists():
    assert len(set(LABELS)) == 58 and len(GROUPS) == 151 and len(set(GROUPS.values())) == 35 and set(LABELS) <= set(GROUPS)
    assert GROUPS["atmosphere"] == UNKNOWN == GROUPS[""] and GROUPS["furniture"] == "indoor scene" and GROUPS["graffiti"] == "outdoor scene" and GROUPS["surface"] == "material & texture"
    assert set(C.STACK) <= set(GROUPS.values()) and len(C.STACK) == 16


@pytest.mark.parametrize("suffix", [".json", ".csv"])
def test_a_table_of_groups_can_be_edited(tmp_path, suffix):
    mine = GROUPS | {"size": "how large", "gold": "color"}
    assert read_groups(write_groups(tmp_path/f"g{suffix}", mine)) == mine
    got = shares({"a": [says("size", "gold", "numbers")]}, mine)
    assert np.allclose([got.column(g)[0] for g in ("how large", "color", "quantity & number & size")], 100 / 3)


@pytest.mark.parametrize("name, text, words", [
    ("a.txt", "", "not '.txt'"), ("a.json", "{", "a.json is not JSON"), ("a.json", "[1]", "group: list of labels"), ("a.json", '{"color": "red"}', "group: list of labels"),
    ("a.json", '{"a": [1]}', "label 1 is not a text"), ("a.json", '{"a": ["x"], "b": ["x"]}', "'x' stands in a, b"), ("a.json", '{"a": ["x"]}', "no group for 'male'"),
    ("a.json", '{"a": ["x"], "a": ["x"]}', "'x' stands in a, a"), ("a.csv", "label,kind\nx,y\n", "columns label and group"), ("a.csv", "label,group\ncolor,\n", "'color' has the group ''"),
    ("a.csv", "label,group\ncolor,a\ncolor,b\n", "'color' stands in a, b")])
def test_a_bad_table_is_one_sentence(tmp_path, name, text, words):
    (tmp_path/name).write_text(text)
    with pytest.raises(ValueError, match=words) as e: read_groups(tmp_path/name)
    assert name in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError, match="no file"): read_groups(tmp_path/"none.json")


def test_prompts():
    for p in C.PROMPTS.values():
        m = p.messages("the caption")
        assert [x["role"] for x in m] == ["system", *["user", "assistant"] * 2, "user"] and m[-1]["content"] == "the caption" and all(k in m[0]["content"] for k in LABELS)
    broken = C.PROMPTS["v1"].turns[1][1]
    assert parse(broken).problem == "malformed" and "UKNOWN" in broken and len(parse(broken, True).phrases) == 8 # the published example lacks a comma and misspells
    outside = {k for _, a in C.PROMPTS["v1"].turns for _, v in parse(a, True).phrases for k in v} - {*LABELS, ""}
    assert {"action", "relation"} <= outside
    for _, a in C.PROMPTS["v2"].turns: assert not parse(a).problem and all(v[0] in LABELS and set(v) <= {*LABELS, ""} for _, v in parse(a).phrases)
    with pytest.raises(ValueError, match="no prompt 'v3'"): C.prompt("v3")
    assert C.prompt(C.PROMPTS["v1"]) is C.PROMPTS["v1"]
    own = C.Prompt("v1", "other words", ())
    assert own.id != C.PROMPTS["v1"].id # the id follows the words, not the name


# ---- reading

@pytest.mark.parametrize("text, problem", [
    (None, "nothing"), ("", "nothing"), ("  \n", "nothing"), ("It shows a dog.", "prose"), ('{"a": ["color","",""], "b": ["si', "truncated"), ('{"a": ["color"] "b": ["size"]}', "malformed"),
    ('{"a": ["color"],}', "malformed"), (r'{"\s": ["color"]}', "malformed"), ('Here: {"a": ["color"]}', "malformed"), ("[1, 2]", "no object"), ("null", "no object"), ("{}", "no phrase"),
    ('{"a": {"b": ["color"]}}', "no phrase"), ("[" * 100_000, "prose"), ('{"a":' * 100_000, "truncated")])
def test_what_cannot_be_read_has_a_reason(text, problem):
    assert parse(text).problem == problem and parse(text).lost and not parse(text).repaired and problem in C.PROBLEMS
    parse(text, True)


def test_strict_reading():
    assert parse('{"a": ["color","",""], "a": ["size"], "b": []}').phrases == (("a", ("color", "", "")), ("a", ("size",)), ("b", ()))
    mixed = parse('{"a": ["color"], "b": {"c": ["size"]}, "d": "animal", "e": 3}')
    assert mixed.phrases == (("a", ("color",)),) and mixed.ignored == 3
    assert parse('{"a": [null, 1]}').phrases == (("a", ("", "1")),)


@pytest.mark.parametrize("text, want", [
    ('{"red": ["color","",""], "ball": ["toys","obj', [("red", "color"), ("ball", "toys")]), ('{"red": ["color","",""], "ball": ["', [("red", "color")]), ('{"red": ["color"], "ba', [("red", "color")]),
    ('{"red": ["color"] "ball": ["toys"]}', [("red", "color"), ("ball", "toys")]), ('{"red": ["color" "size"], "x": ["toys"],}', [("red", "color"), ("x", "toys")]),
    ('{"red": ["color","","" "ball": ["toys"]}', [("red", "color"), ("ball", "toys")]), (r'{"\": ["UNKNOWN"], "man\'s": ["person"]}', [("\\", "UNKNOWN"), ("man's", "person")]),
    ('Sure!\n```json\n{"a": ["color"], "a": ["size"]}\n```\nAnything else?', [("a", "color"), ("a", "size")]), ('{"red": "color", "x": ["toys",]}', [("red", "color"), ("x", "toys")]),
    ('[{"a": ["color"]}, {"b": ["size"]}]', [("a", "color"), ("b", "size")]), ('{"say \\"hi\\"": ["text"], "b": ["si', [('say "hi"', "text")])])
def test_the_tolerant_reader(text, want):
    got = parse(text, tolerant=True)
    assert [(p, v[0]) for p, v in got.phrases if v] == want and got.problem and got.repaired


def test_both_readers_agree_where_nothing_is_wrong():
    text = '{"a": ["color","",""], "a": ["size"], "b": [], "c": {"d": ["x"]}}'
    assert parse(text) == parse(text, True)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text('{}[]",:\\ab '), st.binary().map(lambda b: b.decode("latin1"))), st.booleans())
def test_reading_never_raises(text, tolerant):
    p = parse(text, tolerant)
    assert p.lost <= bool(p.problem) and (not p.problem or p.problem in C.PROBLEMS)


@settings(max_examples=200, deadline=None)
@given(PHRASES, st.data())
def test_a_cut_answer_gives_a_beginning_of_the_whole(phrases, data):
    text = answer(phrases)
    assert parse(text).phrases == tuple(phrases)
    cut = text[:data.draw(st.integers(0, len(text) - 1))]
    got = parse(cut, True).phrases
    assert len(got) <= len(phrases)
    for (p, v), (q, w) in zip(got, phrases): assert p == q and v == w[:len(v)] and v
    ended = cut.count("]") # every phrase whose list was closed is there
    assert len(got) >= ended


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=9), st.just(("color",))), min_size=1, max_size=5))
@example([("\"", ("color",)), ("\\", ("color",)), ("a\": [\"b", ("color",))])
def test_any_text_may_be_a_phrase(phrases): assert parse(answer(phrases)).phrases == tuple(phrases)


# ---- shares

def brute(parsed, groups=GROUPS): # the published algorithm in exact arithmetic
    rows = []
    for p in parsed:
        c = Counter(groups.get(v[0] if v else "", UNKNOWN) for _, v in p.phrases)
        if c: rows.append({g: Fraction(100 * n, sum(c.values())) for g, n in c.items()})
    return {g: float(sum((r.get(g, 0) for r in rows), Fraction(0)) / len(rows)) for g in {*groups.values()}} if rows else None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PHRASES, max_size=6), min_size=1, max_size=4), st.randoms())
def test_shares_equal_brute_force_and_sum_to_100(layers, random):
    parsed = {f"l{i}": [parse(answer(p)) for p in layer] + [parse("prose")] for i, layer in enumerate(layers)}
    got = shares(parsed)
    for i, (_, v) in enumerate(parsed.items()):
        if (want := brute(v)) is None: assert np.isnan(got.values[i]).all() and got.kept[i] == 0; continue
        assert np.allclose(got.values[i], [want[g] for g in got.groups], atol=1e-9)
        assert np.isclose(got.values[i].sum(), 100) and np.isclose(got.causes[i].sum(), got.column(UNKNOWN)[i]) and got.losses["prose"][i] == 1
    for more in dict(weight="phrase"), dict(first=False), dict(split=True), dict(weight="phrase", first=False, split=True):
        rows = shares(parsed, **more).values
        assert np.allclose(rows[got.kept > 0].sum(1), 100)
    for v in parsed.values(): random.shuffle(v) # captions have no order
    assert np.allclose(shares(parsed).values, got.values, equal_nan=True)


def test_hand_cases():
    def one(*parsed, **k):
        s = shares({"a": list(parsed)}, **k)
        return {g: round(float(v), 4) for g, v in zip(s.groups, s.values[0]) if v}
    assert one(parse('{"red": ["color"], "red": ["color"], "dog": ["animal"]}')) == {"color": 66.6667, "animal": 33.3333} # a repeated key counts twice
    assert one(says("color"), says(*["animal"] * 4)) == {"color": 50, "animal": 50} # a caption is a caption
    assert one(says("color"), says(*["animal"] * 4), weight="phrase") == {"color": 20, "animal": 80}
    assert one(says("gold")) == one(says("")) == one(says("atmosphere")) == one(says(UNKNOWN)) == one(parse('{"a": []}')) == {UNKNOWN: 100}
    assert one(says("color"), parse("no"), parse("{}"), parse("")) == {"color": 100} # dropped, not counted as UNKNOWN
    assert one(Parsed((("a", ("color", "animal", "")),)), first=False) == {"color": 50, "animal": 50}
    assert one(parse('{"a": ["color"], "b": {"c": ["animal"]}}')) == {"color": 100} # nested objects are no phrases
    assert one(says("Color")) == {UNKNOWN: 100} # the table is exact


def test_unknown_is_split_by_cause():
    s = shares({"a": [says(UNKNOWN, "", "gold", "atmosphere", "color")]}, split=True)
    assert np.allclose([s.column(f"UNKNOWN ({c})")[0] for c in C.CAUSES], 20) and UNKNOWN not in s.groups and np.allclose(s.causes, 20)
    merged = shares({"a": [says(UNKNOWN, "", "gold", "atmosphere", "color")]})
    assert merged.column(UNKNOWN)[0] == 80 and np.allclose(merged.causes, s.causes)


def test_what_the_rows_rest_on():
    s = shares({"a": [says("color"), parse("no"), parse('{"a": ["color"', True)], "b": [parse(None), parse("{}"), parse('{"a": ["color"')]}, captions={"a": ["x", "x", "y"], "b": ["", "z", "z"]})
    assert s.captions.tolist() == [3, 3] and s.kept.tolist() == [2, 0] and s.repaired.tolist() == [1, 0] and s.distinct.tolist() == [2, 2]
    assert {k: v.tolist() for k, v in s.losses.items() if v.any()} == {"prose": [1, 0], "nothing": [0, 1], "no phrase": [0, 1], "truncated": [0, 1]}
    assert all(s.captions - s.kept == sum(s.losses.values())) and np.isnan(s.values[1]).all()


def test_intervals():
    rng = np.random.default_rng(0)
    many = {"a": [says("color" if rng.random() < .3 else "animal") for _ in range(400)], "b": [says("color")] * 5, "c": [parse("no")]}
    s, again, other = (shares(many, resamples=500, seed=k) for k in (0, 0, 1))
    k = s.groups.index("color")
    assert (s.low[:2] <= s.values[:2]).all() and (s.values[:2] <= s.high[:2]).all() and np.isnan(s.low[2]).all()
    p = s.values[0, k]
    assert np.isclose(s.high[0, k] - s.low[0, k], 2 * 1.96 * np.sqrt(p * (100 - p) / 400), rtol=.15) and s.low[1, k] == s.high[1, k] == 100
    assert np.array_equal(s.low, again.low, equal_nan=True) and not np.array_equal(s.low, other.low, equal_nan=True)


def test_bad_requests():
    with pytest.raises(ValueError, match="at least one layer"): shares({})
    with pytest.raises(ValueError, match="not 'token'"): shares({"a": []}, weight="token")
    with pytest.raises(ValueError, match="layer a has 2 captions and 1 answers"): shares({"a": [says("color")]}, captions={"a": ["x", "y"]})
    with pytest.raises(ValueError, match="no group for 'male'"): shares({"a": []}, {"color": "color"})
    with pytest.raises(ValueError, match="no group 'colour'"): shares({"a": [says("color")]}).column("colour")


# ---- table and chart

def test_the_table_has_the_originals_shape(tmp_path):
    s = shares({f"layer_{i}": [says("color", *["animal"] * i)] for i in range(3)} | {"layer_3": [parse("no")]})
    rows = list(csv.reader(open(write_csv(s, tmp_path/"s.csv"), newline="")))
    assert len(rows) == 5 and rows[0] == sorted({*GROUPS.values()}) and rows[0][0] == UNKNOWN and all(len(r) == 35 for r in rows)
    assert [sum(map(float, r)) for r in rows[1:4]] == pytest.approx([100] * 3) and set(rows[4]) == {""}
    back = read_csv(tmp_path/"s.csv")
    assert back.layers == s.layers and np.array_equal(back.values, s.values, equal_nan=True)


@pytest.mark.parametrize("text, words", [("", "row 0"), ("a,b\n60,50\n", "row 1 sums to 110"), ("a,b\n50\n", "as many numbers"), ("a,b\n50,x\n", "as many numbers"), ("a,b\n50,50\n1,2\n", "row 2")])
def test_a_foreign_table_is_refused(tmp_path, text, words):
    (tmp_path/"s.csv").write_text(text)
    with pytest.raises(ValueError, match=words) as e: read_csv(tmp_path/"s.csv")
    assert "s.csv" in str(e.value)
    with pytest.raises(ValueError, match="2 layers"): (tmp_path/"t.csv").write_text("a\n100\n"); read_csv(tmp_path/"t.csv", ["x", "y"])


def table(**columns): return C.Shares(tuple(f"l{i}" for i in range(len(next(iter(columns.values()))))), tuple(sorted(columns)), np.array([columns[k] for k in sorted(columns)], float).T)


def test_the_five_percent_rule():
    s = table(color=[0, 5.], person=[4.999, 4.999], animal=[95, 0], zebra=[0, 90], UNKNOWN=[0, np.nan])
    assert prominent(s) == ("color", "animal", "zebra") and prominent(s, 4) == ("color", "animal", "person", "zebra")
    assert prominent(table(**{g: [6.] for g in reversed(C.STACK)})) == C.STACK


def drawn(**k):
    layers = {f"layer_{i}": [says(*["color"] * (3 - i), UNKNOWN, *["person", "actions"] * i)] * 4 + [parse("")] for i in range(4)}
    return shares(layers, captions={k: ["a", "a", "b", "c", "d"][:5] for k in layers}, **k)


def areas(ax): return [p for p in ax.collections if p.get_label() and not p.get_label().startswith("_")]


def test_the_chart_draws_what_is_counted():
    s, ax = drawn(), Figure((7, 4)).add_subplot()
    assert chart(s, ax) is ax and [p.get_label() for p in areas(ax)] == list(prominent(s)) == ["color", UNKNOWN, "action", "person"]
    tops = [max(v[1] for v in p.get_paths()[0].vertices if v[0] == 3) for p in areas(ax)]
    assert np.allclose(tops, np.cumsum([s.column(g)[3] for g in prominent(s)])) # each area lies on those below
    strip, = ax.child_axes
    assert np.allclose(strip.lines[0].get_ydata(), 4 / 5)
    assert not chart(s, Figure().add_subplot(), distinct=False).child_axes
    for a in (ax, chart(s, Figure().add_subplot(), colours="tab20"), chart(drawn(split=True), Figure().add_subplot()), chart(shares({"only": [says("color")]}), Figure().add_subplot())):
        a.figure.savefig("/dev/null", format="png")
    with pytest.raises(ValueError, match="no group reaches 101 percent"): chart(s, Figure().add_subplot(), least=101)


def test_a_group_keeps_its_colour():
    def colour(s): return {p.get_label(): p.get_facecolor()[0].tolist() for p in areas(chart(s, Figure().add_subplot()))}
    one, two = colour(drawn()), colour(shares({"a": [says("person", "clothing", "animal", "")]}))
    assert one["person"] == two["person"] and one[UNKNOWN] == two[UNKNOWN] and len({tuple(c) for c in two.values()}) == len(two)


def test_causes_are_drawn_within_the_axis():
    s, ax = shares({"a": [parse("")] * 9 + [says("", "color")], "b": [says("gold", "color")]}), Figure().add_subplot()
    assert causes(s, ax) is ax and ax.get_ylim()[1] > 90 and [p.get_label() for p in areas(ax)] == list(C.CAUSES)
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([90, 0])


def test_notes_by_layer():
    notes = Notes([Note(i, "e", layer, f"{i}{layer}", 0., "none", "coca") for i in "xy" for layer in ("layer_9", "layer_10")])
    assert by_layer(notes) == {"layer_9": ["xlayer_9", "ylayer_9"], "layer_10": ["xlayer_10", "ylayer_10"]} and list(by_layer(notes, range(4)).values()) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="3 values for 4 captions"): by_layer(notes, range(3))
    with pytest.raises(ValueError, match="0 captions"): by_layer(Notes())
