"A small network and its data, for the tests of the training loop and the processes they start."
import torch
from torch import nn


class Points:
    "Item `i` is a point and its label; a draw of the batch's generator is added."
    def __init__(self, n=97, noise=.1):
        g = torch.Generator().manual_seed(1)
        self.x, self.noise = torch.randn(n, 6, generator=g), noise
        self.y, self.seen = (self.x[:, 0] > 0).long(), []

    def __len__(self): return len(self.x)

    def batch(self, ids, rng):
        ids = [int(i) for i in ids]
        self.seen.append(ids)
        x = self.x[ids]
        return x + self.noise * torch.randn(x.shape, generator=rng), self.y[ids]


class Net(nn.Module):
    "Two layers, dropout from the generator it is given, one frozen part."
    def __init__(self, width=5, seed=0, dropout=.2):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.a, self.norm, self.b, self.frozen = nn.Linear(6, width), nn.LayerNorm(width), nn.Linear(width, 2), nn.Linear(width, 3)
        self.frozen.requires_grad_(False)
        self.p = dropout

    def forward(self, batch, rng):
        x, y = batch
        h = self.norm(self.a(x)).relu()
        if self.p: h = h * (torch.rand(h.shape, generator=rng, device=h.device) > self.p) / (1 - self.p)
        return nn.functional.cross_entropy(self.b(h).float(), y, reduction="sum"), len(y)
