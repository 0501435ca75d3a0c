"""Reads PTX, the assembly language that nvcc compiles kernels to: as far as nvcc uses it for kernels like ours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod


@dataclass(frozen=True)
class Instruction:
    """``@!guard opcode operands;``. An operand in braces, such as ``{%r1, %r2}``, is one operand."""

    guard: str | None
    negated: bool
    opcode: str
    operands: tuple[str, ...]


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Registers:
    """Declares the registers ``prefix0`` to ``prefix(count - 1)``, or if ``count`` is None the register ``prefix``."""

    type: str
    prefix: str
    count: int | None


@dataclass(frozen=True)
class Brace:
    """The begin or the end of a scope of registers."""

    text: str


@dataclass
class Kernel:
    """An ``.entry``. Its shared arrays lie one after the other, at ``shared[name]`` bytes from the first."""

    name: str
    parameter_sizes: list[int]
    max_threads: int
    body: list[Instruction | Label | Registers | Brace] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    shared_size: int = 0


def size_of(ptx_type: str) -> int:
    """Return the bytes of a value of a type such as ``u32``."""
    return int(re.sub(r"\D", "", ptx_type)) // 8


def split_operands(text: str) -> tuple[str, ...]:
    """Split at the commas that are outside of braces and brackets."""
    return tuple(part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text) if part.strip())


def parse_kernels(text: str) -> list[Kernel]:
    """Return the kernels of a PTX file. A functions that is called, or a global variable, is an error."""
    text = re.sub(r"//[^\n]*", "", text)
    header = re.compile(r"(?:\.visible\s+)?\.entry\s+(\w+)\(([^)]*)\)([^{]*)(?=\{)")
    kernels, position = [], 0
    while found := header.search(text, position):
        _only_directives_of_the_file(text[position : found.start()])
        name, parameters, directives = found.groups()
        threads = re.search(r"\.maxntid\s+([\d, ]+)", directives)
        sizes = [_parameter_size(parameter) for parameter in split_operands(parameters)]
        kernel = Kernel(name, sizes, prod(map(int, threads.group(1).split(","))) if threads else 1024)
        position = _parse_body(kernel, text, found.end())
        kernels.append(kernel)
    _only_directives_of_the_file(text[position:])
    return kernels


def _only_directives_of_the_file(text: str) -> None:
    for line in filter(None, map(str.strip, text.splitlines())):
        if not re.match(r"\.(version|target|address_size)\b", line):
            raise ValueError(f"not expected between kernels: {line}")


def _parameter_size(declaration: str) -> int:
    array = re.search(r"\.b8\s+\w+\[(\d+)\]$", declaration)
    return int(array.group(1)) if array else size_of(declaration.split()[1])


def _parse_body(kernel: Kernel, text: str, position: int) -> int:
    """Read from the kernel's opening brace to its closing one, and return the position after it."""
    depth = 0
    for found in _statements(text, position):
        statement = found.group().strip()
        if statement in ("{", "}"):
            depth += 1 if statement == "{" else -1
            if depth == 0:
                return found.end()
            if (statement, depth) != ("{", 1):
                kernel.body.append(Brace(statement))
        elif statement.endswith(":"):
            kernel.body.append(Label(statement[:-1]))
        elif statement.startswith("."):
            _declare(kernel, statement.rstrip(";"))
        else:
            kernel.body.append(_instruction(statement.rstrip(";")))
    raise ValueError(f"no end of kernel {kernel.name}")


def _statements(text: str, position: int) -> Iterator[re.Match[str]]:
    """A brace, a label with its colon, or whatever ends with a semicolon."""
    return re.compile(r"\s*(?:[{}]|[$%]?\w+:(?!:)|[^;]+;)").finditer(text, position)


def _declare(kernel: Kernel, declaration: str) -> None:
    if declaration.startswith(".pragma"):  # hints such as "nounroll"
        return
    if found := re.fullmatch(r"\.reg\s+\.(\w+)\s+([%\w]+)(?:<(\d+)>)?", declaration):
        kind, prefix, count = found.groups()
        kernel.body.append(Registers(kind, prefix, int(count) if count else None))
    elif found := re.fullmatch(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d+)\]", declaration):
        alignment = int(found.group(1))
        offset = -(-kernel.shared_size // alignment) * alignment
        kernel.shared[found.group(2)] = offset
        kernel.shared_size = offset + int(found.group(3))
    else:
        raise ValueError(f"unknown declaration: {declaration}")


def _instruction(statement: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.DOTALL)
    if not found:
        raise ValueError(f"no instruction: {statement}")
    negation, guard, opcode, operands = found.groups()
    return Instruction(guard, bool(negation), opcode, split_operands(operands))
