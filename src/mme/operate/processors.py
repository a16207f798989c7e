"""What the processors of SageMaker's instance types can do, by family, and which formats of weights gain nothing there.

Sources: AWS's pages of the instance types (which processor each family has) and the processors' instruction sets. A
family that has been built with several processors counts as the oldest of them.
"""

from __future__ import annotations

import re

_TYPE = re.compile(r"ml\.(?P<family>[a-z]+\d+[a-z-]*)\.[\w-]+")

VNNI, BF16 = "VNNI", "BF16"

# Skylake and Broadwell before it have neither; Cascade Lake and Ice Lake multiply int8; Sapphire Rapids bfloat16 too.
_X86: dict[str, frozenset[str]] = {
    **dict.fromkeys(("m4", "c4", "r4", "t2", "t3", "m5", "m5d", "c5", "c5d", "r5", "r5d"), frozenset()),
    **dict.fromkeys(("m6a", "c6a", "r6a", "m5a", "r5a"), frozenset()),
    **dict.fromkeys(
        ("m6i", "m6id", "c6i", "c6id", "r6i", "r6id", "m5n", "r5n", "m5dn", "r5dn", "c6in"), frozenset({VNNI})
    ),
    **dict.fromkeys(("m7i", "c7i", "r7i", "m7i-flex", "c7i-flex", "r8i", "m8i", "c8i"), frozenset({VNNI, BF16})),
    **dict.fromkeys(("m7a", "c7a", "r7a", "m8a", "c8a", "r8a"), frozenset({VNNI, BF16})),
}
# Graviton2 has int8 dot products; Graviton3 and 4 bfloat16 too.
_ARM: dict[str, frozenset[str]] = {
    **dict.fromkeys(("m6g", "m6gd", "c6g", "c6gd", "c6gn", "r6g", "r6gd"), frozenset({VNNI})),
    **dict.fromkeys(
        ("m7g", "m7gd", "c7g", "c7gd", "c7gn", "r7g", "r7gd", "m8g", "c8g", "r8g"), frozenset({VNNI, BF16})
    ),
}


def family(instance_type: str) -> str | None:
    match = _TYPE.fullmatch(instance_type)
    return match["family"] if match else None


def has_gpu(instance_type: str) -> bool:
    return (family(instance_type) or "").startswith(("g", "p"))


def is_arm(instance_type: str) -> bool:
    return family(instance_type) in _ARM


def lacks(instance_type: str, dtype: str | None, quantize: str | None) -> str | None:
    """What the processor lacks for weights of this format, in words; None where it lacks nothing, or is not known
    here."""
    name = family(instance_type)
    if name is None or has_gpu(instance_type):
        return None
    can = _X86.get(name, _ARM.get(name))
    if can is None:
        return None
    if quantize == "int8" and VNNI not in can:
        return "instructions that multiply int8 (VNNI)"
    if dtype == "bfloat16" and BF16 not in can:
        return "arithmetic in bfloat16"
    if dtype == "float16":
        return "arithmetic in float16"
    return None
