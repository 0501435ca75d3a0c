"""What every PTX operation gives, by Python's integers and numpy's floats, after the manual and not the translator.

Integers come as Python's, of any size, and results wrap to their type; floats come as numpy's scalars.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

FLOATS = {"f32": np.float32, "f64": np.float64}
INTEGERS = [f"{sign}{size}" for sign in "us" for size in (16, 32, 64)]
BITS = ["b16", "b32", "b64"]
COMPARE = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}

# Opcode: types of the operands, type of the result, function.
REFERENCES: dict[str, tuple[list[str], str, Callable[..., Any]]] = {}


def _add(opcode: str, signature: str, function: Callable[..., Any]) -> None:
    operands, result = signature.split("->")
    REFERENCES[opcode] = (operands.split(), result.strip(), function)


def rounded(value: Fraction, kind: str) -> Any:
    """The nearest float, ties to even, of a finite value that is not zero."""
    digits, lowest = (24, -149) if kind == "f32" else (53, -1074)
    exponent = value.numerator.bit_length() - value.denominator.bit_length() - digits
    unit = Fraction(2) ** max(exponent, lowest)
    if abs(value) / unit >= 2**digits:
        unit *= 2
    sign = 1 if value > 0 else -1
    try:
        magnitude = float(abs(round(value / unit) * unit))
    except OverflowError:
        magnitude = np.inf
    return FLOATS[kind](sign * magnitude)


def fma(kind: str) -> Callable[..., Any]:
    def function(a: Any, b: Any, c: Any) -> Any:
        if not np.isfinite([a, b, c]).all():
            finite = np.isfinite([a, b]).all()
            return (FLOATS[kind](1) if finite else a * b) + c  # a finite product must not overflow
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        return rounded(exact, kind) if exact else a * b + c  # the sign of zero

    return function


def nan(*values: Any) -> bool:
    return any(map(np.isnan, values))


def least(a: Any, b: Any) -> Any:
    """A NaN is no number to choose, and -0 is less than 0."""
    if np.isnan(a) or np.isnan(b):
        return b if np.isnan(a) else a
    return min(a, b, key=lambda x: (x, not np.signbit(x)))


def truncated(a: int, b: int) -> int:
    return int(Fraction(a, b))


def bfe(x: int, position: int, count: int) -> int:
    """Position and count are the lowest bytes of their operands."""
    return x >> (position & 255) & (1 << (count & 255)) - 1


def bfi(new: int, x: int, position: int, count: int) -> int:
    position, mask = position & 255, (1 << (count & 255)) - 1
    return x & ~(mask << position) | (new & mask) << position


def prmt(a: int, b: int, selectors: int) -> int:
    data = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    chosen = [(selectors >> 4 * i) & 15 for i in range(4)]
    return int.from_bytes([255 * (data[s & 7] >> 7) if s & 8 else data[s & 7] for s in chosen], "little")


def bfloat16_bits(x: Any) -> int:
    """Half way between two neighbors of 16 bits, the even one."""
    if np.isnan(x):
        return 0x7FFF
    bits = int(np.float32(x).view(np.uint32))
    lower, rest = bits >> 16, bits & 0xFFFF
    return lower + (rest > 0x8000 or (rest == 0x8000 and lower & 1))


def half_bits(x: Any) -> int:
    return 0x7FFF if np.isnan(x) else int(np.float16(x).view(np.uint16))


for t in FLOATS:
    for name, function in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}.items():
        _add(f"{name}.rn.{t}", f"{t} {t} -> {t}", function)
    _add(f"fma.rn.{t}", f"{t} {t} {t} -> {t}", fma(t))
    for name, function in {"sqrt.rn": np.sqrt, "neg": np.negative, "abs": np.abs}.items():
        _add(f"{name}.{t}", f"{t} -> {t}", function)
    _add(f"min.{t}", f"{t} {t} -> {t}", least)
    _add(f"max.{t}", f"{t} {t} -> {t}", lambda a, b: -least(-a, -b))
    _add(f"copysign.{t}", f"{t} {t} -> {t}", lambda a, b: np.copysign(b, a))
    for name, compare in COMPARE.items():
        _add(f"setp.{name}.{t}", f"{t} {t} -> pred", lambda a, b, f=compare: not nan(a, b) and f(a, b))
        _add(f"setp.{name}u.{t}", f"{t} {t} -> pred", lambda a, b, f=compare: nan(a, b) or f(a, b))
    _add(f"setp.num.{t}", f"{t} {t} -> pred", lambda a, b: not nan(a, b))
    _add(f"setp.nan.{t}", f"{t} {t} -> pred", lambda a, b: nan(a, b))
    for i in INTEGERS:
        _add(f"cvt.rn.{t}.{i}", f"{i} -> {t}", lambda a, t=t: rounded(Fraction(a), t) if a else FLOATS[t](0))
_add("cvt.rn.f32.f64", "f64 -> f32", np.float32)
_add("cvt.f64.f32", "f32 -> f64", np.float64)
_add("cvt.f32.f16", "b16 -> f32", lambda a: np.float32(np.uint16(a).view(np.float16)))
_add("cvt.f32.bf16", "b16 -> f32", lambda a: np.uint32(a << 16).view(np.float32))
for kind, to_bits in (("f16", half_bits), ("bf16", bfloat16_bits)):
    _add(f"cvt.rn.{kind}.f32", "f32 -> b16", to_bits)
    _add(f"cvt.rn.{kind}x2.f32", "f32 f32 -> b32", lambda a, b, f=to_bits: f(a) << 16 | f(b))

for t in INTEGERS:
    size = int(t[1:])
    for name, function in {"add": operator.add, "sub": operator.sub, "mul.lo": operator.mul}.items():
        _add(f"{name}.{t}", f"{t} {t} -> {t}", function)
    _add(f"mad.lo.{t}", f"{t} {t} {t} -> {t}", lambda a, b, c: a * b + c)
    _add(f"div.{t}", f"{t} {t} -> {t}", truncated)
    _add(f"rem.{t}", f"{t} {t} -> {t}", lambda a, b: a - b * truncated(a, b))
    _add(f"min.{t}", f"{t} {t} -> {t}", min)
    _add(f"max.{t}", f"{t} {t} -> {t}", max)
    _add(f"shr.{t}", f"{t} u32 -> {t}", lambda a, b: a >> min(b, 64))
    for other in [*INTEGERS, "u8", "s8"]:
        _add(f"cvt.{t}.{other}", f"{other} -> {t}", lambda a: a)
    if t.startswith("s"):
        _add(f"neg.{t}", f"{t} -> {t}", operator.neg)
        _add(f"abs.{t}", f"{t} -> {t}", abs)
    if size < 64:
        wide = f"{t[0]}{2 * size}"
        _add(f"mul.wide.{t}", f"{t} {t} -> {wide}", operator.mul)
        _add(f"mad.wide.{t}", f"{t} {t} {wide} -> {wide}", lambda a, b, c: a * b + c)
    if size < 64 or t == "u64":
        _add(f"mul.hi.{t}", f"{t} {t} -> {t}", lambda a, b, size=size: a * b >> size)

for t in [*BITS, "pred"]:
    for name, function in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        _add(f"{name}.{t}", f"{t} {t} -> {t}", function)
    _add(f"not.{t}", f"{t} -> {t}", operator.not_ if t == "pred" else operator.invert)
for t in BITS:
    _add(f"shl.{t}", f"{t} u32 -> {t}", lambda a, b: a << min(b, 64))
    _add(f"shr.{t}", f"{t} u32 -> {t}", lambda a, b: a >> min(b, 64))
for size in (32, 64):
    _add(f"bfe.u{size}", f"u{size} u32 u32 -> u{size}", bfe)
    _add(f"bfi.b{size}", f"b{size} b{size} u32 u32 -> b{size}", bfi)
_add("prmt.b32", "b32 b32 b32 -> b32", prmt)
_add("shf.l.wrap.b32", "b32 b32 u32 -> b32", lambda a, b, c: (b << 32 | a) << c % 32 >> 32)
_add("shf.r.wrap.b32", "b32 b32 u32 -> b32", lambda a, b, c: (b << 32 | a) >> c % 32)
for t in [*INTEGERS, *BITS, *FLOATS, "pred"]:
    _add(f"mov.{t}", f"{t} -> {t}", lambda a: a)
    if t in INTEGERS + BITS:
        for name in COMPARE if t in INTEGERS else ("eq", "ne"):
            _add(f"setp.{name}.{t}", f"{t} {t} -> pred", COMPARE[name])
    if t != "pred":
        _add(f"selp.{t}", f"{t} {t} pred -> {t}", lambda a, b, c: a if c else b)
