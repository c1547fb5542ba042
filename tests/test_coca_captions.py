"CoCa by layer: the bridge, the cached decoder, settings, entropy, controls, describing."
import math

import hypothesis
import pytest
import torch
from hypothesis import given, strategies as st
from coca_toys import CONFIG, V, WORDS, captioner, config_file, folder, images, recompute

pytest.importorskip("open_clip")
from vlnotes import describe as job
from vlnotes import runs
from vlnotes.coca import captions, describer, layers
from vlnotes.coca.captions import Settings, caption
from vlnotes.coca.decoder import MemoryDecoder
from vlnotes.decode import decode, filtered
from vlnotes.notes import Notes


@pytest.fixture(scope="module")
def coca(): return captioner()


@pytest.fixture(scope="module")
def tokens(coca): # rows of all layers of five images
    return torch.cat([coca.bridge(s) for s in coca.blocks(images()).values()])


def slowly(coca, row, settings, pick=lambda z: int(z.argmax())): # ids without start and end, and the entropies
    ids, bits, w = [coca.words.start], [], coca.words
    while len(ids) < settings.seq_len:
        z = recompute(coca, row, ids)[-1]
        p = z.softmax(-1)
        bits.append(float(-(p * p.clamp_min(1e-30).log2()).sum()))
        z = z.clone()
        z[w.pad] = -math.inf
        if len(ids) < settings.min_seq_len: z[w.end] = -math.inf
        ids.append(w.end if len(ids) + 1 == settings.seq_len else pick(z))
        if ids[-1] == w.end: break
    return ids[1:-1], bits


def test_the_last_layer_is_the_ordinary_path(coca):
    x = images()
    last = coca.blocks(x, -1)[coca.layers[-1]]
    assert torch.allclose(coca.bridge(last), coca.model.visual(x)[1], atol=1e-5)


def test_every_block_is_what_a_hook_sees(coca):
    seen, x = {}, images()
    blocks = coca.model.visual.transformer.resblocks
    hooks = [b.register_forward_hook(lambda m, a, out, k=k: seen.__setitem__(k, out)) for k, b in enumerate(blocks)]
    coca.model.visual(x)
    for h in hooks: h.remove()
    for k, s in enumerate(coca.blocks(x).values()): assert torch.allclose(s, seen[k], atol=1e-5)
    assert len(seen) == len(coca.layers) == 3


def test_captions_differ_by_image_and_layer(coca, tokens): # else the tests below would show nothing
    assert len(set(map(tuple, caption(coca, tokens, Settings()).ids))) > 5


def test_greedy_equals_recomputing_everything(coca, tokens):
    settings = Settings(seq_len=14)
    said = caption(coca, tokens, settings)
    for r in range(len(tokens)):
        ids, bits = slowly(coca, tokens[r], settings)
        assert said.ids[r] == ids and len(said.entropy[r]) == len(ids) + 1
        assert torch.allclose(said.entropy[r], torch.tensor(bits), atol=1e-3)


@pytest.mark.parametrize("budget", [1., 2e5, 2e9])
@pytest.mark.parametrize("how", [dict(), dict(method="top_k", top_k=5, temperature=1.5), dict(method="top_p", top_p=.8, order="upstream"), dict(method="beam", beams=3)])
def test_rows_do_not_know_of_each_other(coca, tokens, how, budget):
    settings, names = Settings(seq_len=12, **how), [f"row {i}" for i in range(len(tokens))]
    whole = caption(coca, tokens, settings, names).ids
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(1)).tolist()
    again = caption(coca, tokens[order], Settings(seq_len=12, budget=budget, **how), [names[i] for i in order]).ids
    assert again == [whole[i] for i in order]
    assert caption(coca, tokens[4:5], settings, names[4:5]).ids[0] == whole[4]


@pytest.mark.parametrize("score", ["logprob", "logit"])
def test_beams_keep_what_teacher_forcing_says(coca, tokens, score):
    w, said = coca.words, caption(coca, tokens[:4], Settings(method="beam", beams=4, score=score, seq_len=12))
    assert caption(coca, tokens[:4], Settings(method="beam", beams=1, seq_len=12)).ids == [slowly(coca, t, Settings(seq_len=13))[0][:11] for t in tokens[:4]] # END is not forced by beams
    for r, ids in enumerate(said.ids):
        whole = [w.start, *ids] + [w.end] * said.finished[r]
        logp = recompute(coca, tokens[r], whole[:-1]).log_softmax(-1)
        assert torch.allclose(said.logprobs[r], logp[range(len(whole) - 1), whole[1:]], atol=1e-3)


def test_beams_share_the_image_memory(coca, tokens):
    dec = MemoryDecoder(coca.model)
    with torch.no_grad():
        _, cache = dec.start(tokens[:3], coca.words.start)
        wide = dec.reorder(cache, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]))
    assert wide.rows == 9 and wide.slots == 3 and wide.memory is cache.memory


def test_finished_rows_leave_the_batch(coca, tokens):
    dec, sizes = MemoryDecoder(coca.model), []
    dec.next, real = lambda ids, cache: (sizes.append(cache.rows), real(ids, cache))[1], dec.next
    free = decode(dec, tokens, bos=coca.words.start, eos=-1, max_length=12).ids
    stops = sorted({ids[2] for ids in free[:6]}) # what six rows say third ends a row
    assert sizes == [len(tokens)] * 11
    sizes.clear()
    said = decode(dec, tokens, bos=coca.words.start, eos=stops, max_length=12)
    assert sum(map(len, said.ids)) < 11 * len(tokens) and sizes[0] == len(tokens) and (sizes[-1] < len(tokens) or len(sizes) < 11)
    assert said.ids == [ids[:next((k for k, i in enumerate(ids) if i in stops), len(ids))] for ids in free]


def logits_of(coca, weights): # a model whose logits are these, whatever it sees
    other = captioner()
    with torch.no_grad():
        other.model.text_decoder.ln_final.weight.zero_()
        other.model.text_decoder.ln_final.bias.zero_()
        other.model.text_decoder.ln_final.bias[0] = 1
        other.model.text_decoder.text_projection.zero_()
        other.model.text_decoder.text_projection[0] = weights
    return other


def test_entropy_in_closed_form(coca, tokens):
    for weights, bits in ((torch.zeros(V), math.log2(V)), (torch.full((V,), -1e4).index_fill(0, torch.tensor([7]), 0.), 0.), (torch.full((V,), -1e4).index_fill(0, torch.tensor([7, 9]), 0.), 1.)):
        said = caption(logits_of(coca, weights), tokens[:2], Settings(seq_len=9))
        assert torch.allclose(said.entropy[0], torch.full((8,), bits), atol=1e-4) and len(said.entropy[0]) == len(said.ids[0]) + 1


def test_shortest_and_longest(coca, tokens):
    end = coca.words.end
    short = caption(logits_of(coca, torch.zeros(V).index_fill(0, torch.tensor([end]), 50.)), tokens[:2], Settings())
    assert [len(i) for i in short.ids] == [4, 4] and all(short.finished) # five with the start
    long = caption(logits_of(coca, torch.zeros(V).index_fill(0, torch.tensor([end]), -1e4)), tokens[:2], Settings())
    assert [len(i) for i in long.ids] == [28, 28] and all(long.finished) and len(long.entropy[0]) == 29 # the last place is the end


def test_padding_is_no_word_or_an_end(coca, tokens):
    pad = coca.words.pad
    other = logits_of(coca, torch.zeros(V).index_fill(0, torch.tensor([pad]), 50.))
    assert pad not in caption(other, tokens[:1], Settings(seq_len=9)).ids[0]
    assert caption(other, tokens[:1], Settings.paper(seq_len=9)).ids == [[]] # at once, below the shortest length, as the original does


def test_order_of_temperature_and_filter():
    z, T = torch.tensor([[2., 1., 0., -1.]]), 2.
    hf, upstream = filtered(z / T, top_p=.8).softmax(-1), (filtered(z, top_p=.8) / T).softmax(-1)
    assert (hf > 0).sum() == 3 and (upstream > 0).sum() == 2
    assert Settings(method="top_p", order="upstream").options(layers.own_words(WORDS))["temperature_last"] and not Settings(method="top_p").options(layers.own_words(WORDS))["temperature_last"]


@pytest.mark.parametrize("wrong, told", [
    (dict(seq_len=41), "40 positions"), (dict(seq_len=2), "3 to 40"), (dict(min_seq_len=30), "below seq_len=30"), (dict(method="topk"), "top_k"), (dict(order="hg"), "upstream"), (dict(score="prob"), "logit"),
    (dict(temperature=0), "temperature > 0"), (dict(top_p=0.), "top_p"), (dict(seqlen=3), "seq_len"), (dict(beams=0), "beams")])
def test_bad_settings(coca, wrong, told):
    with pytest.raises(ValueError, match=told): Settings.of(coca, wrong)


def test_models_that_cannot_be_read(tmp_path):
    import open_clip
    for name, told in (("open_clip/ViT-B-32-quickgelu@random", "writes no captions"), ("timm/resnet18@random", "is no captioner"), ("zoo/vit", "zoo/coca"), (str(tmp_path), "config.json")):
        with pytest.raises((ValueError, FileNotFoundError), match=told): layers.load(name)
    plain = CONFIG | {"vision_cfg": {**CONFIG["vision_cfg"], "attentional_pool": False}}
    with pytest.raises(ValueError, match="no attentional pooling.*coca_ViT-B-32"): layers.check(layers.build(plain), "plain")
    with pytest.raises(ValueError, match="parallel"): layers.check(layers.build(CONFIG | {"vision_cfg": {**CONFIG["vision_cfg"], "attentional_pool": "parallel"}}), "it")
    assert "coca_ViT-B-32" in open_clip.list_models()


def test_a_configuration_of_ones_own_and_a_weight_file(tmp_path):
    coca, cfg = captioner(), config_file(tmp_path / "mine_coca.json")
    torch.save({"state_dict": {f"module.{k}": v for k, v in coca.model.state_dict().items()}}, tmp_path / "w.pt")
    again = layers.load(f"open_clip/{cfg}@{tmp_path/'w.pt'}", words=WORDS)
    assert again.layers == coca.layers and again.bridge(again.blocks(images(), -1)[coca.layers[-1]]).allclose(coca.bridge(coca.blocks(images(), -1)[coca.layers[-1]]), atol=1e-5)
    with pytest.raises(ValueError, match="60 ids.*words="): layers.load(f"open_clip/{cfg}@{tmp_path/'w.pt'}")


def test_random_weights_are_drawn_everywhere(): # open_clip leaves one matrix uninitialised
    a, b = layers.build(CONFIG, 1).state_dict(), layers.build(CONFIG, 1).state_dict()
    assert all(a[k].equal(b[k]) and a[k].isfinite().all() for k in a) and a["text_decoder.text_projection"].std() > .05


def test_controls(coca):
    x = images(6)
    streams = coca.blocks(x)
    means = captions.mean_streams(coca, [x[:4], x[4:]])
    for n, s in streams.items(): assert torch.allclose(means[n], s.mean(0), atol=1e-5)
    assert all(not s.any() for s in captions.controlled(streams, "zero").values())
    assert all(s[0].allclose(means[n]) and s[5].equal(s[0]) for n, s in captions.controlled(streams, "mean", means).items())
    with pytest.raises(ValueError, match="two images"): captions.controlled({n: s[:1] for n, s in streams.items()}, "shuffled")
    with pytest.raises(ValueError, match="mean stream"): captions.controlled(streams, "mean")
    for n in (2, 3, 4, 7): assert len(describer.Captioner(coca, Settings(seq_len=5), "shuffled").describe(images(n), batch=3)) == 3 * n # no image is left alone
    other = captions.random_tower(coca, 1)
    assert other.model.text_decoder.text_projection.equal(coca.model.text_decoder.text_projection) and not any(
        s.allclose(t) for s, t in zip(other.blocks(x).values(), streams.values()))


def test_describing_keeps_ids_and_refuses_what_it_cannot(coca):
    teller = describer.Captioner(coca, Settings(seq_len=10))
    notes = teller.describe([(f"image {i}", x) for i, x in enumerate(images())], batch=2)
    assert [(n.image_id, n.layer) for n in notes] == [(f"image {i}", l) for i in range(5) for l in coca.layers]
    one = teller.describe([("image 3", images()[3])], layers=[1])
    assert [n.text for n in one] == [n.text for n in notes.filter(image_id="image 3", layer=coca.layers[1])]
    n = notes[0]
    assert len(n.extra["ids"]) == n.extra["n_tokens"] and len(n.extra["logprobs"]) == len(n.extra["entropies"]) and abs(sum(n.extra["entropies"]) / len(n.extra["entropies"]) - n.extra["entropy"]) < 1e-3
    with pytest.raises(ValueError, match="no-cells"): teller.describe(images(), cells="all")
    with pytest.raises(ValueError, match="units"): teller.describe(images(), units={"x": [1]})
    with pytest.raises(ValueError, match="layer"): teller.describe(images(), layers="resblocks.9")


def test_a_float16_free_dtype_follows_the_model(coca):
    half = captioner().to(dtype=torch.bfloat16)
    said = caption(half, half.bridge(half.blocks(images())[half.layers[-1]]), Settings(seq_len=8))
    assert len(said) == 5 and said.entropy[0].dtype == torch.float32


# ---- through the command line's job

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    from PIL import Image
    home = tmp_path_factory.mktemp("photos")
    for i in range(7): Image.fromarray((torch.rand(40, 50, 3, generator=torch.Generator().manual_seed(i)) * 255).byte().numpy()).save(home / f"{i}.png")
    (home / "bad.jpg").write_bytes(b"\xff\xd8\xffnothing")
    return home


@pytest.fixture(scope="module")
def model(tmp_path_factory): return str(folder(tmp_path_factory.mktemp("coca")))


def rows(out): return sorted((n.image_id, n.layer, tuple(n.extra["ids"]), round(n.score, 4)) for n in Notes.read(out / "notes.parquet"))


def test_one_and_three_processes_give_the_same_rows(photos, model, tmp_path):
    one, three = (job.describe([photos], by="coca", model=model, nproc=k, batch=2, out=tmp_path / str(k), options={"seq_len": 12}) for k in (1, 3))
    assert runs.read_json(three / "result.json")["world"] == 3
    a, b = rows(one), rows(three)
    assert [r[:3] for r in a] == [r[:3] for r in b] and all(abs(x[3] - y[3]) < 1e-4 for x, y in zip(a, b)) and len(a) == 7 * 3
    assert runs.read_json(three / "manifest.json")["skipped"]["count"] == 1


def test_a_stopped_run_goes_on_with_other_processes_and_opens_nothing_twice(photos, model, tmp_path, monkeypatch):
    whole = job.describe([photos], by="coca", model=model, batch=2, out=tmp_path / "whole")
    real, done = describer.Captioner.describe, []
    def stop(self, part, **k):
        if len(done) == 2: raise KeyboardInterrupt
        done.append([i for i, _ in part])
        return real(self, part, **k)
    monkeypatch.setattr(describer.Captioner, "describe", stop)
    with pytest.raises(KeyboardInterrupt): job.describe([photos], by="coca", model=model, batch=2, out=tmp_path / "cut")
    monkeypatch.setattr(describer.Captioner, "describe", real)
    assert len(rows(tmp_path / "cut")) == 4 * 3 # what was finished is a table already
    again = job.describe([photos], by="coca", model=model, batch=2, nproc=2, out=tmp_path / "cut", resume=True)
    assert rows(again) == rows(whole) and runs.read_json(again / "result.json")["world"] == 2
    assert runs.read_json(again / "manifest.json")["data"]["images"] == 7


def test_the_stream_is_not_opened_again_before_its_place(photos, model, tmp_path, monkeypatch):
    from vlnotes import data
    real, starts = data.stream, []
    monkeypatch.setattr(data, "stream", lambda p, **k: (starts.append(k.get("start", 0)), real(p, **k))[1])
    cfg = dict(images=[str(photos)], by="coca", model=model, encoder=None, layers=None, cells=False, units=None, batch=2, n=0, seed=0, options={}, device="cpu", out=str(tmp_path))
    (tmp_path / "parts").mkdir()
    runs.write_json(tmp_path / "parts/0000-of-0001.json", {"parts": 2, "described": 4, "source": 0, "start": 4, "done": False})
    assert job.step(cfg)["described"] == 4 + 4 - 1 and starts == [4] # the eighth file is damaged
    assert job.step(cfg) == {"described": 0, "world": 1} # all is done


def test_a_job_for_several_machines_is_prepared(photos, model, tmp_path):
    out = job.describe([photos], by="coca", model=model, out=tmp_path / "run", prepare=True)
    assert runs.read_json(out / "config.json")["by"] == "coca" and not (out / "notes.parquet").exists()
    assert f"vlnotes step describe {out}/config.json" in job.lines(out) and "torchrun" in job.lines(out)
    runs.run_step("describe", out / "config.json")
    done = job.describe([photos], by="coca", model=model, out=out, resume=True)
    assert len(rows(done)) == 7 * 3


def test_options_reach_the_describer(photos, model, tmp_path):
    out = job.describe([photos], by="coca", model=model, out=tmp_path / "run", options={"seq_len": 6, "min_seq_len": 3})
    assert all(n.extra["n_tokens"] <= 4 for n in Notes.read(out / "notes.parquet"))
    with pytest.raises(ValueError, match="seq_len"): job.describe([photos], by="coca", model=model, out=tmp_path / "bad", options={"seqlen": 6})
    with pytest.raises(ValueError, match="no-cells"): job.describe([photos], by="coca", model=model, cells=True, out=tmp_path / "cells")


def test_a_list_with_missing_files(model, tmp_path, photos):
    with pytest.raises(FileNotFoundError, match="nowhere.png"): job.describe([photos / "0.png", tmp_path / "nowhere.png"], by="coca", model=model, out=tmp_path / "run")


def test_the_zoo_sees_digits_and_knows_what_it_is_not_for(tmp_path):
    from PIL import Image
    from sklearn.datasets import load_sample_image
    from vlnotes import docmnist
    from vlnotes.coca.curves import first_named, rightness
    teller = describer.describer()
    scenes = docmnist.generate(120, regions=(1, 4), split="test", seed=77, order="reading", unique=False)
    notes = teller.describe(list(zip(scenes.ids, teller.encoder.normalise(scenes.pixels()))))
    right = {r["who"]: r for r in rightness(notes, scenes, teller.blind())}
    last = right[teller.layers[-1]]
    assert last["f1"] > .88 and last["digit"] > .88 and last["colour"] > .95
    assert right[teller.layers[0]]["f1"] < .7 and all(right[k]["f1"] < .4 for k in ("constant", "shuffled", "blind"))
    assert all(first_named(list(right.values())).values())
    assert not any(n.extra.get("out_of_domain") for n in notes)
    Image.fromarray(load_sample_image("china.jpg")).save(tmp_path / "china.jpg")
    out = job.describe([tmp_path / "china.jpg"], by="coca", out=tmp_path / "run")
    assert all(n.extra["out_of_domain"] for n in Notes.read(out / "notes.parquet")) and "do not trust" in (out / "report.html").read_text()
    drawn = job.describe(by="coca", n=4, out=tmp_path / "drawn")
    assert [r["who"] for r in runs.read_json(drawn / "manifest.json")["metrics"]["scores"]][-3:] == ["constant", "shuffled", "blind"]


def test_the_command_line(photos, model, tmp_path):
    from click.testing import CliRunner
    from vlnotes.cli import main
    run = lambda *a: CliRunner().invoke(main, ["describe", str(photos), "--by", "coca", "--model", model, *a])
    r = run("-o", "seq_len=7", "--layers", "-1", "--out", str(tmp_path / "run"))
    assert r.exit_code == 0 and "transformer.resblocks.2" in r.output and "1 images were skipped" in r.output, r.output
    r = run("--prepare", "--out", str(tmp_path / "many"))
    assert r.exit_code == 0 and "vlnotes step describe" in r.output and (tmp_path / "many/config.json").exists()
    for args, told in ((["-o", "seq_len=77"], "40 positions"), (["-o", "control=noise"], "shuffled"), (["-o", "min_seq_len=30"], "below"), (["--layers", "resblocks"], "transformer.resblocks")):
        r = run(*args, "--out", str(tmp_path / told))
        assert r.exit_code == 2 and told in r.output and "Traceback" not in r.output, r.output
    r = CliRunner().invoke(main, ["describe", str(photos), "--by", "coca", "--encoder", "timm/resnet18@random", "--out", str(tmp_path / "timm")])
    assert r.exit_code == 2 and "coca_ViT-B-32" in r.output


def test_many_notes_stay_on_disk(photos, model, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "MANY", 6)
    out = job.describe([photos], by="coca", model=model, batch=2, show=2, out=tmp_path / "run")
    page = (out / "report.html").read_text()
    assert len(Notes.read(out / "notes.parquet")) == 21 == len((out / "notes.jsonl").read_text().splitlines())
    assert runs.read_json(out / "manifest.json")["data"] == {"images": 7, "out_of_domain": 0, "notes": 21} and "0.png" in page and "5.png" not in page


@given(st.lists(st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=9), min_size=1, max_size=8))
@hypothesis.settings(max_examples=60, deadline=None)
def test_clip_words_come_back(words):
    w = layers.clip_words()
    assert w.text([w.start, *w.encode(" ".join(words)), w.end, *[w.pad] * 3]) == " ".join(words)
