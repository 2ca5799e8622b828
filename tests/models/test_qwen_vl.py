"""Qwen-VL: sizes, names, positions of patches, packed training, and what does not fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from parity.handmade import relative
from parity.handmade_qwen_vl import batch_of, made, sequence, small_config
from torch import Tensor

from qvl.batch import IGNORE, Batch
from qvl.inputs.sequence import Sequence
from qvl.layers.attention import PackedContext
from qvl.layers.places import PatchPlaces, resize_table, sine_table
from qvl.models.keys import Entry, stored_tensors
from qvl.models.qwen_vl.config import AdapterConfig, QwenVLConfig, TokenIds, with_image_size, with_vocabulary
from qvl.models.qwen_vl.keymap import entries
from qvl.models.qwen_vl.model import QwenVL
from qvl.models.registry import build_model, family, family_of, preset
from qvl.train.objectives import objective_of

PARTS = [
    [9],
    [3, (4, 4), 5],
    [2, (2, 2), 3, (8, 4), 6],
    [1, (3, 5), (4, 4), 7],
    [30],
]


def meta(config: QwenVLConfig) -> QwenVL:
    with torch.device("meta"):
        return QwenVL(config)


def counts(model: torch.nn.Module) -> int:
    return sum(t.numel() for t in stored_tensors(model).values())


def to_official(table: tuple[Entry, ...], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        part.name: view.detach().reshape(part.shape).clone()
        for entry in table
        for part, view in entry.views(ours[entry.ours])
    }


def to_ours(table: tuple[Entry, ...], official: dict[str, Tensor]) -> dict[str, Tensor]:
    made = {}
    for entry in table:
        made[entry.ours] = torch.full(entry.shape, float("nan"))
        for part, view in entry.views(made[entry.ours]):
            view.copy_(official[part.name].reshape(view.shape))
    return made


def test_released_size() -> None:
    """The index of the released checkpoint: 19,313,870,336 bytes of bfloat16 in 853 tensors."""
    model = meta(preset("qwen-vl"))
    assert counts(model) == 9_656_935_168
    head = counts(model.visual.adapter.post_norm) + counts(model.visual.adapter.proj)
    adapter = counts(model.visual.adapter) - head
    assert (counts(model.visual) - head - adapter, adapter, head) == (1_842_770_688, 76_054_528, 16_785_408)


def test_released_names() -> None:
    parts = [part for entry in entries(meta(preset("qwen-vl"))) for part in entry.parts]
    shapes = {part.name: part.shape for part in parts}
    assert len(parts) == len(shapes) == 853
    assert {name.split(".")[1] for name in shapes if name.startswith("transformer.")} == {"wte", "h", "ln_f", "visual"}
    t, v = "transformer.", "transformer.visual."
    assert {
        "lm_head.weight": (151936, 4096),
        t + "h.31.attn.c_attn.weight": (12288, 4096),
        t + "h.31.attn.c_attn.bias": (12288,),
        t + "h.0.attn.c_proj.weight": (4096, 4096),
        t + "h.0.mlp.w1.weight": (11008, 4096),
        t + "h.0.mlp.w2.weight": (11008, 4096),
        t + "h.0.mlp.c_proj.weight": (4096, 11008),
        t + "ln_f.weight": (4096,),
        v + "conv1.weight": (1664, 3, 14, 14),
        v + "positional_embedding": (256, 1664),
        v + "transformer.resblocks.47.attn.in_proj.weight": (4992, 1664),
        v + "transformer.resblocks.47.mlp.c_fc.bias": (8192,),
        v + "attn_pool.query": (256, 4096),
        v + "attn_pool.pos_embed": (256, 4096),
        v + "attn_pool.kv_proj.weight": (4096, 1664),
        v + "attn_pool.attn.in_proj_weight": (12288, 4096),
        v + "attn_pool.attn.out_proj.bias": (4096,),
        v + "attn_pool.ln_kv.bias": (4096,),
        v + "ln_post.weight": (4096,),
        v + "proj": (4096, 4096),
    }.items() <= shapes.items()


@pytest.mark.parametrize("same_width", [True, False])
def test_round_trips(same_width: bool) -> None:
    config = small_config(width=48, vision=(48 if same_width else 24, 2, 3, 40))
    model = made(config)
    model.visual.adapter.places_QD.normal_(generator=torch.Generator().manual_seed(5))
    table, ours = entries(model), stored_tensors(model)
    official = to_official(table, ours)
    assert ("transformer.visual.attn_pool.kv_proj.weight" in official) != same_width
    again = to_ours(table, official)
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    for i, name in enumerate(sorted(official)):
        official[name] = torch.randn(official[name].shape, generator=torch.Generator().manual_seed(i))
    back = to_official(table, to_ours(table, official))
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], official[name]) for name in official)


def test_the_second_matrix_is_the_gate() -> None:
    table = {entry.ours: [part.name.split(".")[-2] for part in entry.parts] for entry in entries(meta(small_config()))}
    assert table["decoder.layers.1.mlp.gate_up.weight"] == ["w2", "w1"]


def test_registry() -> None:
    model = build_model(preset("tiny-qwen-vl"))
    assert isinstance(model, QwenVL)
    assert family_of(model) is family("qwen")
    sizes = (model.config.text.width, model.config.text.layers, model.config.text.mlp_hidden)
    tiny = preset("tiny").text
    assert sizes == (tiny.width, tiny.layers, tiny.mlp_hidden)
    with pytest.raises(ValueError, match=r"no model preset 'huge'; there are: qwen2-vl-2b, .*tiny-qwen-vl"):
        preset("huge")
    with pytest.raises(ValueError, match="a int is not a configuration of one of: qwen2_vl, qwen"):
        build_model(3)


def test_sizes_that_cannot_be() -> None:
    tiny = preset("tiny-qwen-vl")
    with pytest.raises(ValueError, match="15 queries do not stand on a square grid"):
        with_image_size(tiny, 112, 15)
    with pytest.raises(ValueError, match="100 pixels is not a multiple of the patch's 14"):
        with_image_size(tiny, 100, 16)
    with pytest.raises(ValueError, match="adapter's 5 heads"):
        replace(tiny, adapter=AdapterConfig(16, 5))
    with pytest.raises(ValueError, match="not a multiple of its 3 heads"):
        replace(tiny, vision=replace(tiny.vision, heads=3))
    larger = with_vocabulary(with_image_size(tiny, 224, 64), 1000, TokenIds(997, 1, 1))
    assert (larger.vocab_size, larger.ids.image_end, larger.ids.image_pad) == (1024, 998, 999)
    assert (larger.vision.image_px, larger.adapter.side) == (224, 8)


def test_sine_table_by_hand() -> None:
    """Row 5 of a 4 x 4 table of width 8 is row 1, column 1; column first, sines before cosines."""
    table = sine_table(4, 8)
    assert table.shape == (16, 8)
    one, hundredth = torch.tensor(1.0), torch.tensor(0.01)
    axis = [one.sin(), hundredth.sin(), one.cos(), hundredth.cos()]
    assert table[5].tolist() == pytest.approx([float(x) for x in (*axis, *axis)])
    assert table[1].tolist() == pytest.approx([float(x) for x in (*axis, 0, 0, 1, 1)])  # row 0, column 1
    assert torch.equal(resize_table(table, (4, 4)), table)
    assert resize_table(table, (2, 7)).shape == (14, 8)


def test_places_follow_the_patches_own_rows_and_columns() -> None:
    """Not their order: patches of each picture are shuffled here."""
    grids = ((1, 2, 3), (1, 3, 2), (1, 2, 3))
    inside = [
        torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).flatten(1) for _, h, w in grids
    ]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    places = PatchPlaces.of(grids, torch.cat([hw[:, order] for hw in inside], dim=1))
    assert (places.sizes, places.lens) == (((2, 3), (3, 2)), (6, 6, 6))
    table = sine_table(4, 8)
    wanted = torch.cat([resize_table(table, (h, w))[order] for _, h, w in grids])
    assert torch.equal(places.look_up(table), wanted)


# Packed equals unpacked, in training too.


@pytest.fixture(scope="module")
def model() -> QwenVL:
    return made(small_config())


def sequences(model: QwenVL) -> list[Sequence]:
    return [sequence(i, parts, model.config, labels=True) for i, parts in enumerate(PARTS)]


def summed_loss(model: QwenVL, batch: Batch) -> Tensor:
    assert batch.labels_T is not None
    return F.cross_entropy(model(batch), batch.labels_T, ignore_index=IGNORE, reduction="sum")


def test_loss_and_gradients(model: QwenVL) -> None:
    every = sequences(model)
    parameters = list(model.parameters())
    packed = summed_loss(model, batch_of(every, model.config))
    packed_grads = torch.autograd.grad(packed, parameters)
    alone = sum(summed_loss(model, batch_of([s], model.config)) for s in every)
    alone_grads = torch.autograd.grad(alone, parameters)
    assert abs(packed - alone) < 1e-5 * alone  # measured: 0
    for (name, _), a, b in zip(model.named_parameters(), packed_grads, alone_grads, strict=True):
        assert relative(a, b) < 1e-5, name  # measured worst: 5.1e-7


def test_branches_equal_whole_conversations(model: QwenVL) -> None:
    beginning = sequence(1, [3, (4, 6)], model.config)
    ends = [sequence(10 + i, [n], model.config) for i, n in enumerate((4, 7))]
    packed = batch_of([beginning, *(end.after(beginning) for end in ends)], model.config)
    with torch.no_grad():
        shared, *branches = model(packed).split(packed.seq_lens)
        for end, branch in zip(ends, branches, strict=True):
            whole = sequence(1, [3, (4, 6), len(end.tokens_T)], model.config)
            whole.tokens_T[-len(end.tokens_T) :] = end.tokens_T
            assert relative(torch.cat((shared, branch)), model(batch_of([whole], model.config))) < 1e-5


def test_long_branches_are_for_training_only() -> None:
    model = made(small_config(trained_len=24))
    beginning = sequence(1, [20], model.config)
    packed = batch_of([beginning, sequence(2, [5], model.config).after(beginning)], model.config)
    with pytest.raises(ValueError, match=r"a branch of 25 tokens, .* beyond 24 tokens"):
        model(packed)
    assert torch.isfinite(model.train()(packed)).all()


def test_chosen_rows_are_rows_of_the_whole(model: QwenVL) -> None:
    batch = batch_of(sequences(model), model.config)
    with torch.no_grad():
        assert relative(model(batch, rows=batch.last_rows), model(batch)[batch.last_rows]) < 1e-6


def test_text_only(model: QwenVL) -> None:
    """No picture anywhere: nothing is seen, and the tower's parameters get zero gradients (not none at all)."""
    batch = batch_of([sequence(0, [5], model.config, True), sequence(1, [8], model.config, True)], model.config)
    assert model.see(batch, PackedContext(batch)).shape == (0, model.config.text.width)
    loss = summed_loss(model, batch)
    grads = torch.autograd.grad(loss, list(model.visual.parameters()))
    assert torch.isfinite(loss)
    assert all(not g.any() for g in grads)


def test_the_trainers_objective_trains_all_of_it() -> None:
    """No parameter is left without a gradient."""
    model = made(small_config()).train()
    beginning = sequence(1, [3, (4, 4)], model.config, labels=True)
    ends = [sequence(10 + i, [n], model.config, labels=True).after(beginning) for i, n in enumerate((4, 7))]
    objective_of("next_token").losses(model, batch_of([beginning, *ends], model.config)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_places_are_those_of_the_queries(model: QwenVL) -> None:
    batch = batch_of(sequences(model), model.config)
    side = model.config.adapter.side
    square = [(r, c) for r in range(side) for c in range(side)]
    pictures = len(batch.vision_rows_M) // side**2
    assert pictures > 1
    assert model.places(batch).T.tolist() == [list(rc) for _ in range(pictures) for rc in square]


def test_in_bfloat16(model: QwenVL) -> None:
    small = made(small_config()).bfloat16()
    batch = batch_of(sequences(model), model.config)
    with torch.no_grad():
        assert relative(small(batch).float(), model(batch)) < 0.1  # measured: 0.027


def test_pictures_are_encoded_once_and_in_order(model: QwenVL, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    tower = model.visual.forward
    monkeypatch.setattr(model.visual, "forward", lambda *a: calls.append(a[0].shape[0]) or tower(*a))
    batch = batch_of(sequences(model), model.config)
    with torch.no_grad():
        model(batch)
        assert calls == [batch.patches_PC.shape[0]]
        tokens = model.see(batch, PackedContext(batch)).split(model.config.adapter.queries)
        visuals = [v for s in sequences(model) for v in s.visuals]
        for i, visual in enumerate(visuals):
            alone = batch_of(
                [replace(sequence(0, [1, visual.grid[1:]], model.config), visuals=(visual,))], model.config
            )
            assert relative(tokens[i], model.see(alone, PackedContext(alone))) < 1e-5


def test_more_pictures_than_placeholders(model: QwenVL) -> None:
    batch = batch_of(sequences(model), model.config)
    count = len(batch.vision_rows_M)
    with pytest.raises(ValueError, match=f"{count} vision tokens for {count - 1} placeholder rows"):
        model(replace(batch, vision_rows_M=batch.vision_rows_M[:-1]))


def test_initial_weights_follow_the_seed() -> None:
    a, b, c = (QwenVL(small_config()) for _ in range(3))
    for one, seed in ((a, 1), (b, 1), (c, 2)):
        one.init_weights(seed)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)
    for name, p in a.named_parameters():
        if p.ndim == 1:
            assert name.endswith("qkv.bias") or (p == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name
        else:
            assert 0.5 < float(p.detach().std()) * p.shape[1] ** 0.5 < 2.2, name
