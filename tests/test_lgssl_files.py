"LGSSL: RedCaps and CC12M from their lists, checkpoints of the original and of others, the command line."
import io
import json
import zipfile

import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from server import publisher
from torchvision.models import resnet50

from vlnotes import fetch, runs
from vlnotes.backbones import load
from vlnotes.cli import main
from vlnotes.lgssl import original, redcaps
from vlnotes.lgssl.corpus import build


def jpeg(colour):
    b = io.BytesIO()
    Image.new("RGB", (90, 70), colour).save(b, "JPEG")
    return b.getvalue()


# ---- data

def archive(where, names=("birds_2017", "birds_2018", "plants_2018")):
    b = io.BytesIO()
    with zipfile.ZipFile(b, "w") as z:
        for n in names:
            rows = [{"image_id": f"{n}-{i}/x", "caption": f"{n} number {i}" if i != 2 else "", "url": f"{where}/p{i}.jpg", "subreddit": n[:-5]} for i in range(4)]
            z.writestr(f"annotations/{n}.json", json.dumps({"info": {}, "annotations": rows}))
    return b.getvalue()


def test_redcaps_by_subreddit_and_year(tmp_path):
    with publisher({"p0.jpg": jpeg("red"), "p1.jpg": jpeg("blue"), "p2.jpg": jpeg("green")}) as s: # p3 is gone
        s.files["redcaps_v1.0_annotations.zip"] = archive(s.where)
        folder = fetch.get("redcaps", tmp_path, base=s.where, say=lambda t: None, subreddits="birds", years=2018, threads=2, limit=4)
        assert fetch.check("redcaps", tmp_path) and [p.name for p in (folder/"images").iterdir()] == ["birds_2018_000001"]
        c = build(folder/"images", tmp_path/"c.arrow")
        assert c.texts("id") == ["birds_2018-0_x", "birds_2018-1_x"] and c.captions == ["birds_2018 number 0", "birds_2018 number 1"] # one has no words, one is gone
        assert runs.read_json(folder/"lists/birds_2018.done.json")["statuses"] == {"ok": 2, "no caption": 1, "http 404": 1}
        next((folder/"images").rglob("*.jpg")).unlink()
        with pytest.raises(ValueError, match="1 of 2 images of birds_2018"): fetch.check("redcaps", tmp_path)
        tars = fetch.get("redcaps", tmp_path/"t", base=s.where, say=lambda t: None, form="tars", threads=2, limit=4)
        assert len(build(str(tars/"tars/*/*.tar"), tmp_path/"d.arrow")) == 6
        with pytest.raises(ValueError, match="no annotations of cats"): fetch.get("redcaps", tmp_path/"u", base=s.where, say=lambda t: None, subreddits="cats", limit=4)


def test_a_wrong_archive(tmp_path):
    (tmp_path/"a.zip").write_bytes(b"junk")
    with pytest.raises(ValueError, match="not the archive of RedCaps"): redcaps.annotations(tmp_path/"a.zip")
    with pytest.raises(ValueError, match="holds {'annotations'"): redcaps.rows_of(lambda: [1])
    with pytest.raises(ValueError, match="folders or tars"): redcaps.make_redcaps(tmp_path, [], **redcaps.REDCAPS.options | {"form": "zip"})


def test_cc12m(tmp_path):
    with publisher({"p0.jpg": jpeg("red")}) as s:
        s.files["cc12m.tsv"] = f"{s.where}/p0.jpg\ta red thing\n{s.where}/no.jpg\tgone\n".encode()
        folder = fetch.get("cc12m", tmp_path, base=s.where, say=lambda t: None, threads=2, limit=2)
        assert build(str(folder/"train/*.tar"), tmp_path/"c.arrow").captions == ["a red thing"] and fetch.check("cc12m", tmp_path)


def test_what_they_take_is_told(tmp_path):
    out = CliRunner().invoke(main, ["data", "--data-root", str(tmp_path)]).output
    assert "redcaps" in out and "cc12m" in out
    assert redcaps.REDCAPS.disk(redcaps.REDCAPS.options | {"subreddits": "birds", "years": "2018"}) < redcaps.REDCAPS.disk(redcaps.REDCAPS.options) / 50


# ---- checkpoints

@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    net = resnet50(weights=None).eval()
    for m in net.modules(): # statistics that are not the defaults
        if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.normal_(0, .1); m.running_var.uniform_(.5, 1.5)
    return net


def files(net, folder):
    state = net.state_dict()
    bare = {k: v for k, v in state.items() if not k.startswith("fc.")}
    add = lambda prefix, d: {prefix + k: v for k, v in d.items()}
    head = torch.zeros(4, 2048)
    made = {"trunk": bare, "training": {"state_dict": add("visual_backbone.", bare) | {"visual_project.0.weight": head, "clip_scale": torch.tensor(2.)}, "epoch": 3, "global_step": 9},
            "simsiam": {"state_dict": add("module.encoder.", bare) | {"module.encoder.fc.0.weight": head, "module.predictor.0.weight": head}, "arch": "resnet50"},
            "bolts_simclr": {"state_dict": add("encoder.", state) | {"projection.model.0.weight": head}}, "swav": add("module.", bare) | {"module.projection_head.0.weight": head, "module.prototypes.weight": head},
            "mocov3": {"state_dict": add("module.base_encoder.", bare) | {"module.base_encoder.fc.0.weight": head, "module.momentum_encoder.conv1.weight": head, "module.predictor.0.weight": head}}}
    for k, d in made.items(): torch.save(d, folder/f"{k}.ckpt")
    return made


def test_every_kind_is_recognised_and_computes_the_same(trunk, tmp_path):
    assert len(files(trunk, tmp_path)["trunk"]) == 318 # a released backbone's
    x = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    fc, trunk.fc = trunk.fc, torch.nn.Identity()
    with torch.no_grad(): want = trunk(x)
    trunk.fc = fc
    for kind in original.KINDS:
        assert original.kind_of(original.read(tmp_path/f"{kind}.ckpt"), "x") == kind
        enc = original.encoder(tmp_path/f"{kind}.ckpt")
        with torch.no_grad(): assert torch.allclose(enc.model(x), want, atol=1e-5), kind
        enc.check()


def test_import_from_the_command_line(trunk, tmp_path):
    files(trunk, tmp_path)
    done = CliRunner().invoke(main, ["import", "lgssl", str(tmp_path/"training.ckpt"), "--out", str(tmp_path/"enc")])
    assert done.exit_code == 0 and "23,508,032 parameters of resnet50, training, 2 tensors of heads" in done.output, done.output
    enc = load(f"run/{tmp_path}/enc")
    assert torch.equal(enc.model.conv1.weight, trunk.conv1.weight) and (tmp_path/"enc/heads.safetensors").exists() and enc.input_size == (224, 224)


@pytest.mark.parametrize("change, told", [
    (lambda d: d.pop("layer3.0.bn1.bias"), r"1 missing \(layer3.0.bn1.bias\)"), (lambda d: d.update({"extra.weight": torch.zeros(2)}), r"1 unexpected \(extra.weight\)"),
    (lambda d: d.update({"bn1.weight": torch.zeros(3)}), r"of another shape \(bn1.weight \(3,\) instead of \(64,\)\)")])
def test_a_wrong_file_is_refused_by_its_keys(change, told, trunk, tmp_path):
    d = files(trunk, tmp_path)["trunk"]
    change(d)
    torch.save(d, tmp_path/"bad.ckpt")
    with pytest.raises(ValueError, match=told): original.convert(tmp_path/"bad.ckpt", tmp_path/"out")
    assert not (tmp_path/"out").exists()


def test_other_files(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path/"a.ckpt")
    with pytest.raises(ValueError, match="no checkpoint of a ResNet trunk.*begin with a"): original.encoder(tmp_path/"a.ckpt")
    torch.save(timm.create_model("resnet10t"), tmp_path/"b.ckpt") # a whole object
    with pytest.raises(ValueError, match="weights_only"): original.encoder(tmp_path/"b.ckpt")
    with pytest.raises(FileNotFoundError, match="no checkpoint"): original.encoder(tmp_path/"c.ckpt")
    with pytest.raises(ValueError, match="nearest is 'swav'"): original.trunk_state({}, "swaw")
    assert len(set(original.RELEASED)) == 27 and original.ALIASES["lgsimclr_bs_512"] == "lgsimclr"
