"""The small language in which the schema states conditions: Python's expressions, cut down to what C++ has too.

An expression knows the attributes of a node by name, `entries` (`'dac.bits' in entries`), the numbers of the device
(`device['dac.bits']`), `dynamic` and `quantized` (which operator the node is), and the names that the schema defines.
"""

import ast
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from emu.contract.schema import DEFINITIONS, WORD_SETS


class _Expand(ast.NodeTransformer):
    """Puts the definitions of the schema in the place of their names."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in WORD_SETS:
            return ast.Tuple([ast.Constant(word) for word in WORD_SETS[node.id]], ast.Load())
        return tree(DEFINITIONS[node.id]) if node.id in DEFINITIONS else node

    def visit_Tuple(self, node: ast.Tuple) -> ast.expr:
        flat: list[ast.expr] = []
        for each in node.elts:
            expanded = self.visit(each.value if isinstance(each, ast.Starred) else each)
            flat += expanded.elts if isinstance(each, ast.Starred) else [expanded]
        return ast.Tuple(flat, ast.Load())


def tree(expression: str) -> ast.expr:
    """The parsed expression, definitions put in."""
    expanded: ast.expr = _Expand().visit(ast.parse(expression, mode="eval").body)
    return ast.fix_missing_locations(expanded)


@cache
def compiled(expression: str) -> Callable[[Mapping[str, Any]], Any]:
    """The expression as a function of the names that it knows."""
    code = compile(ast.Expression(tree(expression)), expression, "eval")
    return lambda names: eval(code, {"__builtins__": {}}, names)


@cache
def entries_in(expression: str) -> frozenset[str]:
    """The entries whose numbers the expression looks at."""
    found = (node.slice for node in ast.walk(tree(expression)) if isinstance(node, ast.Subscript))
    return frozenset(str(each.value) for each in found if isinstance(each, ast.Constant))
