"""The numbers of tensor types in GGUF files: those that are read, and by name those that are not."""

from __future__ import annotations

from minicpm4.errors import CheckpointError

Q2_0_TYPE = 42
Q2_0_GROUPS = {64: "q2_0", 128: "q2_0_g128"}  # one number for two formats; `gguf.q2_0_group` tells them apart
FORMAT_OF_TYPE = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0",
    12: "q4_k", 13: "q5_k", 14: "q6_k", 30: "bf16", 34: "tq1_0", 35: "tq2_0",
}  # fmt: skip
OTHER_TYPES = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M",
    31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0", 142: "PQ2_0", 143: "PTQ1_0",
}  # fmt: skip
TRANSFORMED = (142, 143)  # of weights that expect a Hadamard transform of what they meet
REMOVED = (4, 5, 31, 32, 33, 36, 37, 38)


def format_of_type(type_id: int, *, group: int, where: str) -> str:
    """The storage format of a type. group: of q2_0. where: file and tensor, for errors. CheckpointError for a type that is not read."""
    if type_id == Q2_0_TYPE:
        return Q2_0_GROUPS[group]
    if type_id in FORMAT_OF_TYPE:
        return FORMAT_OF_TYPE[type_id]
    name, note = OTHER_TYPES.get(type_id, "which is unknown"), ""
    if type_id in TRANSFORMED:
        note = ", whose weights need transformed activations"
    elif type_id in REMOVED:
        note = ", which llama.cpp has given up"
    raise CheckpointError(
        f"{where} has type {type_id}, {name}{note}: not supported",
        hint=f"get or make the model in one of {', '.join((*FORMAT_OF_TYPE.values(), *Q2_0_GROUPS.values()))}",
    )
