"ViLLA's experiments on data of one's own, as a user gives it: files with regions and texts."
import json

import numpy as np
import pytest

from vlnotes import docmnist, launcher
from vlnotes.notes import Notes

pytest.importorskip("papermill")


@pytest.fixture(scope="module")
def coco(tmp_path_factory): # a COCO-like set without region labels, one report empty, one box outside
    out = tmp_path_factory.mktemp("coco")
    s = docmnist.generate(24, target=16, split="val", seed=4)
    images, boxes, texts = [], [], []
    for i in range(len(s)):
        s.image(i).save(out/f"{i}.png")
        images.append(dict(id=i, file_name=f"{i}.png"))
        boxes += [dict(id=len(boxes) + k, image_id=i, bbox=[int(x0), int(y0), int(x1 - x0), int(y1 - y0)]) for k, (x0, y0, x1, y1) in enumerate(s.boxes(i))]
        texts.append(dict(id=i, image_id=i, caption="" if i == 3 else s.text(i)))
    boxes.append(dict(id=9999, image_id=0, bbox=[200, 200, 10, 10]))
    (out/"regions.json").write_text(json.dumps(dict(images=images, annotations=boxes, categories=[])))
    (out/"reports.json").write_text(json.dumps(dict(images=images, annotations=texts)))
    return out, ",".join(s.vocab.attributes)


def test_both_stages_on_files_of_ones_own(coco, tmp_path):
    folder, words = coco
    own = dict(source=str(folder/"regions.json"), captions=str(folder/"reports.json"), attributes=words, preset="tiny")
    launcher.run_notebook("villa_stage1", own | dict(features="zoo/convnet", text="hash/32"), out=tmp_path/"one", progress=False)
    made = json.loads((tmp_path/"one/manifest.json").read_text())
    told = json.dumps(made["skipped"])
    assert made["status"] == "done" and "3.png" in told and "outside" in told and made["metrics"]["scores"] == {}
    links = Notes.read(tmp_path/"one/notes.parquet")
    assert len(links) and {n.method for n in links} == {"villa"} and all(n.x1 - n.x0 == 28 for n in links)
    launcher.run_notebook("villa_stage2", own | dict(mapping=str(tmp_path/"one/mapping/model"), embedder="hash/32"), out=tmp_path/"two", progress=False)
    found = np.load(tmp_path/"two/found-train.npy")
    assert json.loads((tmp_path/"two/manifest.json").read_text())["status"] == "done" and found.any() and not found.all()
    from vlnotes.villa import describer
    assert len(describer.describer(tmp_path/"two/encoder/model").describe([("a", docmnist.generate(1).image(0))], cells="all")) == 9


def test_wrong_mappings_get_one_sentence(coco, tmp_path):
    folder, words = coco
    own = dict(source=str(folder/"regions.json"), captions=str(folder/"reports.json"), attributes=words, preset="tiny")
    for kind, told in (("true", "needs regions"), ("no/such/folder", "no mapping")):
        with pytest.raises((RuntimeError, ValueError, OSError), match=told): launcher.run_notebook("villa_stage2", own | dict(mapping=kind), out=tmp_path/kind.replace("/", "-"), progress=False)
