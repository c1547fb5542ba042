"Checkpoints in the layout of the original DeViL, with random weights: names and shapes are written out here, not taken from our network."
import argparse
import json

import torch

CONFIG = dict(num_attention_heads=4, hidden_act="gelu", initializer_range=.02, dropout_prob=0., layer_norm_eps=1e-12, token_dropout=.5,
              model_type="translationtransformer")
FLAGS = dict(num_workers=8, fp16=False, logdir="./results", dataset="cc3m", by_unit=False, data_root="./data", vision_backbone="timm_resnet10t",
             vision_feat_func="avg_pooling", vision_feat_layers=[-1, -2], language_model="zoo/lm", token_dropout=.5, feature_dropout=.25,
             add_vit_embed_token=False, only_vit_embed_token=False, model_ckpt=None, lr=1e-4, min_lr=1e-6, max_steps=1_000_000, layer=None, loc_ids=None)

def weights(widths, d=24, T=3, depth=2, ff=48, E=128, seed=0):
    "MODEL_STATE: `widths` is the width of every layer token."
    g = torch.Generator().manual_seed(seed)
    r = lambda *shape: torch.randn(*shape, generator=g) * .2
    s = {"learnable_inputs": r(1, T, d), "position_embeddings": r(1, len(widths), d), "bernoulli_prob": torch.tensor([[.5] * len(widths) + [0.] * T])}
    for i in range(depth):
        p = f"encoder.layers.{i}."
        s |= {p + "self_attn.in_proj_weight": r(3 * d, d), p + "self_attn.in_proj_bias": r(3 * d), p + "self_attn.out_proj.weight": r(d, d),
              p + "self_attn.out_proj.bias": r(d), p + "linear1.weight": r(ff, d), p + "linear1.bias": r(ff), p + "linear2.weight": r(d, ff),
              p + "linear2.bias": r(d), p + "norm1.weight": 1 + r(d), p + "norm1.bias": r(d), p + "norm2.weight": 1 + r(d), p + "norm2.bias": r(d)}
    s |= {"layernorm.weight": 1 + r(d), "layernorm.bias": r(d), "out_proj.weight": r(E, d), "out_proj.bias": r(E)}
    for k, c in enumerate(widths): s |= {f"projections.{k}.weight": r(d, c), f"projections.{k}.bias": r(d)}
    return s

def prompts(s, feats, heads=4, hidden=None):
    "The prompts of a state dict, through torch's own encoder."
    from torch import nn
    from torch.nn import functional as F
    d, ff, T = s["learnable_inputs"].shape[2], s["encoder.layers.0.linear1.weight"].shape[0], s["learnable_inputs"].shape[1]
    depth = len({k.split(".")[2] for k in s if k.startswith("encoder.")})
    layer = nn.TransformerEncoderLayer(d, heads, ff, 0., "gelu", 1e-12, batch_first=True, norm_first=True)
    enc = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).eval()
    enc.load_state_dict({k.removeprefix("encoder."): v for k, v in s.items() if k.startswith("encoder.")})
    with torch.no_grad():
        x = torch.stack([F.linear(f, s[f"projections.{k}.weight"], s[f"projections.{k}.bias"]) for k, f in enumerate(feats)], 1) + s["position_embeddings"]
        x = torch.cat([x, s["learnable_inputs"].expand(len(x), -1, -1)], 1)
        mask = None if hidden is None else F.pad(hidden, (0, T))
        y = F.layer_norm(enc(x, src_key_padding_mask=mask), (d,), s["layernorm.weight"], s["layernorm.bias"], 1e-12)
        return F.linear(y, s["out_proj.weight"], s["out_proj.bias"])[:, -T:]

def write(root, widths=(512, 256), config=None, flags=None, extra=None, **sizes):
    "A run folder with one checkpoint in it; gives the checkpoint's folder and its weights."
    s = weights(widths, **sizes)
    d, T, ff = s["learnable_inputs"].shape[2], s["learnable_inputs"].shape[1], s["encoder.layers.0.linear1.weight"].shape[0]
    depth = len({k.split(".")[2] for k in s if k.startswith("encoder.")})
    told = {**CONFIG, "hidden_size": d, "num_hidden_layers": depth, "intermediate_size": ff, "nr_learnable_tokens": T, "feat_seq_len": len(widths),
            "add_vit_embed_token": False, "img_embed_dims": list(widths), "lm_embed_dim": s["out_proj.weight"].shape[0], **(config or {})}
    folder = root/"run"/"latest_checkpoint"
    folder.mkdir(parents=True)
    torch.save({"MODEL_STATE": s, "OPTIMIZER_STATE": {"state": {0: {"step": 1., "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
                "SCHEDULER_STATE": {"_step_count": 3}, "STEPS_RUN": 20_000, "SCORE": .31, "LOSS": 2.5, **(extra or {})}, folder/"model.pt")
    (folder/"translation_model_config.json").write_text(json.dumps(told))
    (folder/"lm_model_config.json").write_text(json.dumps({"model_type": "opt", "max_length": 40}))
    (folder.parent/"train_params.txt").write_text(str(argparse.Namespace(**{**FLAGS, **(flags or {})})))
    return folder, s
