"Outside judges, one row and one table of scores: what is missing is said, what is there is right."
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlnotes import judges
from vlnotes.judges import bert_score, constant, intervals, java_scores, lacking, meteor, metrics, table, tokenize
from vlnotes.metrics import bleu, cider_d, ptb_tokenize, rouge_l
from vlnotes.runs import write_json

JAVA = pytest.mark.skipif("stanford" in lacking(), reason=lacking().get("stanford", ""))
BERT = pytest.mark.skipif("BERTScore" in lacking(), reason=lacking().get("BERTScore", ""))
WORDS = "a the red blue square circle on under big small dog cat sits runs".split()


def corpus(n=30, seed=0, refs=2):
    rng = random.Random(seed)
    line = lambda: " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 9)))
    return {f"i{k:02}": [line() for _ in range(refs)] for k in range(n)}

def first(refs): return {k: r[0] for k, r in refs.items()}

def one_sentence(e): return str(e.value).strip() and "\n" not in str(e.value).strip()


# ---- what is there, and what is not

def test_what_is_missing_is_said_by_name(monkeypatch):
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    assert set(lacking()) == set(judges.OUTSIDE)
    assert "pip install 'vlnotes[bert]'" in lacking()["BERTScore"] and "pip install 'vlnotes[java]'" in lacking()["METEOR"]
    with pytest.raises(ValueError, match="METEOR"): lacking(["Meteor"])

@pytest.fixture
def home(tmp_path, monkeypatch): # a pycocoevalcap without its jars, CoreNLP included
    for d in ("meteor", "tokenizer", "spice/lib"): (tmp_path/"coco"/d).mkdir(parents=True)
    for m in ("", "-models"): (tmp_path/f"coco/spice/lib/stanford-corenlp-3.6.0{m}.jar").write_bytes(b"")
    monkeypatch.setattr(judges, "_home", lambda package: tmp_path/"coco")
    judges._jvm.cache_clear()
    yield tmp_path/"coco"
    judges._jvm.cache_clear()

def java(tmp_path, monkeypatch, code): # a stand-in for the command
    (tmp_path/"bin").mkdir()
    path = tmp_path/"bin/java"
    path.write_text(f"#!{sys.executable}\nimport json, os, sys\n{code}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(path.parent))

def test_without_java_scores_are_left_out_with_a_sentence(home, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    refs = corpus(4)
    row = metrics(first(refs), refs, java=("METEOR", "SPICE"))
    assert set(row["skipped"]) == {"METEOR", "SPICE"} and all("no command `java`" in s and "\n" not in s for s in row["skipped"].values())
    assert "METEOR" not in row and row["CIDEr"] > 0
    with pytest.raises(FileNotFoundError, match="tokenizer='python'") as e: metrics(first(refs), refs, tokenizer="stanford")
    assert one_sentence(e)

def test_spice_needs_more_and_says_how(home):
    (home/"spice/lib/stanford-corenlp-3.6.0-models.jar").unlink()
    why = lacking(["SPICE"])
    if "no command" not in why["SPICE"]: assert "get_stanford_models" in why["SPICE"]

def test_a_java_program_that_dies_is_a_sentence(home, tmp_path, monkeypatch):
    java(tmp_path, monkeypatch, "print('Error: out of memory\\n', file=sys.stderr); sys.exit(1)")
    refs = corpus(4)
    row = metrics(first(refs), refs, java=("METEOR", "SPICE"))
    assert all("out of memory" in row["skipped"][k] and "\n" not in row["skipped"][k] for k in ("METEOR", "SPICE"))
    with pytest.raises(RuntimeError, match="out of memory"): tokenize(["a"], "stanford")

def test_the_line_protocol_of_meteor(home, tmp_path, monkeypatch):
    java(tmp_path, monkeypatch, f"""
log = open({str(tmp_path/"log")!r}, "a")
for line in sys.stdin:
    log.write(line); log.flush()
    if line.startswith("SCORE"): print(" ".join(["1.0"]*23), flush=True)
    else: print("\\n".join(["0.5"]*line.count("|||") + ["0.25"]), flush=True)""")
    said = ["a  cat\nsits ||| EVAL", "un café"]
    got = java_scores(said, [["a cat", "cats ||| dogs\r\n"], ["café"]])
    assert got["METEOR"]["score"] == .25 and got["METEOR"]["each"].tolist() == [.5, .5] and got["skipped"] == {}
    lines = (tmp_path/"log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 and lines[0].split(" ||| ") == ["SCORE", "a cat", "cats | | | dogs", "a cat sits | | | eval"]
    assert lines[1] == "SCORE ||| café ||| un café"
    judges._jvm(os.getpid())[0].kill()

@pytest.mark.parametrize("answer, error", [("print('what?\\n' * (1 + ('EVAL' in line)), end='', flush=True)", None), ("pass", KeyboardInterrupt)])
def test_a_conversation_that_broke_off_is_not_continued(home, tmp_path, monkeypatch, answer, error):
    java(tmp_path, monkeypatch, f"for line in sys.stdin: {answer}")
    if error:
        monkeypatch.setattr(judges, "_ask", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt): java_scores(["a"], [["a"]])
    else: assert "could not be computed" in java_scores(["a"], [["a"]])["skipped"]["METEOR"]
    assert judges._jvm.cache_info().currsize == 0 # the next one starts anew

def test_spice_reads_what_its_program_writes(home, tmp_path, monkeypatch):
    java(tmp_path, monkeypatch, """
given, out = json.load(open(sys.argv[5])), sys.argv[sys.argv.index("-out") + 1]
assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in os.environ["JDK_JAVA_OPTIONS"]
rows = [{"image_id": g["image_id"], "scores": {"All": {"f": .5 if g["test"] in g["refs"] else None}}} for g in given]
json.dump(rows[::-1], open(out, "w"))""")
    got = java_scores(["a red dog", "a blue cat"], [["a red dog", "dogs"], ["nothing"]], ("SPICE",))
    assert got["SPICE"]["score"] == .5 and got["SPICE"]["each"][0] == .5 and math.isnan(got["SPICE"]["each"][1])
    refs = {"a": ["a red dog"], "b": ["nothing"]}
    row = metrics({"a": "a red dog", "b": "a blue cat"}, refs, java="SPICE")
    assert row["SPICE"] == row["SPICE_lo"] == row["SPICE_hi"] == .5

@pytest.mark.parametrize("call", [lambda: java_scores(["a"], [["a"], ["b"]]), lambda: java_scores([], []), lambda: java_scores(["a"], [["a"]], ["CIDEr"])])
def test_bad_requests_to_java(call):
    with pytest.raises(ValueError) as e: call()
    assert one_sentence(e)


# ---- METEOR's formula

def counts(length, ref, function=0, ref_function=0, same=0, function_same=0, chunks=1):
    return [length, ref, function, ref_function, same, same, function_same, function_same, *[0]*12, chunks, same + function_same, same + function_same]

def test_meteor_by_hand():
    assert np.isclose(meteor(counts(3, 3, 1, 1, 0, 1, 1)), .25/1.75 * .4) # one function word of three words, in one chunk
    assert meteor(counts(3, 4, chunks=0)) == 0 and meteor(np.zeros(23)) == 0
    assert meteor(counts(4, 4, same=4, chunks=0)) == 1 # a whole match
    assert meteor(counts(4, 4, same=4, chunks=4)) < meteor(counts(4, 4, same=4, chunks=2)) < 1
    stem = np.array(counts(2, 2, same=2, chunks=0)); stem[8:12], stem[4:8] = stem[4:8].copy(), 0
    assert np.isclose(meteor(stem), .6)

@JAVA
@pytest.mark.slow
def test_the_jar_and_the_formula_agree():
    refs = corpus(40, 3)
    refs["odd"] = ["the naïve café's owner isn't in", "(someone)"]
    said = {k: " ".join(r[0].split()[i % 3:] + ["dogs", "running"][:i % 3]) for i, (k, r) in enumerate(refs.items())} | {"i00": "", "i01": refs["i01"][1]}
    got = java_scores(list(said.values()), list(refs.values()))["METEOR"]
    assert np.allclose(meteor(got["counts"]), got["each"], atol=1e-9) and np.isclose(meteor(got["counts"].sum(0)), got["score"], atol=1e-9)
    assert got["each"][0] == 0 and got["each"][1] == 1 and 0 < got["score"] < 1
    same = java_scores([r[0] for r in refs.values()], list(refs.values()))["METEOR"]
    assert same["score"] == 1
    row = metrics(said, refs, java=("METEOR",), repeats=200)
    assert np.isclose(row["METEOR"], got["score"]) and row["METEOR_lo"] < row["METEOR"] < row["METEOR_hi"]
    pid = judges._jvm(os.getpid())[0].pid
    java_scores(["a"], [["a"]])
    assert judges._jvm(os.getpid())[0].pid == pid # one process is kept


# ---- the Stanford tokenizer

SUBJECTS = ("a man", "two women", "the dog's owner", "Mr. Smith", "a black-and-white cat", "the U.S. flag", "actor", "the 20th-century building", "a girl (left)",
            "the city's skyline", "an A&E doctor", "a 3-year-old boy", "J.K. Rowling", "white/grey stripes", "a 1970s car")
VERBS = ("sits on", "doesn't like", "can't see", "is playing with", "aren't near", "won't leave", "they're on", "we've seen", "you'll find", "gonna eat", "cannot find")
OBJECTS = ("a bench.", "the beach !", "some grass ...", "1,000 people", "a $5 bill", "50% of the pizza", "the 'old' chair", "a \"no parking\" sign", "10:30 train", "a t-shirt;",
           "New York, N.Y.", "a café", "O'Brien's pub", "a skate-board ramp - at night", "trees -- and rocks", "http://x.com/a", "a No. 5 jersey", "St. Peter's", "a hot dog & fries",
           "#1 fan", "the '80s party", "a [red] box", "two - thirds", "1/2 cup", "ice cream…", "“quoted” sign", "men’s shoes", "etc.", "what?!", "R&B night", "12/25/2012", "@user",
           "a rock 'n' roll band", "-5 degrees", "9 a.m. train", "a vs. b", "naïve façade", "日本 sign", "a €5 note", "dog/cat/bird", "the 50's", "a <PERSON> sign")

@JAVA
def test_both_tokenizers_say_the_same_of_captions():
    rng, texts = random.Random(0), []
    for _ in range(600):
        t = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)} {rng.choice(['', 'and ' + rng.choice(OBJECTS)])}"
        texts.append(rng.choice([t, t.capitalize(), t.upper(), t + "."]))
    differ = [(t, a, b) for t, a, b in zip(texts, tokenize(texts), tokenize(texts, "stanford")) if a != b]
    assert len(differ) <= 18, differ[:3] # 97 %; they differ on words in capitals only ("HTTP://X.COM", "THE '80S")

@JAVA
def test_every_text_keeps_its_line():
    texts = ["", "a\nb", "c\r\nd\u2028e\x85f\x0bg", "   ", "é ...", "x"]
    assert tokenize(texts, "stanford") == [[], ["a", "b"], ["c", "d", "e", "f", "g"], [], ["é"], ["x"]] and tokenize([], "stanford") == []

def test_no_other_tokenizer():
    with pytest.raises(ValueError, match="'python' or 'stanford'"): tokenize(["a"], "ptb")

@JAVA
def test_the_row_says_who_made_the_words():
    refs = {"a": ["The Calif. coast."], "b": ["a dog"]}
    rows = [metrics(first(refs), refs, tokenizer=t, intervals=False) for t in ("python", "stanford")]
    assert [r["tokenizer"] for r in rows] == ["python", "stanford"] and all(r["Bleu_1"] == 1 for r in rows)


# ---- BERTScore

@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    pytest.importorskip("bert_score")
    from transformers import BertConfig, BertModel, BertTokenizer

    from vlnotes.checkpoints import seeded
    folder, vocab = tmp_path_factory.mktemp("bert"), {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocab, model_max_length=24).save_pretrained(folder)
    with seeded(0): net = BertModel(BertConfig(vocab_size=len(vocab), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, max_position_embeddings=24, initializer_range=.3))
    net.save_pretrained(folder)
    return str(folder)

@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    pytest.importorskip("bert_score")
    from tokenizers import pre_tokenizers
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    from vlnotes.checkpoints import seeded
    folder = tmp_path_factory.mktemp("roberta")
    vocab = {s: i for i, s in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "re", "red", "Ġred"])}
    write_json(folder/"vocab.json", vocab)
    (folder/"merges.txt").write_text("#version: 0.2\nĠ a\nr e\nre d\nĠ red\n", encoding="utf-8")
    RobertaTokenizer(vocab=str(folder/"vocab.json"), merges=str(folder/"merges.txt")).save_pretrained(folder)
    with seeded(0): net = RobertaModel(RobertaConfig(vocab_size=len(vocab), hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
                                                     max_position_embeddings=20, pad_token_id=1, bos_token_id=0, eos_token_id=2))
    net.save_pretrained(folder)
    return str(folder)

def texts(n=9, seed=1):
    refs = corpus(n, seed)
    return [" ".join(r[0].split()[::-1]) for r in refs.values()], list(refs.values())

@BERT
@pytest.mark.parametrize("idf", [False, True])
def test_bertscore_is_that_of_the_package(bert, idf):
    from bert_score import score
    said, refs = texts()
    want = score(said, refs, model_type=bert, num_layers=2, device="cpu", idf=idf, nthreads=0)[2].numpy()
    assert np.allclose(bert_score(said, refs, bert, 2, refs if idf else None), want, atol=1e-5)

@BERT
def test_bertscore_knows_identity_the_best_reference_and_case(bert):
    said, refs = texts()
    assert np.allclose(bert_score([r[0].upper() for r in refs], refs, bert, 2), 1, atol=1e-5)
    each = [bert_score(said, [[r[k]] for r in refs], bert, 2) for k in (0, 1)]
    assert np.allclose(bert_score(said, refs, bert, 2), np.maximum(*each), atol=1e-5)
    assert np.allclose(bert_score(said, refs, bert, 2, batch=1), bert_score(said, refs, bert, 2, batch=50), atol=1e-5)
    assert not np.allclose(bert_score(said, refs, bert, 1), bert_score(said, refs, bert, 2), atol=1e-3)

@BERT
def test_bertscore_of_nothing_and_of_too_much(bert, roberta):
    for model in (bert, roberta):
        f = bert_score(["", "  ", "a red " * 60, "a"], [["a red"], ["a"], ["a red"], ["", "a"]], model, 2)
        assert f[0] == f[1] == 0 and 0 < f[2] <= 1 and np.isclose(f[3], 1, atol=1e-5)

@BERT
def test_rescaling_maps_the_baseline_to_zero_and_a_match_to_one(bert):
    said, refs = texts()
    plain, b = bert_score(said, refs, bert, 2), .83122575
    assert judges.ROBERTA_LARGE == b and np.allclose(bert_score(said, refs, bert, 2, rescale=b), (plain - b) / (1 - b), atol=1e-6)

@BERT
def test_a_byte_level_tokenizer_marks_the_first_word(roberta):
    tok, _ = judges._encoder(roberta, 2, "cpu")
    assert tok.convert_ids_to_tokens(tok("red").input_ids) == ["<s>", "Ġred", "</s>"] and tok.model_max_length == 18

@BERT
def test_idf_weighs_rare_words(bert):
    refs = [["the dog"], ["the cat"], ["the square"]] # `the` is everywhere: weight 0
    f = bert_score(["the dog"] * 3, refs, bert, 2, refs)
    assert np.isclose(f[0], 1, atol=1e-5) and f[1] < bert_score(["the dog"] * 3, refs, bert, 2)[1]

@BERT
@pytest.mark.parametrize("layer, model, told", [(17, None, "layers 1 to 3"), (0, None, "layers 1 to 3"), (2, "no/such/folder", "no encoder 'no/such/folder'")])
def test_a_wrong_encoder_is_a_sentence(bert, layer, model, told):
    with pytest.raises((ValueError, OSError), match=told) as e: bert_score(["a"], [["a"]], model or bert, layer)
    assert one_sentence(e)

def test_a_language_model_is_no_encoder(tmp_path):
    pytest.importorskip("bert_score")
    from devil_toys import lm
    toy = lm()
    toy.model.save_pretrained(tmp_path); toy.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BERT- or RoBERTa-like"): bert_score(["a"], [["a"]], str(tmp_path), 1)

@BERT
def test_the_row_says_how_bertscore_was_made(bert):
    refs = corpus(5)
    row = metrics(first(refs), refs, bert={"model": bert, "layer": 2, "idf": True, "rescale": .5}, repeats=50)
    assert row["bert"] == f"{Path(bert).name}, layer 2, idf of the references, rescaled by 0.5" and np.isclose(row["BERTScore"], 1, atol=1e-5)
    assert np.isclose(row["BERTScore_lo"], 1, atol=1e-5)

def test_without_the_package_bertscore_is_a_sentence(monkeypatch):
    monkeypatch.setattr(judges, "find_spec", lambda name: None)
    refs = corpus(3)
    row = metrics(first(refs), refs, bert="roberta-large", intervals=False)
    assert "pip install 'vlnotes[bert]'" in row["skipped"]["BERTScore"] and "BERTScore" not in row
    with pytest.raises(ImportError): bert_score(["a"], [["a"]])


# ---- one row

def test_scores_of_a_perfect_caption():
    refs = {f"i{k}": [f"w{k}a w{k}b w{k}c w{k}d w{k}e"] for k in range(5)} # all words are the item's own
    row = metrics(first(refs), refs)
    assert np.isclose(row["CIDEr"], 10) and row["ROUGE_L"] == 1 and all(np.isclose(row[f"Bleu_{n}"], 1) for n in range(1, 5)) and row["n"] == 5
    assert np.isclose(row["CIDEr_lo"], 10) and np.isclose(row["Bleu_4_hi"], 1)
    alone = metrics({"i0": refs["i0"][0]}, {"i0": refs["i0"]})
    assert alone["CIDEr"] == 0 and alone["Bleu_4"] == alone["Bleu_4_lo"] == 1

def test_by_hand():
    row = metrics({"x": "the the the cat"}, {"x": ["the cat sat"]}, intervals=False)
    assert np.isclose(row["Bleu_1"], .5) and np.isclose(row["Bleu_2"], math.sqrt(.5/3)) and row["Bleu_3"] == 0
    assert np.isclose(row["ROUGE_L"], 2.44*(2/4)*(2/3) / (2/3 + 1.44*2/4))

@settings(max_examples=20, deadline=None)
@given(st.integers(2, 12), st.integers(0, 99))
def test_perfect_is_highest_and_shuffled_is_lower(n, seed):
    refs = corpus(n, seed)
    best, names = first(refs), ("Bleu_1", "Bleu_4", "ROUGE_L")
    perfect = metrics(best, refs, intervals=False)
    keys = list(best)
    moved = metrics({k: best[keys[i - 1]] for i, k in enumerate(keys)}, refs, intervals=False)
    assert all(np.isclose(perfect[k], 1) for k in names) and all(moved[k] <= perfect[k] for k in (*names, "CIDEr"))

def test_values_are_those_of_the_plain_metrics_and_order_does_not_matter():
    refs = corpus(20)
    said = {k: r[1][::-1][:12] + " red dog" for k, r in refs.items()}
    row = metrics(said, refs, intervals=False)
    words = [ptb_tokenize(t) for t in said.values()], [[ptb_tokenize(t) for t in r] for r in refs.values()]
    assert np.allclose([row[f"Bleu_{n}"] for n in range(1, 5)], bleu(*words)) and np.isclose(row["ROUGE_L"], rouge_l(*words)) and np.isclose(row["CIDEr"], cider_d(*words))
    again = metrics(dict(reversed(said.items())), refs, intervals=False)
    assert all(np.isclose(again[k], row[k]) for k in ("Bleu_4", "ROUGE_L", "CIDEr"))

@settings(max_examples=20, deadline=None)
@given(st.integers(1, 15), st.integers(0, 99))
def test_bleu_from_counts_is_bleu(n, seed):
    rng = random.Random(seed)
    refs = [[[rng.choice("abc") for _ in range(rng.randint(1, 7))] for _ in range(2)] for _ in range(n)]
    said = [[rng.choice("abcd") for _ in range(rng.randint(0, 7))] for _ in range(n)]
    assert np.allclose(judges._bleu(judges._bleu_counts(said, refs).sum(0, keepdims=True))[0], bleu(said, refs))

def test_intervals_are_those_of_drawing_items_again():
    x = np.random.default_rng(1).normal(1, 1, (300, 1))
    mean = lambda s: s / 300
    (lo, hi), = intervals([(x, mean)], 2000, seed=3)
    assert lo < x.mean() < hi and abs(hi - lo - 2*1.96*x.std()/300**.5) < .03 # the normal interval, for normal values
    both = intervals([(x, mean), (-x, mean)], 500)
    assert np.allclose(both[0], [-both[1][1], -both[1][0]]) # the same draws for all
    assert intervals([(x, mean)], 500) == intervals([(x, mean)], 500) != intervals([(x, mean)], 500, seed=1)
    assert np.subtract(*intervals([(x, mean)], 500, level=.5)[0][::-1]) < np.subtract(*intervals([(x, mean)], 500)[0][::-1])

def test_a_row_is_in_order_and_brackets_its_values():
    refs = corpus(25)
    said = {k: r[0].replace("red", "blue") for k, r in refs.items()}
    row = metrics(said, refs, repeats=300)
    assert list(row) == [k + e for k in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr") for e in ("", "_lo", "_hi")] + ["n", "empty", "tokenizer"]
    assert all(row[f"{k}_lo"] <= row[k] <= row[f"{k}_hi"] for k in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"))
    json.dumps(row, allow_nan=False)

def test_empty_captions_count_and_earn_nothing():
    refs = corpus(6)
    said = first(refs) | {"i00": "", "i01": " ... "}
    row = metrics(said, refs, repeats=50)
    assert row["empty"] == 2 and row["n"] == 6 and row["ROUGE_L"] == pytest.approx(4/6) and row["Bleu_1"] < 1
    nothing = metrics(dict.fromkeys(refs, ""), refs, repeats=50)
    assert nothing["Bleu_4_hi"] == nothing["CIDEr_hi"] == nothing["ROUGE_L"] == 0 and nothing["empty"] == 6

@pytest.mark.parametrize("said, refs, told", [
    ({}, {}, "no captions"), ({"a": "x"}, {}, "1 of 1 items have a caption but no references, first 'a'"), ({"a": "x"}, {"a": ["x"], "b": ["y"]}, "no caption, first 'b'"),
    ({"a": None}, {"a": ["x"]}, "first 'a'"), ({"a": "x"}, {"a": []}, "first 'a'"), ({"a": "x"}, {"a": [" ", ""]}, "first 'a'"), ({"a": "x"}, {"a": "x"}, "no list of texts")])
def test_what_does_not_fit_is_one_sentence(said, refs, told):
    with pytest.raises(ValueError, match=told) as e: metrics(said, refs)
    assert one_sentence(e)


# ---- baselines

def test_the_constant_caption_is_of_other_data():
    refs = {f"i{k}": [f"the {w} {k}"] for k, w in enumerate(["dog"] * 8 + ["cat"] * 3)}
    said, how = constant(refs)
    assert set(said) == set(refs) and len(set(said.values())) == 2 and all(said[k] not in r for k, r in refs.items()) and "other half" in how
    pool = [["the red dog"]] * 9 + [["xyz"]] * 2 + [["the red dog sits"]] * 9
    said, how = constant(refs, pool)
    assert len(set(said.values())) == 1 and "dog" in said["i0"] and "other data" in how
    assert constant(refs, pool) == constant(refs, pool) and constant(refs, [["only"]])[0]["i3"] == "only"
    for bad in (lambda: constant({"a": ["x"]}), lambda: constant(refs, [[" "], []])):
        with pytest.raises(ValueError) as e: bad()
        assert one_sentence(e)

def test_every_table_has_its_baselines():
    refs = corpus(20, 5)
    said = {"good": first(refs), "bad": dict.fromkeys(refs, "zzz")}
    rows = table(said, refs, blind={"good": "a red square"}, repeats=20)
    assert [(r["who"], r.get("of")) for r in rows] == [("good", None), ("bad", None), ("constant", None), ("shuffled", "good"), ("blind", "good"), ("shuffled", "bad"), ("blind", "bad")]
    score = {(r["who"], r.get("of")): r.get("CIDEr") for r in rows}
    assert score["good", None] > max(score[k] for k in (("constant", None), ("shuffled", "good"), ("blind", "good"))) and score["bad", None] == 0
    assert score["blind", "bad"] is None and "without an image" in rows[-1]["skipped"]["blind"] and rows[4]["text"] == "a red square"
    assert all(r["n"] == 20 and r["tokenizer"] == "python" for r in rows[:-1])

def test_a_single_item_has_no_shuffled_caption_and_says_so():
    rows = table({"m": {"a": "a dog"}}, {"a": ["a dog"]}, repeats=10)
    assert "two items" in rows[1]["skipped"]["constant"] and "two images" in rows[2]["skipped"]["shuffled"] and rows[0]["n"] == 1


def test_import_is_light():
    code = "import sys, vlnotes.judges; assert not {'bert_score', 'pycocoevalcap', 'transformers', 'pandas'} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
