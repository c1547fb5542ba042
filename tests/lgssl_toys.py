"Toys for the tests of LGSSL, and what their processes run."
import torch
from torch import distributed, nn

from vlnotes.lgssl.losses import Queue, clip, simclr, sinkhorn, swav
from vlnotes.lgssl.objectives import objective
from vlnotes.lgssl.tower import TextTower


def toy(name, seed=0, **more):
    "An objective on a trunk of one linear layer."
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh())
        head = {"nnclr": dict(hidden=12, out=8, predict=12, queue=32), "swav": dict(hidden=12, out=8, prototypes=10, queue=16, freeze=0), "simsiam": dict(hidden=12, out=8, predict=4),
                "simclr": dict(hidden=12, out=8)}.get(name.removeprefix("lg"))
        if head is None:
            head = dict(out=8) | (dict(sentence=5) if name == "clip_sentence" else dict(tower=TextTower(6, 20, 8, 2, 1))) | (dict(hidden=12) if "slip" in name else {})
        return objective(name, trunk, 16, **head, **more)


def batch(n=6, seed=0, text="ids"):
    g = torch.Generator().manual_seed(seed)
    out = {v: torch.randn(n, 3, 4, 4, generator=g) for v in ("view0", "view1", "crop")}
    ids, vectors = torch.randint(1, 20, (n, 6), generator=g), torch.randn(n, 5, generator=g)
    return out | {"text": vectors if text == "vectors" else ids, "ids": torch.arange(n)}


def points(n=11):
    g = torch.Generator().manual_seed(5)
    return torch.randn(n, 6, generator=g), torch.randn(n, 6, generator=g)


def losses(w, a, b, ids):
    "Losses of linear embeddings, each a mean over the rows given."
    za, zb = a @ w, b @ w
    p, q = za @ w.T[:, :5], zb @ w.T[:, :5]
    return {"simclr": simclr(za, zb)[0], "clip": clip(za, zb, 5.)[0], "masked": simclr(za, zb, ids=ids)[0],
            "swav": swav(p, q, sinkhorn(p.detach(), .5), sinkhorn(q.detach(), .5))}


def gradients(w, a, b, rows):
    "Loss sums of some rows and their gradients."
    out = {}
    ids = torch.arange(len(a)) // 2 # rows 0 and 1 are equal, and so on
    for name in losses(w, a[rows], b[rows], ids[rows]):
        w.grad = None
        loss = losses(w, a[rows], b[rows], ids[rows])[name] * len(a[rows])
        loss.backward()
        out[name] = torch.cat([loss.detach()[None], w.grad.flatten()])
    return out


def worker(rank, world, cuts, folder):
    "One of several processes."
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    a, b = points()
    torch.manual_seed(0)
    w = torch.randn(6, 6).requires_grad_()
    mine = gradients(w, a, b, slice(cuts[rank], cuts[rank + 1]))
    for v in mine.values(): distributed.all_reduce(v)
    queue = Queue(8, 6)
    queue.push(a[cuts[rank]:cuts[rank + 1]])
    torch.save({"world": distributed.get_world_size(), "queue": queue.rows, **{k: v / len(a) for k, v in mine.items()}}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
