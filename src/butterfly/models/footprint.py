"""What every tensor becomes in memory, in bytes: knowledge that this room shares with the engine.

| stored as                       | bfloat16 compute, weights int4                     | float32 / float16 |
| ------------------------------- | -------------------------------------------------- | ----------------- |
| matrix Q4_0, Q4_1, Q4_K         | int4, groups of 32, bf16 scale and zero per group  | 4 / 2 per value   |
| matrix Q5_0, Q5_K, Q6_K, Q8_0   | two such halves (high and low nibble)              | 4 / 2 per value   |
| matrix F16, BF16, F32           | 2 per value                                        | 4 / 2 per value   |
| vector (norm, bias)             | 4 per value: float32                               | 4 per value       |
| embedding                       | nothing: rows are read from the mapped file        | the same          |

With weights int8 each of these quantised matrices takes a byte per value and 12 bytes per row; with mixed weights a
layer has both, the head only int4.

int4 rows are padded to a multiple of 64, which the packed layout needs. A generated embedding has no
file to map, so it is held as it would be stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from butterfly.models.weights import EMBEDDING, LM_HEAD, OUTPUT_NORM
from butterfly.specs import ComputeDType, ModelFootprint, ModelSpec, Storage, TensorEntry, WeightFormat

DTYPE_BYTES: Mapping[ComputeDType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
VECTOR_VALUE_BYTES = 4
GROUP = 32  # values that share a scale and a zero
ROW_MULTIPLE = 64
GROUP_PARAMETER_BYTES = 4  # bf16 scale and zero
INT8_ROW_BYTES = 12  # float32 scale, int64 zero

INT4_PLANES: Mapping[Storage, int] = {
    "Q4_0": 1,
    "Q4_1": 1,
    "Q4_K": 1,
    "Q5_0": 2,
    "Q5_K": 2,
    "Q6_K": 2,
    "Q8_0": 2,
}
"""How many packed int4 matrices hold a matrix of this storage."""


def resident_bytes(entry: TensorEntry, dtype: ComputeDType, weights: WeightFormat = "int4") -> int:
    """Return the bytes of a layer's or the head's tensor once a stage has loaded it."""
    num_values = prod(entry.shape)
    if len(entry.shape) == 1:
        return num_values * VECTOR_VALUE_BYTES
    rows, columns = num_values // entry.shape[-1], entry.shape[-1]
    planes = INT4_PLANES.get(entry.storage, 0)
    if dtype != "bfloat16" or not planes or columns % GROUP:
        return num_values * DTYPE_BYTES[dtype]
    padded_rows = -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE
    int4_bytes = planes * padded_rows * (columns // 2 + columns // GROUP * GROUP_PARAMETER_BYTES)
    int8_bytes = num_values + rows * INT8_ROW_BYTES
    return {"int4": int4_bytes, "int8": int8_bytes, "mixed": int4_bytes + int8_bytes}[weights]


def footprint(
    spec: ModelSpec, tensors: Mapping[str, TensorEntry], dtype: ComputeDType, weights: WeightFormat = "int4"
) -> ModelFootprint:
    """Return what the planner needs to know of a model computed in `dtype`, quantised matrices held as `weights`."""
    value_bytes = DTYPE_BYTES[dtype]
    layer_bytes = [0] * spec.num_layers
    for name, entry in tensors.items():
        if name.startswith("layers."):
            layer_bytes[int(name.split(".")[1])] += resident_bytes(entry, dtype, weights)
    embedding = tensors[EMBEDDING]
    head = tensors[EMBEDDING if spec.tied_embedding else LM_HEAD]
    kv_bytes = 2 * spec.num_kv_heads * spec.head_dim * value_bytes
    kinds = layer_kinds(spec, tensors)
    return ModelFootprint(
        layer_weight_bytes=tuple(layer_bytes),
        embedding_bytes=0 if embedding.file else embedding.num_bytes,
        head_bytes=resident_bytes(head, dtype, "int4" if weights == "mixed" else weights)
        + resident_bytes(tensors[OUTPUT_NORM], dtype),
        kv_bytes_per_token=(kv_bytes,) * spec.num_layers,
        max_context=spec.max_context,
        hidden_bytes_per_token=spec.hidden_size * value_bytes,
        layer_kinds=kinds,
        num_layer_params=tuple(_num_params(tensors, layer) for layer in range(spec.num_layers)),
        num_head_params=prod(head.shape),
        activation_bytes_per_token=_activation_bytes_per_token(spec),
        border_bytes_per_token=spec.hidden_size * value_bytes,
    )


def layer_kinds(spec: ModelSpec, tensors: Mapping[str, TensorEntry]) -> tuple[int, ...]:
    """Number the layers such that two have one number if they cost the same: attention, shapes and storage alike."""
    numbers: dict[object, int] = {}
    kinds = []
    for layer, layer_spec in enumerate(spec.layers):
        prefix = f"layers.{layer}."
        entries = ((name, entry) for name, entry in tensors.items() if name.startswith(prefix))
        form = sorted((name.removeprefix(prefix), entry.storage, entry.shape) for name, entry in entries)
        kinds.append(numbers.setdefault((layer_spec.window, tuple(form)), len(numbers)))
    return tuple(kinds)


def _num_params(tensors: Mapping[str, TensorEntry], layer: int) -> int:
    prefix = f"layers.{layer}."
    return sum(prod(entry.shape) for name, entry in tensors.items() if name.startswith(prefix))


def _activation_bytes_per_token(spec: ModelSpec) -> int:
    """Residual, norm, queries, keys, values and mixed heads in float32, and the widest of the MLP's tiles once more."""
    widths = 3 * spec.hidden_size + 2 * (spec.num_heads + spec.num_kv_heads) * spec.head_dim
    return 4 * (widths + spec.intermediate_size)
