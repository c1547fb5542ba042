"Checkpoints in the exact layouts of the original LaViSE and of both reproductions, made here: recognised, split, converted, refused."
import json
import pickle

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn
from torchvision import models

from vlnotes import backbones
from vlnotes.cli import main
from vlnotes.hooks import Feat
from vlnotes.lavise import explainer
from vlnotes.lavise.masks import PUBLISHED, View
from vlnotes.lavise.original import NETS, Original, convert, layer_of, net_of, plain, read, read_labels, told
from vlnotes.runs import read_json

LABELS = ["tree", "sky", "dog", "car"]


def upstream(net, D, dim=8, after=(), seed=0):
    "A network as the originals build it: the head in the classifier's place, children between layer and classifier taken out."
    torch.manual_seed(seed)
    head = nn.Sequential(nn.BatchNorm1d(D), nn.Dropout(.1), nn.Linear(D, D), nn.ReLU(), nn.BatchNorm1d(D), nn.Dropout(.1), nn.Linear(D, dim))
    for m in (head[0], head[4]):
        nn.init.normal_(m.weight, 1, .2); nn.init.normal_(m.bias, 0, .2)
    for name in after: setattr(net, name, nn.Identity())
    setattr(net, "fc" if hasattr(net, "fc") else "classifier", head)
    return net.eval()


@pytest.fixture(scope="module")
def small():
    net = upstream(models.resnet18(), 512)
    for m in net.modules(): # statistics of a trained network are not 0 and 1
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 2)
    return net


@pytest.fixture(scope="module")
def glove(tmp_path_factory):
    path = tmp_path_factory.mktemp("glove") / "toy.8d.txt"
    path.write_text("".join(f"{w} {' '.join(f'{v:.4f}' for v in r)}\n" for w, r in zip([*LABELS, "cat"], np.random.default_rng(0).normal(size=(5, 8)))))
    return str(path)


def written(path, net, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    adam = torch.optim.Adam(net.fc.parameters()) if hasattr(net, "fc") else torch.optim.Adam(net.classifier.parameters())
    torch.save(dict(epoch=3, state_dict=net.state_dict(), optimizer=adam.state_dict()) | more, path)
    return path


def masked(net, x, mask): # the original's forward of one image and its masks: features times the mask, pooled over all cells, head
    f = nn.Sequential(*list(net.children())[:-2])(x)
    return net.fc(net.avgpool(f * mask[:, None]).flatten(1))


# ---- reading

@pytest.mark.parametrize("name", ["ckpt_vsf_vg_resnet18_layer4_0.1.pth.tar", "vg_resnet18_layer4_ar=0.7/best_model.pth.tar", "resnet18-layer4-imagenet-vg/ckpt_best.pth.tar"])
def test_the_three_layouts(small, glove, tmp_path, name):
    path = written(tmp_path / name, small)
    o = read(path)
    assert o.prefix == "fc." and o.epoch == 3 and o.width == 512 and o.dim == 8 and len(o.head) == 14 and not any(k.startswith("fc") for k in o.backbone)
    assert net_of(o) == "resnet18" and layer_of(o, "resnet18") == ("layer4", 512, "mean") and told(path)["refer"] == "vg"
    if path.parent != tmp_path: assert read(path.parent).file == path


def test_wrapped_or_bare(small, tmp_path):
    state = small.state_dict()
    for k, held in enumerate((state, dict(state_dict={f"module.{n}": v for n, v in state.items()}), dict(state_dict=state, epoch="x"))):
        torch.save(held, tmp_path / f"{k}.pth.tar")
        o = read(tmp_path / f"{k}.pth.tar")
        assert o.epoch is None and torch.equal(o.head["6.weight"], state["fc.6.weight"]) and torch.equal(o.backbone["conv1.weight"], state["conv1.weight"])
    torch.save(dict(state_dict=state), tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    assert len(read(tmp_path / "old.pth.tar").backbone) == 120


class Evil:
    def __reduce__(self): return print, ("executed",)


def test_nothing_is_executed(tmp_path, capsys):
    for k, held in enumerate((dict(state_dict=Evil()), Evil())): torch.save(held, tmp_path / f"{k}.pth.tar")
    (tmp_path / "2.pth.tar").write_bytes(pickle.dumps(Evil()))
    for k in range(3):
        with pytest.raises(ValueError, match="cannot be read as tensors and numbers alone"): read(tmp_path / f"{k}.pth.tar")
    for data in pickle.dumps(Evil()), pickle.dumps({"a": Evil()}), pickle.dumps([LABELS.append]), b"cos\nsystem\n(S'echo'\ntR.":
        (tmp_path / "x.pkl").write_bytes(data)
        with pytest.raises(ValueError, match="nothing of it was executed"): plain(tmp_path / "x.pkl")
    assert "executed" not in capsys.readouterr().out


def test_files_that_are_none(small, tmp_path):
    for name, held in (("a", dict(state_dict=models.resnet18().state_dict())), ("b", {}), ("c", [1]), ("d", dict(state_dict={"fc.0.running_mean": torch.zeros(3)}))):
        torch.save(held, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is no checkpoint of the original LaViSE: no head"): read(tmp_path / name)
    (tmp_path / "e").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="cannot be read"): read(tmp_path / "e")
    state = small.state_dict() | {"fc.2.weight": torch.zeros(512, 9)}
    torch.save(state, tmp_path / "f")
    with pytest.raises(ValueError, match="head's"): read(tmp_path / "f")
    with pytest.raises(FileNotFoundError, match="there is no .*nope"): read(tmp_path / "nope")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no best_model.pth.tar"): read(tmp_path / "empty")


# ---- which network and layer

def split(net):
    p = "fc." if any(k.startswith("fc.") for k in net) else "classifier."
    return Original(__import__("pathlib").Path("x"), {k: v for k, v in net.items() if not k.startswith(p)}, {k.removeprefix(p): v for k, v in net.items() if k.startswith(p)}, p, None)


@pytest.mark.parametrize("name, D, after, want", [("resnet50", 2048, (), ("layer4", 2048, "mean")), ("resnet50", 1024, ("layer4",), ("layer3", 1024, "mean")), ("alexnet", 9216, (), ("features", 256, "flat")),
                                                   ("resnet34", 512, (), ("layer4", 512, "mean")), ("resnet101", 2048, (), ("layer4", 2048, "mean"))])
def test_network_and_layer_are_in_the_weights(name, D, after, want):
    with torch.device("meta"): state = upstream(models.get_model(name), D, after=after).state_dict()
    o = split(state)
    assert net_of(o) == name and layer_of(o, name) == want


def test_where_they_are_not(tmp_path):
    with torch.device("meta"): state = upstream(models.resnet50(), 512, after=("layer3", "layer4")).state_dict()
    o = split(state) # the first two stages of both are the same
    with pytest.raises(ValueError, match="fit resnet50 and resnet101; name the network with model="): net_of(o)
    assert net_of(o, "resnet50") == "resnet50" and layer_of(o, "resnet50") == ("layer2", 512, "mean")
    o.file = tmp_path / "vg_resnet101_layer2_ar=0.3/best_model.pth.tar"
    assert net_of(o) == "resnet101"
    for model, said in (("vgg11", "are not a vgg11's"), ("resnet5", "no model 'resnet5'; the nearest is")):
        with pytest.raises(ValueError, match=said): net_of(o, model)
    o.backbone["conv1.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=f"fit none of {NETS[0]}"): net_of(o)
    with torch.device("meta"): wrong = split(upstream(models.resnet18(), 256).state_dict())
    with pytest.raises(ValueError, match="the head reads 256 numbers, and layer4 of resnet18 has 512 channels"): layer_of(wrong, "resnet18")


# ---- word lists

@pytest.mark.parametrize("protocol", range(6))
def test_pickled_word_lists(tmp_path, protocol):
    for held in ({w: i for i, w in enumerate(LABELS)}, {"stoi": {"b": 7, "a": 9, "c d": 2}, "itos": {7: "b", 9: "a", 2: "c d"}}, [1, 2.5, None, True, (1,), ("a", "b"), (), [], {}, -5, 2**40, "\u00e9"]):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(held, protocol=protocol))
        assert plain(tmp_path / "x.pkl") == held
    for held, want in (({w: i for i, w in enumerate(LABELS[::-1])}, LABELS[::-1]), ({"stoi": {"b": 7, "a": 9}, "itos": {7: "b", 9: "a"}}, ["a", "b"]),
                       ({"stoi": {"traffic light": [1, 2], "dog": [3]}, "itos": {2: "light", 1: "traffic", 3: "dog"}}, ["light", "traffic", "dog"])):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(held, protocol=protocol))
        assert read_labels(tmp_path / "x.pkl") == want


def test_other_word_lists(tmp_path):
    torch.save({w: i for i, w in enumerate(LABELS)}, tmp_path / "x.pth")
    (tmp_path / "x.txt").write_text("\n".join(LABELS))
    assert read_labels(tmp_path / "x.pth") == LABELS == read_labels(tmp_path / "x.txt")
    shared = ["a"]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([shared, shared]))
    assert plain(tmp_path / "x.pkl") == [["a"], ["a"]]
    for data, said in ((pickle.dumps(3), "holds no labels"), (pickle.dumps({"a": "b"}), "holds no labels"), (pickle.dumps({w: 1 for w in LABELS})[:-3], "is no pickle"), (b"", "is no pickle"), (b"\xff\xff", "is no pickle")):
        (tmp_path / "x.pkl").write_bytes(data)
        with pytest.raises(ValueError, match=said): read_labels(tmp_path / "x.pkl")
    with pytest.raises(ValueError, match="too many for a list of words"): plain(tmp_path / "x.txt", most=3)
    with pytest.raises(FileNotFoundError): read_labels(tmp_path / "no.pkl")


# ---- the import

@pytest.fixture(scope="module")
def made(small, glove, tmp_path_factory):
    d = tmp_path_factory.mktemp("made")
    (d / "labels.pkl").write_bytes(pickle.dumps({w: i for i, w in enumerate(LABELS)}))
    return convert(written(d / "vsf_vg_resnet18_layer4_0.5/ckpt_vsf.pth.tar", small), d / "out", space=glove, vocabulary=[*LABELS, "zebra"], labels=d / "labels.pkl", draw="without")


def test_it_computes_what_the_original_computes(small, made):
    e = explainer.load(made)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(4, 7, 7, generator=torch.Generator().manual_seed(1)) < .4
    with torch.no_grad(): ours, theirs = e.head(e.pool(e.features(x), mask.flatten(1)[None].float()))[0], masked(small, x, mask.float())
    assert torch.allclose(ours, theirs, atol=1e-4) and theirs.std() > .01
    assert not torch.allclose(ours[0], ours[1], atol=1e-3) # the mask matters
    state = small.state_dict()
    for k, v in load_file(made / "weights.safetensors").items():
        if k.startswith("backbone.") and not k.startswith("backbone.fc."): assert torch.equal(v, state[k[9:]])
        if k.startswith("head."): assert torch.equal(v, state["fc." + k[5:]])


def test_what_the_folder_says(made, glove):
    c = read_json(made / "config.json")
    assert c["method"] == "lavise" and c["words"] == LABELS and c["imported"]["rate"] == .5 and c["imported"]["filled"] == ["fc"] and c["space"]["source"] == glove
    assert sorted(c["seen"] + c["unseen"]) == sorted(LABELS) and len(c["seen"]) == 2 and c["encoder"]["spec"] == "torchvision/resnet18"
    e = explainer.load(made)
    assert e.words == LABELS and View.of(e.encoder.transform) == PUBLISHED and e.seen == c["seen"] and "2 of 4 labels taught" in c["imported"]["summary"]


def test_the_folder_says_how_images_are_prepared(made, tmp_path):
    c = read_json(made / "config.json")
    c["encoder"]["resize"] = 300 # as a ResNet-50 is imported with 256, though its newer weights ask for 232
    (tmp_path / "config.json").write_text(json.dumps(c))
    (tmp_path / "weights.safetensors").symlink_to(made / "weights.safetensors")
    assert View.of(backbones.load(f"run/{tmp_path}").transform).steps == (("short", 300), ("crop", (224, 224)))


def test_alexnet(tmp_path):
    with torch.device("meta"): alex = upstream(models.alexnet(), 9216, 300)
    state = {k: torch.zeros(()).expand(v.shape) for k, v in alex.state_dict().items()} # the shapes alone: 85 million weights on disk would be for nothing
    torch.save(dict(epoch=3, state_dict=state, optimizer={}), path := tmp_path / "alexnet-features-imagenet-coco_ckpt_best.pth.tar")
    o = read(path)
    assert o.prefix == "classifier." and net_of(o) == "alexnet" and layer_of(o, "alexnet") == ("features", 256, "flat") and told(path) == dict(refer="coco")
    f = torch.randn(2, 256, 6, 6)
    with torch.no_grad():
        z = explainer.pooled(Feat(f.flatten(2).mT, (6, 6), "features"), torch.ones(2, 1, 36), "flat")[:, 0]
        assert torch.equal(z, nn.AdaptiveAvgPool2d((6, 6))(f).flatten(1))


def test_stages_that_were_taken_out_are_filled(glove, tmp_path):
    net = upstream(models.resnet18(), 256, after=("layer4",))
    out = convert(written(tmp_path / "best_model.pth.tar", net), tmp_path / "out", model="resnet18", space=glove, vocabulary=LABELS)
    e = explainer.load(out)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): ours, theirs = e.head(e.pool(e.features(x), torch.ones(1, 1, 196)))[0, 0], net(x)[0]
    assert torch.allclose(ours, theirs, atol=1e-4) and e.layer == "layer3" and read_json(out / "config.json")["imported"]["filled"] == ["fc", "layer4"]
    assert e.seen == [] == e.unseen


def test_without_a_vocabulary_the_space_is_read_later(small, glove, tmp_path):
    out = convert(written(tmp_path / "c.pth.tar", small), tmp_path / "out", space=glove)
    e = explainer.load(out)
    assert e.words == [*LABELS, "cat"] and e.vectors.shape == (5, 8)
    convert(tmp_path / "c.pth.tar", tmp_path / "later", space=str(tmp_path / "not/yet.txt"))
    with pytest.raises(FileNotFoundError, match="no file of word vectors .*yet.txt"): explainer.load(tmp_path / "later")


def test_seen_words_may_be_given(small, glove, tmp_path):
    path = written(tmp_path / "c.pth.tar", small)
    (tmp_path / "seen.txt").write_text("sky\ndog\n")
    c = read_json(convert(path, tmp_path / "a", space=glove, vocabulary=LABELS, labels=LABELS, seen=str(tmp_path / "seen.txt")) / "config.json")
    assert c["seen"] == ["sky", "dog"] and c["unseen"] == ["tree", "car"]
    with pytest.raises(ValueError, match="the seen word 'sky' is not among the 2 labels"): convert(path, tmp_path / "b", space=glove, vocabulary=LABELS, labels=LABELS[2:], seen=["sky"])
    with pytest.raises(ValueError, match="draw is 'maybe'"): convert(path, tmp_path / "b", space=glove, vocabulary=LABELS, labels=LABELS, rate=.5, draw="maybe")
    (tmp_path / "other.txt").write_text("tree 1 2 3\n")
    with pytest.raises(ValueError, match="vectors of 3 numbers, the checkpoint speaks 8"): convert(path, tmp_path / "b", space=str(tmp_path / "other.txt"), vocabulary=["tree"])
    with pytest.raises(FileExistsError, match="already exists and is not empty"): convert(path, tmp_path / "a", space=glove)
    assert not (tmp_path / "b").exists()


def test_from_the_command_line(small, glove, tmp_path):
    path = written(tmp_path / "c.pth.tar", small)
    r = CliRunner().invoke(main, ["import", "lavise", str(path), "--out", str(tmp_path / "out"), "-o", f"space={glove}", "-o", "rate=0.5"])
    assert r.exit_code == 0 and "layer4 of resnet18, 512 channels to 8 numbers" in r.output and "vlnotes describe --by lavise --model" in r.output
    assert json.loads((tmp_path / "out/config.json").read_text())["imported"]["epoch"] == 3
    r = CliRunner().invoke(main, ["import", "lavise", str(tmp_path / "no"), "--out", str(tmp_path / "other")])
    assert r.exit_code != 0 and not (tmp_path / "other").exists()
