"""DETR against the authors' own numbers: boxes, matching, losses and gradients, positions, transformer, parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import box_convert, box_iou, generalized_box_iou, masks_to_boxes

from evaluations.detection import detr
from evaluations.detection.backbones import Body, freeze_norms
from golden import load
from zoo import backbones

SIZE = {
    "d_model": 256,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "heads": 8,
    "ffn": 2048,
    "queries": 100,
    "dropout": 0.1,
}


def tensors(g, *names):
    return [torch.tensor(g.given(name)) for name in names]


def cases(g):
    return [name.removesuffix("_weights") for name in g.names if name.endswith("_weights")]


def targets_of(g, case):
    sizes = g.given(f"{case}_target_sizes").tolist()
    labels, boxes = tensors(g, f"{case}_target_labels", f"{case}_target_boxes")
    return [
        {"class_labels": k, "boxes": b}
        for k, b in zip(labels.long().split(sizes), boxes.reshape(-1, 4).split(sizes), strict=True)
    ]


def test_boxes_are_converted_and_overlap_as_the_authors():
    g = load("detection/boxes.npz")
    a, b = tensors(g, "a_cxcywh", "b_cxcywh")
    one, two = (box_convert(x, "cxcywh", "xyxy") for x in (a, b))
    g.agree("a_xyxy", one)
    g.agree("b_xyxy", two)
    g.agree("a_back", box_convert(one, "xyxy", "cxcywh"))
    g.agree("iou", box_iou(one, two))
    g.agree("giou", generalized_box_iou(one, two))
    area = [np.prod(x.numpy()[:, 2:], axis=1) for x in (a, b)]
    overlap = box_iou(one, two).numpy()
    g.agree("union", (area[0][:, None] + area[1][None]) / (1 + overlap))
    g.exact("mask_boxes", masks_to_boxes(torch.tensor(g.given("masks"))))


def test_matching_is_the_authors():
    g = load("detection/matcher.npz")
    for case in cases(g):
        costs = g.given(f"{case}_weights").tolist()
        logits, boxes = tensors(g, f"{case}_logits", f"{case}_boxes")
        targets = targets_of(g, case)
        matcher = detr.Criterion(logits.shape[-1] - 1, costs).matcher
        pairs = matcher({"logits": logits, "pred_boxes": boxes}, targets)
        g.exact(f"{case}_match_sizes", [len(q) for q, _ in pairs])
        g.exact(f"{case}_match_query", torch.cat([q for q, _ in pairs]))
        cost = [cost_of(costs, logits[i], boxes[i], t) for i, t in enumerate(targets)]
        g.agree(f"{case}_cost", np.concatenate([c.numpy().ravel() for c in cost]))
        g.agree(f"{case}_total", [float(c[q, o].sum()) for c, (q, o) in zip(cost, pairs, strict=True)])
        expected = torch.tensor(g.checked(f"{case}_match_target", "objects of one class may be interchanged"))
        chosen = expected.split([len(q) for q, _ in pairs])
        for target, (_, found), wanted in zip(targets, pairs, chosen, strict=True):
            same = found == wanted if costs[1] else target["class_labels"][found] == target["class_labels"][wanted]
            assert same.all()


def cost_of(weights, logits, boxes, target):
    kind, l1, giou = weights
    place = [box_convert(x, "cxcywh", "xyxy") for x in (boxes, target["boxes"])]
    probability = -logits.softmax(-1)[:, target["class_labels"]]
    return kind * probability + l1 * torch.cdist(boxes, target["boxes"], p=1) - giou * generalized_box_iou(*place)


def test_losses_and_gradients_are_the_authors():
    g = load("detection/criterion.npz")
    for case in cases(g):
        logits, boxes = (t.requires_grad_() for t in tensors(g, f"{case}_logits", f"{case}_boxes"))
        targets = targets_of(g, case)
        reduced, mine = int(g.given(f"{case}_reduced_objects")), sum(len(t["boxes"]) for t in targets)
        objects = max(mine if reduced < 0 else reduced / 2, 1)
        criterion = detr.Criterion(logits.shape[-1] - 1, g.given(f"{case}_weights"), float(g.given(f"{case}_eos")))
        total, found = criterion(logits, boxes, targets, objects)
        layers = [f"_{i}" for i in range(len(logits) - 1)] + [""]
        for name in ("loss_ce", "loss_bbox", "loss_giou"):
            g.agree(f"{case}_{name}", torch.stack([found[name + layer] for layer in layers]))
        for layer in range(len(logits)):
            alone = criterion(logits[: layer + 1], boxes[: layer + 1], targets, objects)[1]
            g.agree(f"{case}_cardinality_error", alone["cardinality_error"], part=layer)
        g.agree(f"{case}_class_error", found["class_error"])
        g.agree(f"{case}_total", total)
        total.backward()
        g.agree(f"{case}_grad_logits", logits.grad)
        g.agree(f"{case}_grad_boxes", boxes.grad if boxes.grad is not None else torch.zeros_like(boxes))
    losses = pytest.importorskip("transformers.loss.loss_for_object_detection")
    logits, truth = tensors(g, "mask_logits", "mask_targets")
    for name, function in (("focal", losses.sigmoid_focal_loss), ("dice", losses.dice_loss)):
        given = logits.clone().requires_grad_()
        value = function(given, truth, float(g.given("mask_num")))
        value.backward()
        g.agree(f"mask_{name}", value)
        g.agree(f"mask_grad_{name}", given.grad)


def test_losses_equal_transformers_own_on_the_same_outputs():
    losses = pytest.importorskip("transformers.loss.loss_for_object_detection")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    logits, boxes = torch.randn(3, 2, 7, 6), torch.rand(3, 2, 7, 4) * 0.4 + 0.2
    targets = [
        {"class_labels": torch.tensor([1, 4, 1]), "boxes": torch.rand(3, 4) * 0.4 + 0.2},
        {"class_labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)},
    ]
    config = transformers.DetrConfig(num_labels=5, auxiliary_loss=True, decoder_layers=3)
    theirs, named, _ = losses.ForObjectDetectionLoss(logits[-1], targets, "cpu", boxes[-1], config, logits, boxes)
    ours, found = detr.Criterion(5)(logits, boxes, targets, 3)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    assert all(float(found[k]) == pytest.approx(float(v), rel=1e-6) for k, v in named.items() if k in found)
    assert sum(k.startswith("loss_") for k in found) == 9


def test_positions_are_the_authors():
    modeling = pytest.importorskip("transformers.models.detr.modeling_detr")
    g = load("detection/position.npz")
    masks = {name: ~torch.tensor(g.given(name)) for name in ("mask", "holes_mask")}  # there True is padding
    for name in ("detr", "small", "raw", "scaled", "holes"):
        n, normalised, temperature, scale = g.given(f"{'small' if name == 'holes' else name}_settings").tolist()
        make = modeling.DetrSinePositionEmbedding(int(n), temperature, bool(normalised), scale if normalised else None)
        mask = masks["holes_mask" if name == "holes" else "mask"]
        g.agree(name, make(mask.shape[:1] + (1,) + mask.shape[1:], "cpu", torch.float32, mask))


def test_frozen_batch_norm_is_the_authors():
    g = load("detection/frozen_bn.npz")
    names = ("weight", "bias", "running_mean", "running_var")
    norm = nn.BatchNorm2d(len(g.given("weight")))
    norm.load_state_dict({**dict(zip(names, tensors(g, *names), strict=True)), "num_batches_tracked": torch.tensor(3)})
    frozen = freeze_norms(nn.Sequential(norm)).train()
    x, v = tensors(g, "x", "v")
    x.requires_grad_()
    y = frozen(x)
    (y * v).sum().backward()
    g.agree("y", y)
    g.agree("grad_x", x.grad)
    g.exact("number_of_parameters", len(list(frozen.parameters())))
    g.exact("number_of_buffers", len(list(frozen.buffers())))
    assert set(frozen.state_dict()) == {f"0.{name}" for name in names}
    assert torch.equal(frozen(x), y), "nothing moves in training mode"


def test_predictions_are_the_authors():
    g = load("detection/postprocess.npz")
    scores, labels, corners = detr.predictions(*tensors(g, "logits", "boxes", "sizes_hw"))
    g.agree("scores", scores)
    g.exact("labels", labels)
    g.agree("xyxy", corners)


# ---------------------------------------------------------------- the network


class Given(nn.Module):
    """A backbone that answers with given features."""

    def __init__(self, features):
        super().__init__()
        self.features, self.layers, self.dims = features, ("map",), {"map": features.shape[1]}

    def forward(self, x):
        return {"map": self.features}


def state_of(g, variant):
    """The authors' parameters under transformers' names."""
    found = {}
    for name in g.names:
        if not name.startswith(f"{variant}/state/"):
            continue
        value, key = torch.tensor(g.given(name)), name.removeprefix(f"{variant}/state/")
        for old, new in (
            ("transformer.encoder.", "model.encoder."),
            ("transformer.decoder.norm.", "model.decoder.layernorm."),
            ("transformer.decoder.", "model.decoder."),
            ("multihead_attn.", "encoder_attn."),
            ("linear1.", "mlp.fc1."),
            ("linear2.", "mlp.fc2."),
            ("out_proj.", "o_proj."),
            ("class_embed.", "class_labels_classifier."),
            ("bbox_embed.", "bbox_predictor."),
            ("query_embed.", "model.query_position_embeddings."),
            ("input_proj.", "model.input_projection."),
        ):
            key = key.replace(old, new)
        names = ["self_attn_layer_norm", "final_layer_norm"]
        if "decoder.layers" in key:
            names.insert(1, "encoder_attn_layer_norm")
        for number, new in enumerate(names, 1):
            key = key.replace(f"norm{number}.", f"{new}.")
        if "in_proj_" in key:
            kind = key.rpartition("in_proj_")[2]
            for letter, rows in zip("qkv", value.chunk(3), strict=True):
                found[key.replace(f"in_proj_{kind}", f"{letter}_proj.{kind}")] = rows
        else:
            found[key] = value
    return found


def golden_detr(g, variant):
    """(network with the golden weights, its output, memory) on the golden features."""
    heads, encoder, decoder = g.given("heads_enc_dec").tolist()
    state, (features,) = state_of(g, variant), tensors(g, f"{variant}/features")
    queries, width = state["model.query_position_embeddings.weight"].shape
    size = {
        "d_model": width,
        "encoder_layers": encoder,
        "decoder_layers": decoder,
        "heads": heads,
        "ffn": len(state["model.encoder.layers.0.mlp.fc1.weight"]),
        "queries": queries,
        "dropout": 0.1,
    }
    net = detr.Detr(Given(features), len(state["class_labels_classifier.weight"]) - 1, size).eval()
    left = net.net.load_state_dict(state, strict=False)
    assert not left.missing_keys
    batch, _, height, width = g.given("batch_shape").tolist()
    mask = torch.zeros(batch, height, width, dtype=torch.bool)
    for row, (h, w) in enumerate(g.given("image_sizes_hw").tolist()):
        mask[row, :h, :w] = True
    g.exact("batch_mask_packed", np.packbits(~mask.numpy()))
    seen = {}
    net.net.model.encoder.register_forward_hook(lambda m, i, o: seen.update(memory=o.last_hidden_state))
    net.net.class_labels_classifier.register_forward_hook(lambda m, i, o: seen.update(hs=i[0]))
    net.net.model.position_embedding.register_forward_hook(lambda m, i, o: seen.update(pos=o))
    net.net.model.backbone.register_forward_hook(lambda m, i, o: seen.update(mask=~o[-1][1]))
    with torch.no_grad():
        logits, boxes = net(torch.zeros(batch, 3, height, mask.shape[2]), mask)
    memory = seen["memory"].transpose(1, 2).unflatten(2, features.shape[-2:])
    return seen | {"logits": logits, "boxes": boxes, "memory": memory}


def test_the_transformer_is_the_authors():
    g = load("detection/transformer.npz")
    found = golden_detr(g, "post")
    g.exact("post/feature_mask", found["mask"])
    for name in ("pos", "memory", "hs", "logits", "boxes"):
        g.agree(f"post/{name}", found[name])


def test_the_transformer_normalises_behind_each_block_and_not_before():
    """No protocol uses the authors' other variant: with its weights the numbers are others, the inputs are the same."""
    g = load("detection/transformer.npz")
    found = golden_detr(g, "pre")
    g.exact("pre/feature_mask", found["mask"])
    g.agree("pre/pos", found["pos"])
    for name in ("memory", "hs", "logits", "boxes"):
        other = g.checked(f"pre/{name}", "pre-norm is not offered")
        assert other.shape == tuple(found[name].shape) and np.abs(other - found[name].numpy()).max() > 0.01


def on_meta(classes=91, name="resnet50", freeze="res2"):
    with torch.device("meta"):
        body = Body(backbones.build(name), ["res5"], "frozen", freeze)
        return detr.Detr(body, classes, SIZE)


def test_parameters_are_the_authors():
    g = load("detection/detr_parameters.json")
    for variant in g.names:
        wanted = g.checked(variant, "entry by entry below")
        name, _, rate = variant.partition("_lr_backbone_")
        freeze = "res2" if not rate or float(rate) else "all"
        net = on_meta(wanted["state_shapes"]["class_embed.weight"][0] - 1, name.removesuffix("_dc5"), freeze)
        trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
        body = {n: p for n, p in trained.items() if ".body." in n}
        assert sum(p.numel() for p in body.values()) == wanted["backbone"] and len(body) == wanted["backbone_tensors"]
        assert sum(p.numel() for p in trained.values()) - wanted["backbone"] == wanted["head"]
        frozen = [n for n, p in net.named_parameters() if not p.requires_grad]
        short = sorted(n.partition("network.")[2] for n in frozen)
        assert short == sorted(n.removeprefix("backbone.0.body.") for n in wanted["frozen_names"])
        assert sum(p.numel() for n, p in net.named_parameters() if n in frozen) == wanted["frozen"]
        # in_proj of the authors is q, k and v here: two tensors more of each kind in every attention
        attentions = sum(n.endswith("in_proj_weight") for n in wanted["state_shapes"])
        attentions = max(attentions, SIZE["encoder_layers"] + 2 * SIZE["decoder_layers"])
        assert len(trained) - len(body) == wanted["head_tensors"] + 4 * attentions
        assert len(net.state_dict()) == wanted["state_entries"] + 4 * attentions
        shapes = {tuple(v.shape) for v in net.state_dict().values()}
        names = {n.partition("network.")[2] or n: tuple(v.shape) for n, v in net.state_dict().items()}
        for key, shape in wanted["state_shapes"].items():
            if key.startswith("backbone."):
                assert names[key.removeprefix("backbone.0.body.")] == tuple(shape)
            elif "in_proj" not in key:
                assert tuple(shape) in shapes
        weights = {name: detr.WEIGHTS[name.rstrip("_0123456789")] for name in wanted["loss_weights"]}
        assert weights == wanted["loss_weights"] and len(weights) == 3 * SIZE["decoder_layers"]


def test_settings_that_transformers_has_otherwise_are_the_authors():
    config = on_meta().net.config
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.1, 0.1, 0.1)
    assert (config.class_cost, config.bbox_cost, config.giou_cost, config.activation_function) == (1, 5, 2, "relu")
    assert not config.auxiliary_loss, "its way to the states of inner layers normalises what the next layer sees"


def test_initial_values_are_the_authors():
    torch.manual_seed(0)
    size = {**SIZE, "encoder_layers": 1, "decoder_layers": 1}
    net = detr.Detr(Given(torch.zeros(1, 32, 2, 2)), 20, size).net
    attention, mlp = net.model.encoder.layers[0].self_attn, net.model.encoder.layers[0].mlp
    for name in ("q_proj", "k_proj", "v_proj"):
        bound = math.sqrt(6 / (256 + 3 * 256))  # Xavier of the (3d, d) matrix
        weight = getattr(attention, name).weight
        assert 0.98 * bound < float(weight.detach().abs().max()) <= bound
    for layer, fan in ((attention.o_proj, 512), (mlp.fc1, 256 + 2048), (mlp.fc2, 256 + 2048)):
        assert 0.98 * math.sqrt(6 / fan) < float(layer.weight.detach().abs().max()) <= math.sqrt(6 / fan)
    assert not attention.q_proj.bias.any() and not attention.o_proj.bias.any() and mlp.fc1.bias.any()
    assert float(net.model.query_position_embeddings.weight.detach().std()) == pytest.approx(1, abs=0.02)
    head = net.class_labels_classifier
    assert (
        0.98 / 16 < float(head.weight.detach().abs().max()) <= 1 / 16 and head.bias.any()
    )  # torch's own: 1 / sqrt(256)
    assert not any(
        torch.equal(a, b) for a, b in zip(attention.q_proj.weight[:1], attention.k_proj.weight[:1], strict=True)
    )
