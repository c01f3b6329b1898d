"""What becomes of each tensor, and where it is put."""

from __future__ import annotations

from typing import Any

import pytest

from freehold.compress import CompressOptions, make_plan
from freehold.compress.layout import lay_out
from freehold.compress.plan import TensorPlan
from freehold.compress.quantization_config import quantization_config
from freehold.formats import TensorInfo


class Shapes:
    """A checkpoint of which only names, types and shapes exist."""

    def __init__(self, dtype: str = "BF16", **shapes: tuple[int, ...]) -> None:
        self.config: dict[str, Any] = {"model_type": "llama"}
        self._infos = {name.replace("__", "."): shape for name, shape in shapes.items()}
        self._dtype = dtype

    def names(self) -> list[str]:
        return list(self._infos)

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(name, self._dtype, self._infos[name], 0)


def planned(options: CompressOptions | None = None, **shapes: tuple[int, ...]) -> dict[str, TensorPlan]:
    shapes = {"model__layers__0__mlp__up_proj__weight": (64, 64)} | shapes
    return {tensor.name: tensor for tensor in make_plan(Shapes(**shapes), options or CompressOptions()).tensors}


@pytest.mark.parametrize(
    ("columns", "wanted", "group"), [(576, 128, 64), (576, 64, 64), (1536, 128, 128), (160, 64, 32), (1536, 32, 32)]
)
def test_the_group_is_the_largest_that_divides_the_width_and_says_so(columns: int, wanted: int, group: int) -> None:
    tensor = planned(CompressOptions(group_size=wanted), a__weight=(8, columns))["a.weight"]
    assert tensor.scheme is not None
    assert (tensor.scheme.bits, tensor.scheme.group_size) == (4, group)
    assert (f"groups of {group}, because {wanted} does not divide" in tensor.reason) == (group != wanted)


@pytest.mark.parametrize(("rows", "bits"), [(32, 8), (64, 4)])
@pytest.mark.parametrize("name", ["k_proj", "v_proj"])
def test_keys_and_values_that_query_heads_share_get_8_bits(name: str, rows: int, bits: int) -> None:
    tensor = planned(**{f"model__layers__0__self_attn__{name}__weight": (rows, 64)})[
        f"model.layers.0.self_attn.{name}.weight"
    ]
    assert tensor.scheme is not None
    assert tensor.scheme.bits == bits
    assert ("shared by several query heads" in tensor.reason) == (bits == 8)


def test_a_width_that_no_group_divides_gets_8_bits_per_row() -> None:
    tensor = planned(a__weight=(8, 100))["a.weight"]
    assert tensor.scheme is not None
    assert (tensor.scheme.bits, tensor.scheme.group_size) == (8, None)
    assert "not a multiple of 32" in tensor.reason


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model__norm__weight", (64,), "norm or bias"),
        ("model__layers__0__mlp__gate__weight", (8, 64), "router"),
        ("model__embed_positions__weight", (512, 64), "another kind"),
        ("model__layers__0__conv__weight", (8, 64, 4), "not a linear layer"),
        ("model__layers__0__A_log", (8, 64), "not a linear layer"),
        ("model__empty__weight", (0, 64), "not a linear layer"),
    ],
)
def test_what_is_not_a_linear_layer_is_kept_with_its_reason(name: str, shape: tuple[int, ...], reason: str) -> None:
    tensor = planned(**{name: shape})[name.replace("__", ".")]
    assert tensor.scheme is None
    assert tensor.dtype == "BF16"
    assert reason in tensor.reason


def test_embedding_and_output_layer_get_8_bits() -> None:
    plan = planned(model__embed_tokens__weight=(96, 64), lm_head__weight=(96, 64))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        scheme = plan[name].scheme
        assert scheme is not None
        assert (scheme.bits, scheme.group_size, scheme.packed) == (8, None, False)
        assert plan[name].tied == ""


def test_an_embedding_without_an_output_layer_serves_as_both() -> None:
    assert planned(model__embed_tokens__weight=(96, 64))["model.embed_tokens.weight"].tied == "lm_head"
    nested = planned(language__model__embed_tokens__weight=(96, 64))
    assert nested["language.model.embed_tokens.weight"].tied == "language.lm_head"


def test_a_shared_embedding_of_unknown_kin_is_kept() -> None:
    tensor = planned(transformer__wte__weight=(96, 64))["transformer.wte.weight"]
    assert tensor.scheme is None
    assert "unknown" in tensor.reason


def test_a_router_is_on_the_ignore_list() -> None:
    shapes = {"model__layers__0__mlp__up_proj__weight": (64, 64), "model__layers__0__mlp__gate__weight": (8, 64)}
    config = quantization_config(make_plan(Shapes(**shapes), CompressOptions()))
    assert config["ignore"] == ["model.layers.0.mlp.gate"]


def test_layers_are_named_one_by_one_where_their_twins_differ() -> None:
    shapes = {"model__layers__0__up__weight": (8, 64), "model__layers__1__up__weight": (8, 100)}
    groups = quantization_config(make_plan(Shapes(**shapes), CompressOptions()))["config_groups"].values()
    assert [group["targets"] for group in groups] in (
        [["model.layers.1.up"], ["Linear"]],
        [["model.layers.0.up"], ["Linear"]],
    )


def test_shards_hold_whole_tensors_and_the_index_names_every_part() -> None:
    shapes = {f"model__layers__{i}__up__weight": (64, 64) for i in range(5)}
    plan = make_plan(Shapes(**shapes), CompressOptions())
    one = lay_out(plan.tensors)
    assert [shard.file for shard in one.shards] == ["model.safetensors"]
    assert one.index is None
    each = 64 * 32 + 64 * 2 * 2 + 16
    layout = lay_out(plan.tensors, limit=2 * each)
    assert [shard.file for shard in layout.shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert layout.index is not None
    assert layout.index["metadata"] == {"total_size": 5 * each}
    for name, slots in layout.slots.items():
        assert {layout.index["weight_map"][slot.part.name] for slot in slots.values()} == {slots["codes"].file}, name
    assert len(layout.index["weight_map"]) == 15


def test_every_part_begins_on_a_multiple_of_its_type() -> None:
    shapes = {f"model__layers__{i}__up__weight": (3, 100 + 28 * (i % 2)) for i in range(5)}
    plan = make_plan(Shapes(**shapes, model__norm__weight=(7,)), CompressOptions())
    sizes = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1}
    for slots in lay_out(plan.tensors).slots.values():
        for slot in slots.values():
            assert slot.offset % sizes[slot.part.dtype] == 0
