"""Prints the schema as `custom_ops/src/contract.inc` and as the tables of `docs/operators.md`.

`python -m emu.contract.generate` writes them, with `--check` it only says whether they are what the schema gives.
"""

import argparse
import ast
import json
import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from emu.contract import schema
from emu.contract.language import tree
from emu.contract.schema import (
    ATTRIBUTES,
    DYNAMIC,
    FAULTY_WEIGHT,
    NUMBERS,
    OPERATORS,
    QUANTIZED,
    STORED,
    Attribute,
    Number,
    Range,
)

_ROOT = Path(__file__).parents[2]
_KINDS = {STORED: "kStored", QUANTIZED: "kQuantized", DYNAMIC: "kDynamic", FAULTY_WEIGHT: "kFaultyWeight"}
_TYPES = {"float32": "kFloat", "int8": "kInt8", "int64": "kInt64"}
# Choices that share an enumeration: that of the one with more words.
_ENUM_OF = {"dac": "InputRange", "adc": "Range"}


def main(arguments: list[str] | None = None) -> int:
    """Write or check what is generated; the exit code is 1 where `--check` finds a difference."""
    parser = argparse.ArgumentParser(prog="python -m emu.contract.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file differs")
    check = parser.parse_args(arguments).check
    stale = [path for path, text in generated().items() if path.read_text("utf-8") != text]
    for path in stale:
        if check:
            print(f"{path.relative_to(_ROOT)} is not what the schema gives: run python -m emu.contract.generate")
        else:
            path.write_text(generated()[path], "utf-8")
    return 1 if check and stale else 0


def generated() -> dict[Path, str]:
    """Every generated file with the text that the schema gives."""
    page = _ROOT / "docs" / "operators.md"
    return {_ROOT / "custom_ops" / "src" / "contract.inc": native(), page: filled(page.read_text("utf-8"))}


def native() -> str:
    """The schema as C++, in sections that a file asks for by a macro."""
    sections = {
        "STREAMS": _streams(),
        "ENUMS": _enums(),
        "FIELDS": _fields(),
        "ATTRIBUTES": _attributes(),
        "FILL": _fill(),
        "ROWS": _rows(),
    }
    lines = [
        "// Generated from emu/contract/schema.py by `python -m emu.contract.generate`; change it there.",
        "// clang-format off",
    ]
    for name, section in sections.items():
        lines += ["", f"#ifdef EMU_CONTRACT_{name}", *section, f"#undef EMU_CONTRACT_{name}", "#endif"]
    return "\n".join([*lines, ""])


def _streams() -> Iterable[str]:
    numbers = ", ".join(f"k{_camel(each.name)} = {each.value}" for each in schema.Stream if each.meaning)
    yield f"enum Stream : uint32_t {{ {numbers} }};"


def _enums() -> Iterable[str]:
    yield f"enum class Operator {{ {', '.join(_KINDS.values())} }};"
    enums: dict[str, tuple[str, ...]] = {}
    for row in ATTRIBUTES.values():
        if isinstance(row.legal, tuple) and row.legal:
            name = _kind(row)
            enums[name] = max(enums.get(name, ()), row.legal, key=len)
    for name, words in enums.items():
        yield f"enum class {name} : int {{ {', '.join(f'k{_camel(word)}' for word in words)} }};"
    for space, names in (("attribute", ATTRIBUTES), ("entry", map(_field, NUMBERS))):
        yield f"namespace {space} {{"
        yield f"enum Index : int {{ {', '.join(names)}, count }};"
        yield "}"


def _fields() -> Iterable[str]:
    for row in NUMBERS.values():
        if not row.is_family:
            yield f"float {_field(row.name)} = {row.absent:g};  // {row.unit}; {row.legal.in_words}"


# Attributes that C++ keeps as what they are parsed into, or only checks.
_PARSED = ("format", "entries", "window")


def _attributes() -> Iterable[str]:
    for row in ATTRIBUTES.values():
        if row.name not in _PARSED:
            absent = {"int64_t": f" = {row.absent}", "std::string": ""}.get(
                kind := _kind(row), f" = {kind}::k{_camel(str(row.absent))}"
            )
            yield f"{kind} {row.name}{absent};"


def _fill() -> Iterable[str]:
    for row in ATTRIBUTES.values():
        if row.name not in _PARSED:
            kind, number = _kind(row), f"given.number(attribute::{row.name})"
            values = {"int64_t": number, "std::string": f"given.text(attribute::{row.name})"}
            yield f"it.{row.name} = {values.get(kind, f'static_cast<{kind}>({number})')};"


def _kind(row: Attribute) -> str:
    """The C++ type of an attribute."""
    words = "" if row.is_integer or not row.legal else _ENUM_OF.get(row.name, _camel(row.name))
    return words or ("int64_t" if row.is_integer else "std::string")


def _rows() -> Iterable[str]:
    yield "const std::vector<OperatorRow>& operator_rows() {"
    yield "  static const std::vector<OperatorRow> rows = {"
    for operator in OPERATORS.values():
        inputs = ", ".join(
            f"{{{_text(each.name)}, {_TYPES[each.type]}, {_bool(each.constant)}}}" for each in operator.inputs
        )
        yield f"      {{{_text(operator.name)}, {{{inputs}}}}},"
    yield "  };\n  return rows;\n}"
    yield "const std::vector<AttributeRow>& attribute_rows() {"
    yield "  static const std::vector<AttributeRow> rows = {"
    for row in ATTRIBUTES.values():
        of = " | ".join(f"of(Operator::{_KINDS[op]})" for op in row.of)
        if isinstance(row.legal, Range):
            legal = f"{_allows(row.legal, 'int64_t')}, {_text(row.legal.in_words)}, {{}}, {row.absent}, {_text('')}"
        else:
            words = ", ".join(map(_text, row.legal))
            legal = f"nullptr, {_text(', '.join(row.legal))}, {{{words}}}, 0, {_text(str(row.absent))}"
        yield f"      {{{_text(row.name)}, {of}, {_bool(row.optional)}, {legal}}},"
    yield "  };\n  return rows;\n}"
    yield "const std::vector<NumberRow>& number_rows() {"
    yield "  static const std::vector<NumberRow> rows = {"
    yield from (f"      {_number_row(row)}," for row in NUMBERS.values())
    yield "  };\n  return rows;\n}"
    for name, kind, rules in (
        ("attribute_rules", "AttributeRule", schema.ATTRIBUTE_RULES),
        ("number_rules", "NumberRule", schema.NUMBER_RULES),
    ):
        arguments = "(const Given& it)"
        if kind == "NumberRule":
            arguments = "([[maybe_unused]] const Given& it, [[maybe_unused]] const Device& device)"
        yield f"const std::vector<{kind}>& {name}() {{"
        yield f"  static const std::vector<{kind}> rules = {{"
        for rule in rules:
            wrong = f"[]{arguments} -> bool {{ return {_cpp(tree(rule.wrong))}; }}"
            said = f"[]{arguments} -> std::string {{ return {_sentence(rule.sentence)}; }}"
            yield f"      {{{wrong},\n       {said}}},"
        yield "  };\n  return rules;\n}"


def _number_row(row: Number) -> str:
    start = re.split("<[ijk]>|<name>", row.name)[0]
    counts = [f"attribute::{schema.INDICES[letter]}" for letter in re.findall("<([ijk])>", row.name)]
    field = "nullptr" if row.is_family else f"&Device::{_field(row.name)}"
    needed = ", ".join(
        f"{{attribute::{name}, [](const Given& it) -> bool {{ return {_cpp(tree(condition))}; }}}}"
        for name, condition in row.needed
    )
    beside = f"entry::{_field(row.beside)}" if row.beside else "-1"
    without = f"[](const Given& it) -> bool {{ return {_cpp(tree(row.without))}; }}" if row.without else "nullptr"
    return (
        f"{{{_text(row.name)}, {_text(start)}, {{{', '.join(counts)}}}, {_allows(row.legal, 'double')}, "
        f"{_text(row.legal.in_words)}, {field}, {{{needed}}}, {beside}, {without}, {_bool(row.rises)}}}"
    )


def _allows(legal: Range, kind: str) -> str:
    if legal.values:
        test = " || ".join(f"value == {each}" for each in legal.values)
    else:
        tests = [] if kind == "int64_t" else ["std::isfinite(value)"]
        if legal.low > -math.inf:
            tests.append(f"value {'>=' if legal.low_included else '>'} {legal.low:.10g}")
        if legal.high < math.inf:
            tests.append(f"value <= {legal.high:.10g}")
        if legal.whole and kind != "int64_t":
            tests.append("value == std::floor(value)")
        test = " && ".join(tests)
        if legal.or_zero:
            test = f"value == 0 || ({test})"
    return f"[]({kind} value) -> bool {{ return {test}; }}"


_COMPARISONS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.BitAnd: "&"}


def _cpp(node: ast.expr) -> str:
    """An expression of the schema as C++ over `it`, what a node says, and `device`, the numbers of a run."""
    match node:
        case ast.Constant(value=str(word)):
            return _text(word)
        case ast.Constant(value=number):
            return str(number)
        case ast.Name(id="dynamic" | "quantized" as kind):
            return f"it.kind == Operator::k{kind.capitalize()}"
        case ast.Name(id=name):
            return f"it.{'number' if ATTRIBUTES[name].is_integer else 'text'}(attribute::{name})"
        case ast.Subscript(value=ast.Name(id="device"), slice=ast.Constant(value=entry)):
            return f"double{{device.{_field(str(entry))}}}"
        case ast.BoolOp(op=op, values=values):
            return f"({(' && ' if isinstance(op, ast.And) else ' || ').join(map(_cpp, values))})"
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return f"!({_cpp(operand)})"
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return f"({_cpp(test)} ? {_cpp(body)} : {_cpp(orelse)})"
        case ast.BinOp(op=ast.Pow(), right=right):
            return f"(int64_t{{1}} << {_cpp(right)})"  # powers of 2 only
        case ast.BinOp(left=left, op=op, right=right):
            return f"({_cpp(left)} {_ARITHMETIC[type(op)]} {_cpp(right)})"
        case ast.Compare(left=left, ops=ops, comparators=others):
            pairs = zip([left, *others], ops, others, strict=False)
            tests = [_comparison(one, op, other) for one, op, other in pairs]
            return tests[0] if len(tests) == 1 else f"({' && '.join(tests)})"
    raise NotImplementedError(ast.unparse(node))


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr) -> str:
    if not isinstance(op, ast.In | ast.NotIn):
        return f"{_cpp(left)} {_COMPARISONS[type(op)]} {_cpp(right)}"
    if isinstance(left, ast.Constant):
        found = f"it.has(entry::{_field(str(left.value))})"
    else:
        assert isinstance(right, ast.Tuple)
        found = f"one_of({_cpp(left)}, {{{', '.join(map(_cpp, right.elts))}}})"
    return found if isinstance(op, ast.In) else f"!{found}"


def _sentence(template: str) -> str:
    """A sentence of the schema as C++ that puts the values in."""
    parts: list[str] = []
    for index, part in enumerate(re.split(r"\{([\w.]+)\}", template)):
        if index % 2 == 0:
            parts += [_text(part)] if part else []
        elif "." in part:
            parts.append(f"shown(double{{device.{_field(part)}}})")
        else:
            parts.append(f"shown({_cpp(tree(part))})")
    parts[0] = f"std::string({parts[0]})"
    return " + ".join(parts)


def _field(entry: str) -> str:
    """The name of an entry or family as C++ has it."""
    return re.sub(r"\.<.*", "", entry).replace(".", "_")


def _camel(word: str) -> str:
    return "".join(part.capitalize() for part in word.split("_"))


def _text(text: str) -> str:
    return json.dumps(text)


def _bool(value: bool) -> str:
    return str(value).lower()


def filled(page: str) -> str:
    """A page with the tables of the schema between their markers."""
    tables = {
        "operators": _signatures,
        "controls": _control_table,
        "attributes": _attribute_table,
        "entries": _entry_table,
        "streams": _stream_table,
    }
    for name, lines in tables.items():
        start, end = f"<!-- {name}: generated from emu/contract/schema.py -->\n", f"<!-- end of {name} -->\n"
        before, rest = page.split(start)
        page = before + start + "\n".join(lines()) + "\n" + end + rest.split(end)[1]
    return page


def _signatures() -> Iterable[str]:
    width = max(len(name) for name in OPERATORS)
    yield "```"
    for operator in OPERATORS.values():
        inputs = [f"{each.name} {each.shape}".strip() for each in operator.operands]
        inputs += [each.name for each in operator.controls]
        yield f"emu::{operator.name:{width}}({', '.join(inputs)}) -> {operator.result}"
    yield "```"


def _control_table() -> Iterable[str]:
    yield "| input | type | range |"
    yield "|---|---|---|"
    yield from (f"| `{each.name}` | {each.type} {each.shape} | {each.meaning} |" for each in schema.CONTROLS)


def _stream_table() -> Iterable[str]:
    yield "| stream | number | array | key |"
    yield "|---|---|---|---|"
    for stream in schema.Stream:
        if stream.meaning:
            paired = f"{stream.name}_NEGATIVE" in schema.Stream.__members__
            number = f"{stream.value}, negative device {stream + 1}" if paired else str(stream.value)
            yield f"| {stream.meaning} | {number} | {stream.array} | {stream.key} |"


def _attribute_table() -> Iterable[str]:
    yield "| attribute | of | values | meaning |"
    yield "|---|---|---|---|"
    kinds = {tuple(OPERATORS): "S D", (STORED, QUANTIZED, FAULTY_WEIGHT): "S", (DYNAMIC,): "D"}
    for row in ATTRIBUTES.values():
        of = kinds.get(row.of) or ", ".join(f"`{op}`" for op in row.of)
        if isinstance(row.legal, tuple):
            values = " ".join(f"`{word}`" for word in row.legal) or "string"
        elif row.legal.high == schema.LARGEST_COUNT:
            values = f"integer from {row.legal.low:g}"
        else:
            values = row.legal.in_words.split(";")[0]
        yield f"| `{row.name}` | {of} | {values} | {row.meaning} |"


def _entry_table() -> Iterable[str]:
    yield "| entry | needed when | unit | range | meaning |"
    yield "|---|---|---|---|---|"
    for row in NUMBERS.values():
        needed = ", or ".join(_prose(ast.parse(condition, mode="eval").body) for _, condition in row.needed)
        needed = needed or "optional"
        needed += f", together with `{row.beside}`" if row.beside else ""
        needed += f"; not where {_prose(tree(row.without))}" if row.without else ""
        yield f"| `{row.name}` | {needed} | {row.unit} | {row.legal.in_words} | {row.meaning} |"


_SETS_IN_PROSE = {
    "NUMBER_PROGRAMS": "a model of numbers",
    "SIGMA_PROGRAMS": "a lognormal, normal or uniform model of conductances",
}
_IN_PROSE = {ast.Eq: "is", ast.NotEq: "is not", ast.In: "is", ast.NotIn: "is not", ast.Gt: ">"}


def _prose(node: ast.expr) -> str:
    """A condition of the schema in words."""
    match node:
        case ast.Constant(value=value):
            return f"`{value}`" if isinstance(value, str) else str(value)
        case ast.Name(id=name):
            return _SETS_IN_PROSE.get(name) or f"`{name}`"
        case ast.Starred(value=value):
            return _prose(value)
        case ast.Tuple(elts=[*others, last]):
            return f"{', '.join(map(_prose, others))} or {_prose(last)}"
        case ast.BoolOp(op=op, values=values):
            return (" and " if isinstance(op, ast.And) else " or ").join(map(_prose, values))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return f"{_prose(left)} {_IN_PROSE[type(op)]} {_prose(right)}"
    raise NotImplementedError(ast.unparse(node))


if __name__ == "__main__":
    sys.exit(main())
