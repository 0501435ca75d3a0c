"""Translates PTX into C++ that runs on a CPU: every instruction becomes one statement, every branch a goto.

Registers are unsigned integers; an instruction takes their bits as values of its type (machine.h). What an instruction
computes is in ptx_operations.py; here are the instructions that do more than that.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ptx_operations import OPERATIONS
from ptx_syntax import Brace, Instruction, Kernel, Label, Registers, size_of

# Where a value is kept that is used once or often: no matter here.
CACHE_HINTS = re.compile(r"nc|ca|cg|cs|cv|wb|wt|lu|L[12]::\w+")
SPECIAL_REGISTERS = {
    f"%{name}.{axis}": f"ptx_{name}({number})"
    for name in ("tid", "ntid", "ctaid", "nctaid")
    for number, axis in enumerate("xyz")
}


def translate(kernel: Kernel, function: str) -> str:
    """Return a C++ function with what the kernel does in one thread. Includes nothing; needs machine.h."""
    lines = [
        f"// {kernel.name}",
        f"void {function}(const unsigned char* const* parameters) {{",
        f"  unsigned char* const shared = ptx_shared_memory({kernel.shared_size});",
        f"  constexpr u64 shared_size = {kernel.shared_size};",
        "  (void)parameters, (void)shared, (void)shared_size;",
    ]
    statements = _Statements(kernel)
    lines += [f"  {statements.translate(item)}" for item in kernel.body]
    return "\n".join([*lines, "}"])


def _identifier(name: str) -> str:
    """A register or label as a C++ identifier that is no other name: %f32 as of_f32."""
    return "of_" + name.lstrip("%$")


def _register_type(ptx_type: str) -> str:
    return "pred" if ptx_type == "pred" else f"b{8 * max(size_of(ptx_type), 2)}"


def _names(registers: Registers) -> list[str]:
    numbers = [""] if registers.count is None else map(str, range(registers.count))
    return [f"{registers.prefix}{number}" for number in numbers]


class _Statements:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._parameters = {f"{kernel.name}_param_{i}": i for i in range(len(kernel.parameter_sizes))}
        self._registers = {name for item in kernel.body if isinstance(item, Registers) for name in _names(item)}

    def translate(self, item: Instruction | Label | Registers | Brace) -> str:
        if isinstance(item, Label):
            return f"{_identifier(item.name)}:;"
        if isinstance(item, Brace):
            return item.text
        if isinstance(item, Registers):
            return f"{_register_type(item.type)} {', '.join(map(_identifier, _names(item)))};"
        try:
            body = self._instruction(item.opcode, item.operands)
        except (ValueError, IndexError) as error:
            text = f"{item.opcode} {', '.join(item.operands)}"
            raise ValueError(f"{error or 'unknown operands'}: {text}, in {self._kernel.name}") from None
        guard = f"if ({'!' if item.negated else ''}{_identifier(item.guard)}) " if item.guard else ""
        return f"{guard}{{ {body} }}"

    def _instruction(self, opcode: str, operands: tuple[str, ...]) -> str:
        name, *modifiers = opcode.split(".")
        special: dict[str, Callable[[list[str], tuple[str, ...]], str]] = {
            "ld": self._load,
            "st": self._store,
            "bra": self._branch,
        }
        if name in special:
            return special[name](modifiers, operands)
        if opcode in ("ret", "exit"):
            return "return;"
        if opcode in ("bar.sync", "barrier.sync") and operands == ("0",):
            return "ptx_barrier();"
        if opcode == "bar.warp.sync":
            return f"ptx_warp_barrier({self._value(operands[0], 'u32')});"
        if opcode == "shfl.sync.bfly.b32":
            return self._shuffle(operands)
        if name == "mov" and operands[0].startswith("{"):
            return self._unpack(modifiers[0], operands)
        if name == "mov" and operands[1].startswith("{"):
            return self._pack(modifiers[0], operands)
        return self._operation(opcode, operands)

    def _operation(self, opcode: str, operands: tuple[str, ...]) -> str:
        operation = OPERATIONS.get(opcode)
        if operation is None:
            raise ValueError("unknown opcode")
        target, *sources = operands
        if len(sources) != len(operation.operands):
            raise ValueError(f"{len(operation.operands)} operands expected")
        values = [
            f"const {kind} {letter} = {self._value(source, kind)};"
            for letter, kind, source in zip("abcd", operation.operands, sources, strict=False)
        ]
        return " ".join([*values, self._assign(target, f"{operation.result}({operation.expression})")])

    def _value(self, operand: str, kind: str) -> str:
        """An operand as a C++ expression of a PTX type."""
        if operand in SPECIAL_REGISTERS:
            return f"value_of<{kind}>({SPECIAL_REGISTERS[operand]})"
        if operand in self._parameters:
            return f"value_of<{kind}>(reinterpret_cast<u64>(parameters[{self._parameters[operand]}]))"
        if operand in self._kernel.shared:
            return f"value_of<{kind}>(u64({self._kernel.shared[operand]}))"
        if found := re.fullmatch(r"0([fFdD])([0-9A-Fa-f]{8}|[0-9A-Fa-f]{16})", operand):
            return f"value_of<{kind}>(b{64 if found.group(1) in 'dD' else 32}(0x{found.group(2)}u))"
        if re.fullmatch(r"-?(\d+|0[xX][0-9A-Fa-f]+)U?", operand):
            if kind.startswith("f"):
                raise ValueError("an integer in place of a float")
            return f"value_of<{kind}>(u64({int(operand.rstrip('U'), 0) & 0xFFFFFFFFFFFFFFFF}u))"
        if operand in self._registers:
            return f"value_of<{kind}>({_identifier(operand)})"
        raise ValueError(f"unknown operand {operand}")

    @staticmethod
    def _assign(target: str, expression: str) -> str:
        return f"(void)({expression});" if target == "_" else f"assign({_identifier(target)}, {expression});"

    def _branch(self, modifiers: list[str], operands: tuple[str, ...]) -> str:
        if modifiers not in ([], ["uni"]):
            raise ValueError("unknown opcode")
        return f"goto {_identifier(operands[0])};"

    def _shuffle(self, operands: tuple[str, ...]) -> str:
        target, *sources = operands
        register, _, predicate = target.partition("|")
        arguments = ", ".join(self._value(source, "u32") for source in sources)
        found = f" {self._assign(predicate, 'true')}" if predicate else ""  # every lane has a partner in a full warp
        return f"const u32 got = ptx_shuffle({arguments}); {self._assign(register, 'got')}{found}"

    def _unpack(self, kind: str, operands: tuple[str, ...]) -> str:
        parts = _in_braces(operands[0])
        bits = 8 * size_of(kind) // len(parts)
        shifted = [self._assign(part, f"b{bits}(whole >> {bits * i})") for i, part in enumerate(parts)]
        return " ".join([f"const {kind} whole = {self._value(operands[1], kind)};", *shifted])

    def _pack(self, kind: str, operands: tuple[str, ...]) -> str:
        parts = _in_braces(operands[1])
        bits = 8 * size_of(kind) // len(parts)
        shifted = [f"{kind}({self._value(part, f'b{bits}')}) << {bits * i}" for i, part in enumerate(parts)]
        return self._assign(operands[0], f"{kind}({' | '.join(shifted)})")

    def _load(self, modifiers: list[str], operands: tuple[str, ...]) -> str:
        kind, count, address = self._access(modifiers, operands[1])
        targets = _in_braces(operands[0])
        if len(targets) != count:
            raise ValueError(f"{count} registers expected")
        # All are read before the first is assigned: the address may be in one of them.
        read = f"{kind} v[{count}]; ptx_load<{kind}, {count}>(v, {address});"
        return " ".join([read, *(self._assign(target, f"v[{i}]") for i, target in enumerate(targets))])

    def _store(self, modifiers: list[str], operands: tuple[str, ...]) -> str:
        kind, count, address = self._access(modifiers, operands[0])
        values = [self._value(source, kind) for source in _in_braces(operands[1])]
        if len(values) != count:
            raise ValueError(f"{count} registers expected")
        return f"const {kind} v[] = {{{', '.join(values)}}}; ptx_store<{kind}, {count}>({address}, v);"

    def _access(self, modifiers: list[str], operand: str) -> tuple[str, int, str]:
        """The type and the number of the values that are loaded or stored, and their address in C++."""
        kind = modifiers[-1]
        space, count = "generic", 1
        for modifier in modifiers[:-1]:
            if modifier in ("global", "shared", "param"):
                space = modifier
            elif re.fullmatch(r"v[248]", modifier):
                count = int(modifier[1:])
            elif not CACHE_HINTS.fullmatch(modifier):
                raise ValueError(f"unknown modifier .{modifier}")
        found = re.fullmatch(r"\[\s*([%$\w]+)\s*(?:\+\s*(-?\d+))?\s*\]", operand)
        if not found:
            raise ValueError("unknown kind of address")
        base, offset = found.group(1), int(found.group(2) or 0)
        size = size_of(kind) * count
        if base in self._parameters:
            index = self._parameters[base]
            if space != "param" or not 0 <= offset <= self._kernel.parameter_sizes[index] - size:
                raise ValueError("outside of the parameter")
            return kind, count, f"parameters[{index}] + {offset}"
        if space == "shared":
            register = self._value(base, "u64")
            return kind, count, f"in_shared(shared, shared_size, {register} + {offset}, {size})"
        return kind, count, f"reinterpret_cast<unsigned char*>({self._value(base, 'u64')} + {offset})"


def _in_braces(operand: str) -> list[str]:
    """The registers of {%r1, %r2}, or the one of %r1."""
    return [part.strip() for part in operand.strip("{}").split(",")]
