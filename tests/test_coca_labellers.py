"Labellers: each caption asked once, nothing lost; a real local endpoint on its worst days; a local model held to the form of an answer."
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from endpoint import endpoint

from vlnotes import docmnist, launcher
from vlnotes.coca import local, served
from vlnotes.coca.categories import LABELS, PROMPTS, parse, prompt, shares
from vlnotes.coca.labellers import Answers, Lexicon, Local, Served, key, label, make, merge, named, read_cache
from vlnotes.coca.lexicon import phrases
from vlnotes.coca.local import Held, grammar, guide, spans
from vlnotes.notes import Note, Notes

TEXTS = ["a red bus", "two dogs", "a cat on a chair", "snow", "a man riding a horse", "gygydoodle gold"]
GOOD = Lexicon()(TEXTS)


class Counting:
    "A labeller that remembers what it was asked; `wrong[caption]` lists its first answers."
    name, version = "counting", "1"
    def __init__(self, **wrong): self.wrong, self.asked = wrong, []
    def __call__(self, captions):
        self.asked.append(list(captions))
        return [self.wrong[c].pop(0) if self.wrong.get(c) else Lexicon()([c])[0] for c in captions]


# ---- the lexicon

@pytest.mark.parametrize("caption, want", [
    ("a man riding a motorcycle on a dirt road .", ["person", "actions", "vehicle", "position", "outdoor scene"]), ("a bathroom with a sink and a toilet", ["rooms", "object", "object"]),
    ("2 0 1 6 2 x", ["numbers", "UNKNOWN"]), ("three kids", ["person"]), ("a large", ["size"]), ("the digit appears to be red", ["numbers", "color"]), ("ice cream", ["dessert"]),
    ("a zebra and two tigers", ["animal", "animal"]), ("doodle doodle", ["UNKNOWN", "UNKNOWN"]), ("red , gold", ["color", "color"]), ("", []), ("of the and", []), ("berries", ["fruits"]),
    ("knives", ["object"]), ("sitting", ["actions"]), ("a woman lying on grass", ["person", "actions", "position", "nature"]), ("a woman's hat", ["person", "accessories"])])
def test_the_lexicon(caption, want): assert [v[0] for _, v in phrases(caption)] == want


def test_the_lexicon_answers_in_form():
    rng = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    some = [" ".join(rng.choice([*words, "red", "zz", "the", "3", "large", "near"], rng.integers(0, 20))) for _ in range(200)]
    for c, a in zip(some, Lexicon()(some)):
        p = parse(a)
        assert p.problem in ("", "no phrase") and all(len(v) == 3 and v[0] in LABELS and set(v) <= {*LABELS, ""} for _, v in p.phrases)
        along = iter(c.split())
        assert all(w in along for said, _ in p.phrases for w in said.split()) # the caption's words, in its order


def test_the_lexicon_is_right_about_the_drawn_world():
    truth = {"digit": "numbers", "colour": "color", "shape": "shape", "size": "size"}
    scenes = docmnist.generate(300, seed=9, split="train")
    of = {w: truth[f] for f, words in scenes.vocab.factors.items() for w in words}
    right = [v[0] == of[p.split()[-1]] for t in scenes.texts for p, v in phrases(t) if p.split()[-1] in of]
    said = [w for t in scenes.texts for w in t.replace(".", " ").split() if w in of]
    assert all(right) and len(right) == len(said) > 3000


# ---- asking and keeping

def test_duplicates_are_asked_once_and_the_order_is_kept(tmp_path):
    ask = Counting()
    many = TEXTS * 3 + TEXTS[::-1]
    got = label(many, ask, tmp_path/"c", batch=4)
    assert got == GOOD * 3 + GOOD[::-1] and [c for part in ask.asked for c in part] == TEXTS and [len(p) for p in ask.asked] == [4, 2]
    assert isinstance(got, Answers) and (got.asked, got.found, got.failed, got.damaged) == (6, 0, 0, 0)
    again = label(many, ask, tmp_path/"c")
    assert again == got and (again.asked, again.found) == (0, 6) and len(ask.asked) == 2 and len(list((tmp_path/"c").iterdir())) == 1


def test_the_cache_knows_who_answered(tmp_path):
    ask = Counting()
    label(TEXTS, ask, tmp_path/"c.jsonl")
    ask.version = "2"
    assert label(TEXTS, ask, tmp_path/"c.jsonl").asked == 6
    assert key(ask, "a") != key(Lexicon(), "a") and named(print) == ("print", "")
    for bad in (lambda c: c, "no labeller", None):
        with pytest.raises(ValueError, match="callable with a name"): label(TEXTS, bad)
    record = json.loads((tmp_path/"c.jsonl").read_text().splitlines()[0])
    assert record == {"key": key(Counting(), TEXTS[0]), "labeller": "counting", "version": "1", "caption": TEXTS[0], "answer": GOOD[0], "ok": True}


@pytest.mark.parametrize("answer, problem, usable", [
    ("It is a bus.", "prose", False), ('{"red": ["col', "truncated", False), ('{"red": ["color"], "b', "truncated", True), ("", "nothing", False), (None, "nothing", False), ("{}", "no phrase", False),
    ('{"red": ["color"], "red": ["color"]}', "", True), ('{"red": ["hue"]}', "", True)])
def test_bad_answers(tmp_path, answer, problem, usable):
    ask = Counting(**{"a red bus": [answer] * 3})
    got = label(TEXTS, ask, tmp_path/"c", tries=3)
    times = sum(part.count("a red bus") for part in ask.asked)
    assert times == (1 if usable else 3) and got.failed == (not usable) and got[1:] == GOOD[1:]
    assert got[0] == (answer or "") and parse(got[0]).problem == problem # the raw answer is what is kept
    if not usable:
        bad, = [r for r in read_cache(tmp_path/"c")[0].values() if not r["ok"]]
        assert bad["caption"] == "a red bus" and bad["why"] == problem and bad["answer"] == (answer or "")
        assert label(TEXTS, ask, tmp_path/"c", again=False) == got and sum(p.count("a red bus") for p in ask.asked) == 3 # left as it is
        well = label(TEXTS, ask, tmp_path/"c")
        assert well == GOOD and (well.asked, well.failed) == (1, 0) # a second run takes it up again
        assert label(TEXTS, ask, tmp_path/"c").asked == 0 # and the good answer wins
    found = shares({"a": [parse(a, tolerant=True) for a in got]})
    assert found.captions[0] == 6 and found.kept[0] == 5 + usable and np.isclose(found.values.sum(), 100)


def test_what_is_right_the_second_time_is_no_failure(tmp_path):
    got = label(TEXTS, Counting(snow=["prose"], **{"two dogs": [None, ""]}), tmp_path/"c")
    assert got == GOOD and got.failed == 0 and all(r["ok"] for r in read_cache(tmp_path/"c")[0].values())


def test_a_labeller_that_breaks_the_agreement():
    def short(captions): return ["{}"]
    def numbers(captions): return [1 for _ in captions]
    with pytest.raises(ValueError, match="short gave 1 answers for 6 captions"): label(TEXTS, short)
    with pytest.raises(ValueError, match="numbers gave 1 for 'a red bus'"): label(TEXTS, numbers)
    with pytest.raises(ValueError, match="a caption is a text, not 3"): label(["a", 3], Lexicon())
    with pytest.raises(ValueError, match="at least 1"): label(["a"], Lexicon(), tries=0)


def test_blank_captions_are_not_asked():
    ask = Counting()
    got = label(["", "snow", " \n"], ask)
    assert got == ["{}", GOOD[3], "{}"] and ask.asked == [["snow"]] and got.failed == 0 and label([], ask) == []


def test_a_dead_line_loses_nothing(tmp_path):
    class Dies(Counting):
        left = 3
        def __call__(self, captions):
            if not self.left: raise ConnectionResetError("the line is dead")
            self.left -= 1
            return super().__call__(captions)
    ask = Dies(**{"two dogs": ["prose"]})
    with pytest.raises(OSError, match="^the line is dead; 2 of 6 answers are kept in .*c, and the same command goes on from there$"): label(TEXTS, ask, tmp_path/"c", batch=1)
    assert sorted((r["caption"], r["ok"]) for r in read_cache(tmp_path/"c")[0].values()) == [("a cat on a chair", True), ("a red bus", True), ("two dogs", False)]
    ask.left = 99
    got = label(TEXTS, ask, tmp_path/"c", batch=1)
    assert got == GOOD and (got.asked, got.found) == (4, 2)
    with pytest.raises(OSError, match="no cache was given, so nothing is kept"): label(TEXTS, Dies(), batch=1)


def test_damaged_lines_are_counted_and_asked_again(tmp_path):
    path = tmp_path/"c.jsonl"
    label(TEXTS, Lexicon(), path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff\n[1]\n{}\n" + b'{"key": 1, "answer": "", "ok": true}\n' + b"".join(lines[2:5]) + lines[5][:40]) # cut off in the middle of a line
    got = label(TEXTS, Lexicon(), path)
    assert got == GOOD and (got.asked, got.found, got.damaged) == (2, 4, 5)
    assert label(TEXTS, Lexicon(), path).asked == 0
    (tmp_path/"plain").write_text("")
    with pytest.raises(ValueError, match="plain is a file"): label(TEXTS, Lexicon(), tmp_path/"plain")


def test_odd_captions_come_back(tmp_path):
    odd = ['say "hi"', "line\nbreak", "\u2028 separator", "back\\slash", "naïve café", "null \x00 byte"]
    assert label(odd, Lexicon(), tmp_path/"c") == Lexicon()(odd) and label(odd, Lexicon(), tmp_path/"c").asked == 0


WORKER = """
import sys, time
from vlnotes.coca.labellers import label, Lexicon
class Slow(Lexicon):
    name = "slow"
    def __call__(self, captions): time.sleep(float(sys.argv[4])); return super().__call__(captions)
texts = [f"a red bus {i}" for i in range(40)]
k, n = int(sys.argv[2]), int(sys.argv[3])
print("begins", flush=True)
print(label(texts[k::n], Slow(), sys.argv[1], batch=1).asked)
"""


def worker(cache, k, n, pause): return subprocess.Popen([sys.executable, "-c", WORKER, str(cache), str(k), str(n), str(pause)], stdout=subprocess.PIPE, text=True)


def test_several_processes_share_a_folder_and_a_kill_costs_nothing(tmp_path):
    both = [worker(tmp_path/"c", k, 2, .01) for k in range(2)]
    assert [p.communicate(timeout=120)[0].split()[-1] for p in both] == ["20", "20"] and [p.returncode for p in both] == [0, 0]
    assert len(list((tmp_path/"c").iterdir())) == 2 # a file each
    assert merge(tmp_path/"c", tmp_path/"all.jsonl") == 40
    texts = [f"a red bus {i}" for i in range(40)]
    class Slow(Lexicon): name = "slow"
    for cache in (tmp_path/"c", tmp_path/"all.jsonl"): assert label(texts, Slow(), cache).asked == 0 and label(texts, Slow(), cache) == Lexicon()(texts)
    one = worker(tmp_path/"k", 0, 1, .05)
    while not list((tmp_path/"k").glob("*")) or sum(len(p.read_text().splitlines()) for p in (tmp_path/"k").glob("*")) < 5: time.sleep(.01)
    one.send_signal(signal.SIGKILL)
    one.wait()
    kept = len(read_cache(tmp_path/"k")[0])
    got = label(texts, Slow(), tmp_path/"k")
    assert 5 <= kept < 40 and got.found == kept and got == Lexicon()(texts)


def test_by_name():
    assert named(make("lexicon", url="http://x"))[0] == "lexicon" and make("served", "m", url="http://h/v1/", concurrency=3, dtype="float32", timeout=None).concurrency == 3
    with pytest.raises(ValueError, match="'lexikon'; the nearest is 'lexicon'"): make("lexikon")
    with pytest.raises(ValueError, match="'concurency'; the nearest is 'concurrency'"): make("served", "m", concurency=3)
    for kind in "served", "local":
        with pytest.raises(ValueError, match=f"{kind} needs a model"): make(kind)


# ---- an endpoint

QUICK = dict(wait=.01, timeout=30, concurrency=3)


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9") # must not stand before this machine itself
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with endpoint() as s: yield s


def test_a_good_day(site, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret-key")
    ask = Served("some/model", site.url, key_env="MY_KEY", version="v1", max_tokens=77, **QUICK)
    assert label(TEXTS * 2, ask, tmp_path/"c") == GOOD * 2 and len(site.asked) == 6
    first = next(a for a in site.asked if a["messages"][-1]["content"] == TEXTS[0])
    assert first["messages"] == PROMPTS["v1"].messages(TEXTS[0]) and (first["model"], first["max_tokens"], first["temperature"]) == ("some/model", 77, 0)
    form = first["response_format"]["json_schema"]["schema"]["additionalProperties"]
    assert set(form["items"]["enum"]) == {*LABELS, ""} and form["maxItems"] == 3
    assert {(p, h["Authorization"]) for p, h in site.heard} == {("/v1/chat/completions", "Bearer sk-very-secret-key")}
    assert "secret" not in "".join(p.read_text() for p in (tmp_path/"c").iterdir()) + repr(vars(ask)) + ask.name + ask.version
    assert ask.name == "served/some/model" and ask.version == PROMPTS["v1"].id
    site.heard.clear()
    Served("m", site.url, key_env="UNSET_KEY", schema=False, **QUICK)(["snow"])
    assert "Authorization" not in site.heard[0][1] and "response_format" not in site.asked[-1]


@pytest.mark.parametrize("mood", ["429", "500", "503", "slow", "hang up", "html", "no choices", "cut", "drip", "huge", "408"])
def test_a_bad_answer_is_asked_for_again(site, mood):
    site.moods = {TEXTS[0]: [mood, mood], TEXTS[3]: [mood]}
    got = label(TEXTS, Served("m", site.url, **QUICK | dict(timeout=1 if mood in ("slow", "drip") else 30))) # only these two keep a client waiting
    assert got == GOOD and got.failed == 0 and len(site.asked) == 9


@pytest.mark.parametrize("mood", ["prose", "truncated", "half", "duplicates", "unknown label", "nothing", "null"])
def test_a_wrong_answer_is_repaired_or_asked_for_again(site, mood):
    site.moods = {TEXTS[0]: [mood]}
    got = label(TEXTS, Served("m", site.url, **QUICK))
    usable = mood in ("truncated", "duplicates", "unknown label")
    assert got[1:] == GOOD[1:] and got.failed == 0 and len(site.asked) == 6 + (not usable) and (got[0] == GOOD[0]) != usable
    if not usable: assert site.asked[-1]["seed"] == 1 and site.asked[-1]["temperature"] > 0 # the same question would get the same answer


def test_retry_after_is_honoured(site):
    site.moods = {"snow": ["429 after 0.4"]}
    began = time.monotonic()
    assert label(["snow"], Served("m", site.url, **QUICK)) == GOOD[3:4] and time.monotonic() - began >= .4
    site.moods = {"snow": ["429 after 60"]}
    began = time.monotonic()
    Served("m", site.url, longest=.1, **QUICK)(["snow"])
    assert .1 <= time.monotonic() - began < 5
    for text, low, high in (("2", 2, 2), (" 1.5 ", 1.5, 1.5), ("Fri, 31 Dec 1999 23:59:59 GMT", 0, 0), ("soon", None, None), (None, None, None), (time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30)), 25, 31)):
        got = served._pause(text)
        assert got is None if low is None else low <= got <= high


def test_one_caption_that_always_fails_is_recorded(site, tmp_path):
    site.always = {TEXTS[1]: "500"}
    got = label(TEXTS, Served("m", site.url, tries=2, **QUICK), tmp_path/"c", tries=2)
    assert got == [GOOD[0], "", *GOOD[2:]] and got.failed == 1
    bad, = [r for r in read_cache(tmp_path/"c")[0].values() if not r["ok"]]
    assert bad["why"] == "status 500, 2 times" and sum(a["messages"][-1]["content"] == TEXTS[1] for a in site.asked) == 4
    site.always = {}
    well = label(TEXTS, Served("m", site.url, **QUICK), tmp_path/"c")
    assert well == GOOD and well.asked == 1


@pytest.mark.parametrize("mood", ["500", "429", "html"])
def test_an_endpoint_that_only_fails_ends_the_run(site, tmp_path, mood):
    many, site.mood = [f"a red bus {i}" for i in range(50)], mood
    with pytest.raises(OSError, match="failed for 3 captions in a row .*0 of 50 answers are kept") as e:
        label(many, Served("m", site.url, tries=1, patience=3, **QUICK), tmp_path/"c")
    assert "\n" not in str(e.value) and len(site.asked) <= 3 + 2 # the two others were under way
    site.mood = ""
    assert label(many, Served("m", site.url, **QUICK), tmp_path/"c") == Lexicon()(many)


def test_a_dead_endpoint_is_one_sentence_and_loses_nothing(site, tmp_path):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); free = s.getsockname()[1]
    with pytest.raises(OSError, match=f"^nobody answers at http://127.0.0.1:{free}/v1/chat/completions .*; 0 of 6 answers are kept in"): label(TEXTS, Served("m", f"http://127.0.0.1:{free}/v1", **QUICK), tmp_path/"c")
    many = [f"a red bus {i}" for i in range(60)]
    with endpoint() as dies: # goes away in the middle
        dies.pause = .02
        ask = Served("m", dies.url, tries=2, **QUICK)
        def told(done, total):
            if done == 20: dies.mood = "401"
        with pytest.raises(OSError, match="answers are kept"): label(many, ask, tmp_path/"c", progress=told)
    kept = len(read_cache(tmp_path/"c")[0])
    assert 20 <= kept < 60
    got = label(many, Served("m", site.url, **QUICK), tmp_path/"c") # the same model at another address
    assert got == Lexicon()(many) and got.found == kept and len(site.asked) == 60 - kept


@pytest.mark.parametrize("code, said, words", [("401", "no such key sk-very-secret-key", "is the key right"), ("403", "", "is the key right"), ("404", "no model", "model must be one it serves"),
                                               ("400", "response_format is not supported", "schema=False"), ("422", "odd", "status 422")])
def test_a_refusal_ends_the_run_and_tells_no_secret(site, monkeypatch, code, said, words):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    site.mood, site.said = code, said
    with pytest.raises(OSError, match=words) as e: label(TEXTS, Served("m", site.url, **QUICK))
    assert "secret" not in str(e.value) and len(site.asked) <= 6


@pytest.mark.parametrize("bad", ["sk-two words", "sk-line\nbreak", "sk-clé"])
def test_a_key_that_cannot_be_sent_is_not_told(site, monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(ValueError, match="OPENAI_API_KEY holds a blank") as e: label(TEXTS, Served("m", site.url, **QUICK))
    assert "sk-" not in str(e.value) and not site.asked
    monkeypatch.setenv("OPENAI_API_KEY", " sk-fine-key\n") # as files of keys often end
    Served("m", site.url, **QUICK)(["snow"])
    assert site.heard[0][1]["Authorization"] == "Bearer sk-fine-key"


def test_the_key_does_not_follow_a_redirection(site, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    with endpoint() as other:
        site.mood, site.elsewhere = "redirect", other.url + "/chat/completions"
        with pytest.raises(OSError, match="redirects, which is not followed"): Served("m", site.url, **QUICK)(["snow"])
        assert not other.heard


def test_concurrency(site):
    site.pause, many = 20, [f"a red bus {i}" for i in range(24)]
    def watch(): # nobody is answered before six have asked
        while site.most < 6 and not site.go_on.wait(.005): pass
        site.go_on.set()
    threading.Thread(target=watch, daemon=True).start()
    assert Served("m", site.url, **QUICK | dict(concurrency=6))(many) == Lexicon()(many)
    assert site.most == 6
    site.most = 0
    Served("m", site.url, **QUICK | dict(concurrency=1))(many[:4])
    assert site.most == 1


@pytest.mark.parametrize("url, words", [("ftp://h/v1", "no http or https"), ("localhost:8000", "no http or https"), ("http://user:pass@h/v1", "environment variable"), ("https://h/v1?key=abc", "environment variable")])
def test_bad_addresses(url, words):
    with pytest.raises(ValueError, match=words) as e: Served("m", url)
    assert "pass" not in str(e.value).replace("password", "") and "abc" not in str(e.value)
    with pytest.raises(ValueError, match="at least 1"): Served("m", concurrency=0)


def test_rehearsal_of_an_endpoint(site):
    assert "there" in served.check(Served("m", site.url, **QUICK), 1000) and "1,000 different captions" in served.check(Served("m", site.url, **QUICK), 1000)
    for mood in "404", "500":
        site.mood = mood
        assert "missing" in (told := served.check(Served("m", site.url, **QUICK), 10)) and "-p url=" in told and "OPENAI_API_KEY is not set" in told


def test_the_experiment_with_an_endpoint_keeps_no_secret(site, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret-key")
    Notes([Note(f"i{k}", "e", f"layer_{j}", t, 0., "none", "coca") for j in range(2) for k, t in enumerate(TEXTS)]).write(tmp_path/"notes.parquet")
    given = dict(preset="tiny", labeller="served", model="some/model", url=site.url, captions=str(tmp_path), groups="published", controls=f"same:{tmp_path}")
    launcher.run_notebook("coca_categories", given, out=tmp_path/"run", progress=False)
    made = json.loads((tmp_path/"run/manifest.json").read_text())
    assert made["protocol"]["labeller"] == "served/some/model" and made["metrics"]["labelling"]["asked"] == 6 == len(site.asked)
    assert set(made["metrics"]["controls"]["same"].values()) == {0} and {h["Authorization"] for _, h in site.heard} == {"Bearer sk-very-secret-key"}
    for p in (tmp_path/"run").rglob("*"): assert not p.is_file() or b"very-secret" not in p.read_bytes(), p


# ---- a local model

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A Llama of random weights with a byte-level tokenizer and a chat template."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters.train_from_iterator([json.dumps(list(LABELS)), prompt("v2").system] * 2, trainers.BpeTrainer(vocab_size=480, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tok = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<end>", chat_template=TEMPLATE)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok) + 5, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=4096,
                                           bos_token_id=0, eos_token_id=0, initializer_range=.3))
    where = tmp_path_factory.mktemp("model")/"tiny-llama"
    net.save_pretrained(where)
    tok.save_pretrained(where)
    return where


SOME = dict(dtype="float32", max_new_tokens=400)


def test_a_model_held_to_the_form_always_answers_in_it(folder):
    pytest.importorskip("llguidance")
    captions = [*TEXTS[:3], "a person 's \"red\" bus", "naïve café", "!?"]
    ask = Local(folder, bs=4, **SOME)
    got = label(captions, ask)
    assert got.failed == 0 and ask.name == "local/tiny-llama" and ask.version == prompt("v2").id
    for c, a in zip(captions, got):
        p = parse(a)
        assert not p.problem and {k for k, _ in p.phrases} <= set(spans(c)) and 1 <= len(p.phrases) <= max(len(c.split()), 1)
        assert all(len(v) == 3 and v[0] in LABELS and set(v) <= {*LABELS, ""} for _, v in p.phrases)
    alone = Local(folder, bs=1, **SOME)
    assert [alone([c])[0] for c in captions] == list(got) # whoever stands beside it in the batch
    assert [i for i, *_ in ask.stream(captions)] == sorted(range(6), key=lambda i: len(captions[i]))
    assert ask.answers(captions[:2], attempt=1) == ask.answers(captions[:2], attempt=1) # sampled, but seeded
    before = torch.get_rng_state()
    ask.answers(captions[:1], attempt=2)
    assert before.equal(torch.get_rng_state())


def test_a_model_left_alone_may_fail_and_that_is_recorded(folder, tmp_path):
    got = label(TEXTS[:2], Local(folder, grammar=False, dtype="float32", max_new_tokens=12), tmp_path/"c", tries=2)
    assert got.failed == 2 and {r["labeller"] for r in read_cache(tmp_path/"c")[0].values()} == {"local/tiny-llama/free"}
    assert {r["caption"]: (r["ok"], r["answer"]) for r in read_cache(tmp_path/"c")[0].values()} == {c: (False, a) for c, a in zip(TEXTS, got)}


def test_the_grammar_holds_each_row_to_its_own(folder):
    llguidance = pytest.importorskip("llguidance")
    from transformers import AutoTokenizer
    tok = AutoTokenizer.from_pretrained(folder)
    V = len(tok) + 5
    g = guide(tok, V)
    for c in ("red", "a red bus", 'say "hi" \\ é', "x " * 40): assert not llguidance.LLMatcher(g, grammar(c)).is_error()
    held = Held(g, [grammar("red"), grammar("bus")], 0, 4)
    ids = torch.zeros(2, 4, dtype=torch.long)
    texts = ['{"red": ["color", "", ""]}', '{"bus": ["vehicle", "size", ""]}']
    want = [tok(t, add_special_tokens=False).input_ids for t in texts]
    for k in range(max(map(len, want)) + 1):
        may = held(ids, torch.zeros(2, V)) == 0
        nxt = [w[k] if k < len(w) else 0 for w in want]
        for i, t in enumerate(nxt): assert may[i, t], (k, i, tok.decode([t]))
        for i, w in enumerate(want):
            if k >= len(w): assert may[i].nonzero().tolist() == [[0]] # only the end
            if k == 0: assert not may[i, 0] and all(tok.decode([t]).startswith("{") for t in may[i].nonzero()[:, 0].tolist())
        assert not may[:, len(tok):].any() # rows of the embedding that are no token
        ids = torch.cat([ids, torch.tensor(nxt)[:, None]], 1)
    assert [tok.decode(r[4:], skip_special_tokens=True) for r in ids] == texts
    wrong = Held(g, [grammar("red")], 0, 4)
    may = wrong(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, V)) == 0
    assert not may[0, tok("x", add_special_tokens=False).input_ids[0]]
    assert torch.isfinite(Held(g, [grammar("red")], 31, 4)(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, V))).any()


def test_spans():
    assert spans("a red bus") == ["a", "a red", "a red bus", "red", "red bus", "bus"] and spans("red red") == ["red", "red red"]
    assert "square - faced" in spans("square - faced man") and "-" not in spans("square - faced") and "square -" not in spans("square - faced")
    assert spans("?!") == ["?!"] and max(len(s.split()) for s in spans("a b c d e f g h")) == 6


def test_chat_templates(folder, tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    tok = AutoTokenizer.from_pretrained(folder)
    net = LlamaForCausalLM(LlamaConfig(vocab_size=len(tok), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=500))
    said = Local((net, tok), grammar=False).text("snow")
    assert said.endswith("<user>snow<end><assistant>") and said.count("<system>") == 0 # a template that knows no role gets it in the first turn
    assert said.startswith("<user>" + prompt().system + "\n\n")
    tok.chat_template = TEMPLATE + "{# system #}"
    assert Local((net, tok), grammar=False).text("snow").startswith("<system>")
    with pytest.raises(ValueError, match="tokens, model reads 500"): Local((net, tok), grammar=False)(["snow"])
    tok.chat_template = None
    with pytest.raises(ValueError, match="no chat template"): Local((net, tok), grammar=False)


def test_bad_models(folder, tmp_path, monkeypatch):
    with pytest.raises(OSError, match="no language model '.*none'.*save_pretrained"): Local(tmp_path/"none")
    with pytest.raises(ValueError, match="dtype is 'int8'"): Local(folder, dtype="int8")
    with pytest.raises(ValueError, match="at least 1"): Local(folder, bs=0)
    from safetensors.torch import load_file, save_file
    from shutil import copytree
    copytree(folder, tmp_path/"torn")
    weights = load_file(tmp_path/"torn/model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1" not in k}, tmp_path/"torn/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="do not fit its config: 9 are missing"): Local(tmp_path/"torn")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"pip install 'vlnotes\[label\]'"): Local(folder, dtype="float32")
    assert Local(folder, dtype="float32", grammar=False)


def test_shards_where_accelerate_is(folder):
    ask = Local(folder, device_map="cpu", grammar=False, dtype="float32", max_new_tokens=3)
    assert len(ask(["snow"])) == 1


def test_the_paper_preset_is_rehearsed_on_a_stand_in(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = launcher.check("coca_categories", ["preset=paper", f"model={folder}", "device_map=none"])
    for word in ("captions  missing", "coca_layers", "-p captions=RUN", "labeller", "there", "parameters", "disk", "memory", "hours", "94,500"): assert word in told, told
    told = local.check(folder, 80, bs=2, dtype="float32")
    size = sum(p.numel() for p in Local(folder, **SOME, grammar=False).model.parameters())
    assert f"{size:,} parameters" in told and "80 different" in told
    assert os.environ["HF_HUB_OFFLINE"] == "1" and "\n" in told
