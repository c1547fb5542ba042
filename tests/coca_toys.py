"A CoCa small enough for tests, with random weights, whole words and its own forward pass as the reference."
import json

import torch

from vlnotes.coca import layers

V = 60
WORDS = [f"w{i}" for i in range(V - 4)]
CONFIG = dict(embed_dim=48, pad_id=1, custom_text=True,
    vision_cfg=dict(image_size=32, patch_size=8, width=64, layers=3, head_width=16, attentional_pool=True, attn_pooler_queries=16, attn_pooler_heads=4, output_tokens=True),
    text_cfg=dict(context_length=40, vocab_size=V, width=48, heads=4, layers=2, embed_cls=True, output_tokens=True, pad_id=1),
    multimodal_cfg=dict(context_length=40, vocab_size=V, width=48, heads=4, layers=2))


def captioner(seed=3):
    "Words differ from image to image and from layer to layer: the logits of a fresh model hardly do."
    model = layers.build(CONFIG, seed)
    with torch.no_grad():
        model.text_decoder.text_projection.mul_(12)
        for b in model.text_decoder.cross_attn: b.attn.in_proj_weight.mul_(3); b.attn.out_proj.weight.mul_(6)
    return layers.Coca(layers._encoder(model, "toy", (32, 32)), layers.own_words(WORDS), "toy")


def folder(path, seed=3): return layers.save(captioner(seed), path, CONFIG, WORDS)


def config_file(path):
    path.write_text(json.dumps(CONFIG))
    return path


@torch.no_grad()
def recompute(coca, tokens, ids): # logits at every position, open_clip's own forward pass, nothing cached; one row
    return coca.model.text_decoder(tokens[None], coca.model.text(torch.tensor([ids]))[1])[0]


def images(n=5, seed=0): return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
