"""What the PTX instructions compute, one C++ expression for each opcode: the instructions from registers to registers.

An opcode that is not here is unknown. In particular there is no floating-point operation that is not rounded to
nearest (``.rn``), and none that flushes subnormal numbers (``.ftz``) or is approximate (``.approx``).
"""

from __future__ import annotations

from dataclasses import dataclass

FLOATS = ("f32", "f64")
INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
BITS = ("b16", "b32", "b64")
COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


@dataclass(frozen=True)
class Operation:
    """An expression of the operands a, b, c, ... (of these PTX types), and the type of its value."""

    result: str
    operands: tuple[str, ...]
    expression: str


OPERATIONS: dict[str, Operation] = {}


def _define(opcode: str, signature: str, expression: str) -> None:
    """Add an opcode. The signature is ``types of the operands -> type of the result``, separated by spaces."""
    operands, result = signature.split("->")
    OPERATIONS[opcode] = Operation(result.strip(), tuple(operands.split()), expression)


for t in FLOATS:
    for name, sign in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/")):
        _define(f"{name}.rn.{t}", f"{t} {t} -> {t}", f"a {sign} b")
    _define(f"fma.rn.{t}", f"{t} {t} {t} -> {t}", "std::fma(a, b, c)")
    _define(f"sqrt.rn.{t}", f"{t} -> {t}", "std::sqrt(a)")
    _define(f"neg.{t}", f"{t} -> {t}", "-a")
    _define(f"abs.{t}", f"{t} -> {t}", "std::abs(a)")
    _define(f"min.{t}", f"{t} {t} -> {t}", "minimum(a, b)")
    _define(f"max.{t}", f"{t} {t} -> {t}", "-minimum(-a, -b)")
    _define(f"copysign.{t}", f"{t} {t} -> {t}", "std::copysign(b, a)")  # the sign is that of a
    for name, sign in COMPARISONS.items():  # false for a NaN, and those with a "u" true
        _define(f"setp.{name}.{t}", f"{t} {t} -> pred", f"!unordered(a, b) && a {sign} b")
        _define(f"setp.{name}u.{t}", f"{t} {t} -> pred", f"unordered(a, b) || a {sign} b")
    _define(f"setp.num.{t}", f"{t} {t} -> pred", "!unordered(a, b)")
    _define(f"setp.nan.{t}", f"{t} {t} -> pred", "unordered(a, b)")
    for i in INTEGERS:
        _define(f"cvt.rn.{t}.{i}", f"{i} -> {t}", f"{t}(a)")
_define("cvt.rn.f32.f64", "f64 -> f32", "f32(a)")
_define("cvt.f64.f32", "f32 -> f64", "f64(a)")
_define("cvt.f32.f16", "b16 -> f32", "half_to_float(a)")
_define("cvt.f32.bf16", "b16 -> f32", "bfloat16_to_float(a)")
for kind, function in (("f16", "round_to_half"), ("bf16", "round_to_bfloat16")):
    _define(f"cvt.rn.{kind}.f32", "f32 -> b16", f"{function}(a)")
    _define(f"cvt.rn.{kind}x2.f32", "f32 f32 -> b32", f"b32({function}(a)) << 16 | {function}(b)")  # a goes to the top

for t in (*INTEGERS, *BITS):
    for name in COMPARISONS if t in INTEGERS else ("eq", "ne"):
        _define(f"setp.{name}.{t}", f"{t} {t} -> pred", f"a {COMPARISONS[name]} b")
for t in INTEGERS:  # sums and products wrap, which only unsigned integers do in C++
    for name, sign in (("add", "+"), ("sub", "-"), ("mul.lo", "*")):
        _define(f"{name}.{t}", f"{t} {t} -> {t}", f"{t}(u64(a) {sign} u64(b))")
    _define(f"mad.lo.{t}", f"{t} {t} {t} -> {t}", f"{t}(u64(a) * u64(b) + u64(c))")
    _define(f"div.{t}", f"{t} {t} -> {t}", "a / divisor(a, b)")
    _define(f"rem.{t}", f"{t} {t} -> {t}", "a % divisor(a, b)")
    _define(f"min.{t}", f"{t} {t} -> {t}", "a < b ? a : b")
    _define(f"max.{t}", f"{t} {t} -> {t}", "a > b ? a : b")
    _define(f"shr.{t}", f"{t} u32 -> {t}", "shift_right(a, b)")
    for other in (*INTEGERS, "u8", "s8"):
        _define(f"cvt.{t}.{other}", f"{other} -> {t}", f"{t}(a)")
for t in ("s16", "s32", "s64"):
    _define(f"neg.{t}", f"{t} -> {t}", f"{t}(-u64(a))")
    _define(f"abs.{t}", f"{t} -> {t}", f"a < 0 ? {t}(-u64(a)) : a")
for t, wide in (("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")):
    _define(f"mul.wide.{t}", f"{t} {t} -> {wide}", f"{wide}(a) * {wide}(b)")
    _define(f"mad.wide.{t}", f"{t} {t} {wide} -> {wide}", f"{wide}(u64({wide}(a) * {wide}(b)) + u64(c))")
    _define(f"mul.hi.{t}", f"{t} {t} -> {t}", f"{t}(({wide}(a) * {wide}(b)) >> 8 * sizeof(a))")
_define("mul.hi.u64", "u64 u64 -> u64", "u64((unsigned __int128)(a) * b >> 64)")

for t in (*BITS, "pred"):
    for name, sign in (("and", "&"), ("or", "|"), ("xor", "^")):
        _define(f"{name}.{t}", f"{t} {t} -> {t}", f"{t}(a {sign} b)")
    _define(f"not.{t}", f"{t} -> {t}", "!a" if t == "pred" else f"{t}(~a)")
for t in BITS:
    _define(f"shl.{t}", f"{t} u32 -> {t}", "shift_left(a, b)")
    _define(f"shr.{t}", f"{t} u32 -> {t}", "shift_right(a, b)")
for t in ("u32", "u64"):
    _define(f"bfe.{t}", f"{t} u32 u32 -> {t}", "bits_at(a, b, c)")
for t in ("b32", "b64"):
    _define(f"bfi.{t}", f"{t} {t} u32 u32 -> {t}", "with_bits_at(a, b, c, d)")
_define("prmt.b32", "b32 b32 b32 -> b32", "permuted_bytes(a, b, c)")
# The words b and a one after the other, shifted; .wrap takes the distance modulo 32.
_define("shf.l.wrap.b32", "b32 b32 u32 -> b32", "b32(((u64(b) << 32 | a) << (c & 31)) >> 32)")
_define("shf.r.wrap.b32", "b32 b32 u32 -> b32", "b32((u64(b) << 32 | a) >> (c & 31))")

for t in (*FLOATS, *INTEGERS, *BITS, "pred"):
    _define(f"mov.{t}", f"{t} -> {t}", "a")
    if t != "pred":
        _define(f"selp.{t}", f"{t} {t} pred -> {t}", "c ? a : b")
_define("cvta.to.global.u64", "u64 -> u64", "a")  # generic addresses are those of the host
_define("cvta.shared.u64", "u64 -> u64", "u64(shared + a)")
_define("cvta.to.shared.u64", "u64 -> u64", "a - u64(shared)")
