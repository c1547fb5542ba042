"Files of the original ViLLA: written here in its layout, read back; what could execute is refused by name."
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import feather

from vlnotes.villa import mapping, original, region_encoder
from vlnotes.villa.towers import ClipTower, modified_resnet


class Evil:
    def __reduce__(self):
        import os
        return os.system, ("touch /nowhere/pwned",)


def ragged(sizes, dim=4, seed=0):
    rng, out = np.random.default_rng(seed), np.empty(len(sizes), object)
    for i, n in enumerate(sizes): out[i] = rng.normal(size=n * dim).astype(np.float32)
    return out


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_and_values_of_every_protocol(protocol):
    same = np.arange(3)
    held = {"a": [1, 2.5, "x", None, True, b"raw"], "t": (1, (2, 3)), "r": ragged([1, 3]), "f": np.asfortranarray(np.arange(6.).reshape(2, 3)), "i": np.arange(3, dtype=">i4"),
            "twice": [same, same], "h": np.arange(2, dtype=np.float16)}
    if protocol == 5: held = {k: v for k, v in held.items() if k in ("a", "t")} # its arrays come through another function, which is refused
    got = original.plain(pickle.dumps(held, protocol))
    assert got["a"] == held["a"] and got["t"] == held["t"]
    if protocol < 5:
        assert (got["f"] == held["f"]).all() and (got["i"] == [0, 1, 2]).all() and got["h"].dtype == np.float16 and (got["twice"][1] == same).all()
        assert all((a == b).all() for a, b in zip(got["r"], held["r"]))


@pytest.mark.parametrize("evil, told", [(pickle.dumps(Evil()), "system"), (pickle.dumps([np.zeros(2), Evil()], 2), "system"), (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
    (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"), (b"cnumpy.f2py.crackfortran\nmyeval\n(S'1'\ntR.", "crackfortran"), (b"(S'x'\nibuiltins\neval\n.", "INST")])
def test_anything_else_is_refused_by_name(evil, told):
    with pytest.raises(ValueError, match=told) as e: original.plain(evil, "file.npz")
    assert "executed" in str(e.value) and "file.npz" in str(e.value)


@pytest.mark.parametrize("junk", [b"", b"garbage", b"\x80\x04", pickle.dumps(np.zeros(4))[:-20], pickle.dumps([1])[:-1]])
def test_damaged_pickles(junk):
    with pytest.raises(ValueError, match="executed"): original.plain(junk)


def test_npz_files(tmp_path):
    np.savez(tmp_path/"a.npz", ragged([1, 2]))
    np.savez(tmp_path/"b.npz", np.arange(4.))
    assert len(original.read_npz(tmp_path/"a.npz")) == 2 and original.read_npz(tmp_path/"b.npz").tolist() == [0, 1, 2, 3]
    (tmp_path/"c.npz").write_bytes((tmp_path/"a.npz").read_bytes()[:50])
    with pytest.raises(ValueError, match="cut off"): original.read_npz(tmp_path/"c.npz")
    with pytest.raises(FileNotFoundError): original.read_npz(tmp_path/"d.npz")
    bad = np.empty(1, object); bad[0] = Evil()
    np.savez(tmp_path/"e.npz", bad)
    with pytest.raises(ValueError, match="system"): original.read_npz(tmp_path/"e.npz")


def test_attribute_embeddings(tmp_path):
    torch.save({"red": np.array([3, 4], np.float16), "blue": np.array([0, 2], np.float16)}, tmp_path/"attr_embs.pth")
    names, t = original.read_attributes(tmp_path/"attr_embs.pth")
    assert names == ["red", "blue"] and torch.allclose(t, torch.tensor([[.6, .8], [0, 1]]), atol=1e-3)
    torch.save({"red": Evil()}, tmp_path/"evil.pth")
    with pytest.raises(ValueError, match="system.*refused"): original.read_attributes(tmp_path/"evil.pth")
    torch.save({"red": np.zeros(2), "blue": np.zeros(3)}, tmp_path/"odd.pth")
    with pytest.raises(ValueError, match="all of one size"): original.read_attributes(tmp_path/"odd.pth")


def regions(tmp_path, sizes, equal=False):
    (tmp_path/"region_embs").mkdir(exist_ok=True)
    x = ragged(sizes)
    np.savez(tmp_path/"region_embs/embs_9.npz", np.array(list(x), object) if equal else x)
    feather.write_feather(pa.table({"image_id": list(range(len(sizes))), "file": ["/old/place/embs_9.npz"] * len(sizes), "file_id": list(range(len(sizes)))}), str(tmp_path/"region_embs/region_emb_mapping.feather"))
    return x


@pytest.mark.parametrize("sizes, equal", [([1, 3, 2], False), ([2, 2], True)])
def test_region_embeddings(sizes, equal, tmp_path):
    x = regions(tmp_path, sizes, equal)
    got = original.read_regions(tmp_path/"region_embs", dict(enumerate(sizes)), dim=4)
    assert all((got[i].ravel() == x[i]).all() and got[i].shape == (sizes[i], 4) for i in range(len(sizes)))
    with pytest.raises(ValueError, match="do not belong together"): original.read_regions(tmp_path/"region_embs", {0: 7}, dim=4)
    with pytest.raises(ValueError, match="no multiple"): original.read_regions(tmp_path/"region_embs", dim=5)


def test_a_shard_that_was_overwritten_is_noticed(tmp_path):
    regions(tmp_path, [1, 2, 3])
    np.savez(tmp_path/"region_embs/embs_9.npz", ragged([1]))
    with pytest.raises(ValueError, match="overwritten"): original.read_regions(tmp_path/"region_embs", dim=4)


def test_annotations_and_mappings(tmp_path):
    (tmp_path/"images").mkdir()
    im = np.zeros((3, 84, 84), np.uint8); im[0, 5, 6] = 200
    at = np.nonzero(im)
    np.savez(tmp_path/"images/0.npz", data=im[at], coords=np.stack(at), shape=np.array(im.shape), fill_value=np.uint8(0))
    t = dict(image_id=[0, 1], image_size=[[84, 84]] * 2, image_filepath=["/home/someone/images/0.npz", "/home/someone/images/1.npz"], region_coord=[[[0, 0, 28, 28], [28, 0, 56, 28]], [[0, 0, 28, 28]]],
             num_regions=[2, 1], split=["train", "train"], text=["the color is red . the number is a two", ""], attributes=[["red", "two"], []], reg_to_attr=[[["two", "red"], ["red"]], [[]]],
             assigned_attributes=[[["red"], ["two", "red"]], [[]]])
    feather.write_feather(pa.table(t), str(tmp_path/"mapping_train.feather"))
    c, found = original.read_table(tmp_path/"mapping_train.feather")
    assert c.ids == ["0"] and c.attributes == ("red", "two") and found.tolist() == [[True, False], [True, True]] and c.truth.tolist() == [[True, True], [True, False]]
    assert (c.open(0) == im).all() and any("empty" in why for _, why in c.skipped) and mapping.score(found, c.truth, c.offsets, 5)["precision"] == 66.67
    feather.write_feather(pa.table({k: v for k, v in t.items() if k != "text"}), str(tmp_path/"x.feather"))
    with pytest.raises(ValueError, match="no column 'text'"): original.read_table(tmp_path/"x.feather")
    (tmp_path/"y.feather").write_bytes(b"junk")
    with pytest.raises(ValueError, match="Feather"): original.read_table(tmp_path/"y.feather")


# ---- checkpoints

def test_stage_one_both_ways(tmp_path):
    m = mapping.Mapper(mapping.MappingConfig(6, 3))
    state = original.export1(m)
    assert set(state) == {f"module.pool.{k}.{j}.{w}" for k in range(3) for j in (0, 2) for w in ("weight", "bias")}
    torch.save(state, tmp_path/"last.pkl")
    back = original.stage1(original._state(tmp_path/"last.pkl"))
    assert all(v.equal(original.export1(back)[k]) for k, v in state.items()) and back.cfg.positives == "legacy"
    x, t = torch.randn(5, 6), torch.eye(6)[:3]
    seq = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6)) # the original's head 1
    seq.load_state_dict({k.removeprefix("module.pool.1."): v for k, v in state.items() if ".pool.1." in k})
    assert torch.allclose(back.similarity(x, t)[:, 1], torch.nn.functional.cosine_similarity(seq(x), t[1][None]), atol=1e-6)


@pytest.mark.parametrize("change, told", [
    (lambda s: s.pop("module.pool.1.0.bias"), "missing"), (lambda s: s.update({"module.pool.1.4.bias": torch.zeros(1)}), "unknown"),
    (lambda s: s.update({"module.pool.1.0.weight": torch.zeros(6, 5)}), "would fit"), (lambda s: (s.clear(), s.update(a=torch.zeros(1))), "neither")])
def test_wrong_first_stages(change, told, tmp_path):
    state = original.export1(mapping.Mapper(mapping.MappingConfig(6, 3)))
    change(state)
    torch.save(state, tmp_path/"last.pkl")
    torch.save({n: np.eye(6, dtype=np.float32)[k] for k, n in enumerate("abc")}, tmp_path/"attr_embs.pth")
    with pytest.raises(ValueError, match=told): original.convert(tmp_path/"last.pkl", tmp_path/"out", attributes=str(tmp_path/"attr_embs.pth"))
    assert not (tmp_path/"out").exists()


def test_the_first_stage_needs_its_attributes(tmp_path):
    torch.save(original.export1(mapping.Mapper(mapping.MappingConfig(6, 3))), tmp_path/"last.pkl")
    with pytest.raises(ValueError, match="attr_embs.pth"): original.convert(tmp_path/"last.pkl", tmp_path/"out")
    torch.save({"a": np.ones(6)}, tmp_path/"attr_embs.pth")
    with pytest.raises(ValueError, match="1 attributes"): original.convert(tmp_path/"last.pkl", tmp_path/"out", attributes=str(tmp_path/"attr_embs.pth"))
    with pytest.raises(FileNotFoundError): original.convert(tmp_path/"none.pkl", tmp_path/"out")
    torch.save(Evil(), tmp_path/"evil.pkl")
    with pytest.raises(ValueError, match="system"): original.convert(tmp_path/"evil.pkl", tmp_path/"out")


def test_stage_two_both_ways(tmp_path):
    pytest.importorskip("open_clip")
    visual = modified_resnet(layers=(1, 2, 1, 1), width=16, out=24, image=96).eval()
    state = original.export2(visual)
    assert "module.model_backbone.11.1.conv1.weight" in state and "module.layer4.0.conv1.weight" in state and "module.attnpool.q_proj.weight" in state
    torch.save(state, tmp_path/"best.pkl")
    enc, cfg, _ = region_encoder.load(original.convert(tmp_path/"best.pkl", tmp_path/"out"))
    assert all(v.equal(original.export2(enc.tower.visual)[k]) for k, v in state.items()) and cfg["imported"]["file"] == "best.pkl"
    x, box, own = torch.rand(1, 3, 84, 84), torch.tensor([[0., 0, 56, 56]]), torch.zeros(1, dtype=int)
    with torch.no_grad(): assert torch.allclose(enc(x, box, own), torch.nn.functional.normalize(ClipTower(visual)(x, box, own), dim=1), atol=1e-6)
    torch.save({f"visual.{k}": v for k, v in visual.state_dict().items()} | {"text_projection": torch.zeros(2)}, tmp_path/"clip.pth")
    assert region_encoder.load(original.convert(tmp_path/"clip.pth", tmp_path/"clip"))[0].text_dim == 24
    for change, told in ((lambda s: s.pop("module.model.visual.bn1.bias"), "missing"), (lambda s: s.update({"module.layer4.0.conv1.weight": s["module.layer4.0.conv1.weight"] + 1}), "differ")):
        bad = dict(state); change(bad); torch.save(bad, tmp_path/"bad.pkl")
        with pytest.raises(ValueError, match=told): original.convert(tmp_path/"bad.pkl", tmp_path/"bad")
    with pytest.raises(FileExistsError): original.convert(tmp_path/"best.pkl", tmp_path/"out")
