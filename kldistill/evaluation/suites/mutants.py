"""Small mutations of Python code: one operator, constant, name or argument is changed, and nothing else.

A mutation is an edit of the text at the place of a node of the syntax tree, so that layout and comments stay and a
model cannot tell mutants by them. Nothing here runs code: whether a mutant is wrong is for tests to say.
"""

import ast
import hashlib
import random
import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from kldistill.evaluation.suites.replacements import COMPARISONS, FUNCTIONS, OPERATORS, SYMMETRIC


class Mutant(NamedTuple):
    """One mutant.

    Attributes:
        text: what replaces the mutated part of the code.
        kind: the kind of the mutation: ``operator``, ``comparison``, ``connective``, ``negation``, ``constant``,
            ``off_by_one``, ``name``, ``function``, ``argument`` or ``shape``.
        risky: it may not end: the edit is in a ``while`` loop.
    """

    text: str
    kind: str
    risky: bool


class Edit(NamedTuple):
    """Bytes ``start`` to ``end`` are replaced."""

    start: int
    end: int
    new: str
    kind: str
    risky: bool


ATOMS = (ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.Constant)
LONGEST_STRING = 24
SHAPE = "shape"
FSTRING = ast.JoinedStr  # positions inside are wrong before Python 3.12, so nothing inside is edited
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSION = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


def mutants(before: str, code: str, seed: str) -> list[Mutant]:
    """All mutants of ``code``, each a valid program after ``before`` and different from the others and from ``code``.

    Args:
        before: what stands in front of the code (a function's head, say); not mutated.
        code: what is mutated. Line ends are line feeds.
        seed: draws the order, which goes round the kinds of mutation. Those of the kind ``shape`` (a slice more, a
            call less) come after the others, as they show by their length, and risky mutants last.

    Returns:
        The mutants; none if ``before + code`` is no Python.
    """
    source = (before + code).encode()
    tree = _parse(source)
    if tree is None:
        return []
    first = len(before.encode())
    by_kind: dict[str, list[Mutant]] = {}
    seen = {code}
    for edit in _Edits(source, first).of_tree(tree):
        if edit.start < first:
            continue
        changed = source[: edit.start] + edit.new.encode() + source[edit.end :]
        text = changed[first:].decode()
        if text not in seen and _parse(changed) is not None:
            seen.add(text)
            by_kind.setdefault(edit.kind, []).append(Mutant(text, edit.kind, edit.risky))
    chance = random.Random(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest()))
    kinds = sorted(by_kind)
    chance.shuffle(kinds)
    for kind in kinds:
        chance.shuffle(by_kind[kind])
        by_kind[kind].sort(key=lambda mutant: mutant.risky)
    ranked = [(rank, mutant) for kind in kinds for rank, mutant in enumerate(by_kind[kind])]
    ranked.sort(key=lambda item: (item[1].risky, item[1].kind == SHAPE, item[0]))
    return [mutant for _, mutant in ranked]


def _parse(source: bytes) -> ast.Module | None:
    """The syntax tree, or ``None`` if the source does not compile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            compile(source, "mutant", "exec", dont_inherit=True)
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return None


class _Edits:
    """Finds the places of edits in a syntax tree.

    Args:
        source: the program in UTF-8: positions of nodes count bytes.
        first: where the part that is mutated begins.
    """

    def __init__(self, source: bytes, first: int) -> None:
        self.source = source
        self.starts = [0]
        for line in source.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        # The author's own way of writing a sum.
        spaced = b" + " in source[first:] or b"+" not in source[first:]
        self.plus, self.minus = (" + 1", " - 1") if spaced else ("+1", "-1")
        self.strings: list[str] = []
        self.risky = False
        self.names: list[dict[str, int]] = []  # of the functions around: each name's first line

    def of_tree(self, tree: ast.Module) -> Iterator[Edit]:
        """All edits, in the order of the tree."""
        constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        self.strings = sorted({value for value in constants if isinstance(value, str)})
        yield from self.visit(tree)

    def visit(self, node: ast.AST) -> Iterator[Edit]:
        """Edits of a node and of what is below it."""
        if isinstance(node, FSTRING | ast.Import | ast.ImportFrom):
            return
        risky = self.risky
        self.risky |= isinstance(node, ast.While)
        if isinstance(node, FUNCTION):
            self.names.append(_names(node))
        for start, end, new, kind in self.edits(node):
            yield Edit(start, end, new, kind, self.risky)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_docstring(child):
                    yield from self.visit(child)
        if isinstance(node, FUNCTION):
            self.names.pop()
        self.risky = risky

    def edits(self, node: ast.AST) -> Iterator[tuple[int, int, str, str]]:
        """Edits of the node itself: start, end, what is put there, kind."""
        match node:
            case ast.BinOp():
                yield from self.operator(node.left, node.right, OPERATORS.get(type(node.op)), "operator")
                if isinstance(node.op, ast.Sub | ast.Div | ast.FloorDiv | ast.Mod | ast.Pow):
                    yield from self.swap(node.left, node.right)
            case ast.AugAssign():
                old, new = OPERATORS.get(type(node.op), ("", []))
                yield from self.operator(node.target, node.value, (f"{old}=", [f"{op}=" for op in new]), "operator")
            case ast.Compare():
                for (left, right), op in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                    yield from self.operator(left, right, COMPARISONS[type(op)], "comparison")
            case ast.BoolOp():
                words = ("and", ["or"]) if isinstance(node.op, ast.And) else ("or", ["and"])
                for left, right in pairwise(node.values):
                    yield from self.operator(left, right, words, "connective")
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                start = self.start(node)
                sign = re.compile(rb"not\s*|-\s*").match(self.source, start)
                if sign:
                    yield start, sign.end(), "", "negation"
            case ast.Constant():
                for new in self.constants(node):
                    yield *self.span(node), new, "constant"
            case ast.Name(ctx=ast.Load()) if self.names and node.id in self.names[-1]:
                for other, line in sorted(self.names[-1].items()):
                    if other != node.id and line < node.lineno:
                        yield *self.span(node), other, "name"
            case ast.Call():
                yield from self.call(node)
                if len(node.args) == 1 and not node.keywords and not isinstance(node.args[0], ast.Starred):
                    (start, end), (left, right) = self.span(node), self.span(node.args[0])
                    yield start, end, self.source[left:right].decode(), SHAPE
            case ast.Return(value=ast.expr() as value) if isinstance(value, ATOMS):
                for new in ("[1:]", "[:-1]"):
                    yield self.end(value), self.end(value), new, SHAPE
            case ast.Subscript():
                parts = [node.slice.lower, node.slice.upper] if isinstance(node.slice, ast.Slice) else [node.slice]
                yield from self.off_by_one(*(part for part in parts if part is not None))
        tests = node.ifs if isinstance(node, ast.comprehension) else [getattr(node, "test", None)]
        for test in tests:
            if isinstance(test, ATOMS) and not isinstance(test, ast.Constant):
                yield self.start(test), self.start(test), "not ", "negation"

    def call(self, node: ast.Call) -> Iterator[tuple[int, int, str, str]]:
        """Edits of a call: another function, arguments swapped, one more or one less."""
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        end = self.end(node.func)
        if name in FUNCTIONS:
            yield end - len(name.encode()), end, FUNCTIONS[name], "function"
        for left, right in pairwise(node.args):
            if name not in SYMMETRIC and not isinstance(left, ast.Starred) and not isinstance(right, ast.Starred):
                yield from self.exchange(left, right)
        if name == "range" and node.args:
            yield from self.off_by_one(node.args[min(1, len(node.args) - 1)])
        if name == "len":
            yield self.end(node), self.end(node), self.minus, "off_by_one"

    def off_by_one(self, *nodes: ast.expr) -> Iterator[tuple[int, int, str, str]]:
        """One more and one less than an expression that is no constant."""
        for node in nodes:
            if isinstance(node, (*ATOMS, ast.BinOp)) and not isinstance(node, ast.Constant):
                for new in (self.plus, self.minus):
                    yield self.end(node), self.end(node), new, "off_by_one"

    def operator(
        self, left: ast.expr, right: ast.expr, operators: tuple[str, list[str]] | None, kind: str
    ) -> Iterator[tuple[int, int, str, str]]:
        """Other operators in the place of the one between two expressions (and blanks, parentheses, comments)."""
        if operators is None:
            return
        old, others = operators
        # A comment after a broken line might hold the operator too.
        begin = self.end(left)
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.source[begin : self.start(right)])
        match = re.search(r"\s+".join(map(re.escape, old.split())).encode(), gap)
        if match:
            for new in others:
                yield begin + match.start(), begin + match.end(), new, kind

    def swap(self, left: ast.expr, right: ast.expr) -> Iterator[tuple[int, int, str, str]]:
        """Exchanged operands, if both are such that no parentheses are needed."""
        gap = self.source[self.end(left) : self.start(right)]
        if isinstance(left, ATOMS) and isinstance(right, ATOMS) and not re.search(rb"[()#]", gap):
            yield from self.exchange(left, right)

    def exchange(self, left: ast.expr, right: ast.expr) -> Iterator[tuple[int, int, str, str]]:
        (start, left_end), (right_start, end) = self.span(left), self.span(right)
        new = self.source[right_start:end] + self.source[left_end:right_start] + self.source[start:left_end]
        yield start, end, new.decode(), "argument"

    def constants(self, node: ast.Constant) -> Iterator[str]:
        """Other constants of the same type, near by: as the author wrote it, so nothing for what is spelt otherwise."""
        start, end = self.span(node)
        text, value = self.source[start:end].decode(), node.value
        if isinstance(value, bool):
            yield str(not value)
        elif isinstance(value, int | float) and text == repr(value):
            yield repr(value + 1)
            if value > 0:
                yield repr(value - 1)
        elif isinstance(value, str) and text[1:-1] == value and len(value) <= LONGEST_STRING:
            others = [other for other in self.strings if other != value and len(other) <= LONGEST_STRING]
            for new in [*others, value.swapcase(), value[1:] or " "]:
                if not re.search(r"[\\\"'\n]", new):
                    yield f"{text[0]}{new}{text[-1]}"
        if isinstance(value, str):
            for digits in re.finditer(r"(?<!\\)\d+", text):
                yield f"{text[: digits.start()]}{int(digits[0]) + 1}{text[digits.end() :]}"

    def start(self, node: ast.expr) -> int:
        return self.span(node)[0]

    def end(self, node: ast.expr) -> int:
        return self.span(node)[1]

    def span(self, node: ast.expr) -> tuple[int, int]:
        """First byte of a node, and the one after it."""
        assert node.end_lineno is not None and node.end_col_offset is not None, "the tree is of a source"
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _names(function: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, int]:
    """Arguments and variables of a function, and the line from which each has a value."""
    names: dict[str, int] = {}
    hidden = {
        id(name)
        for inner in ast.walk(function)
        if isinstance(inner, COMPREHENSION)
        for generator in inner.generators
        for name in ast.walk(generator.target)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            names[node.arg] = min(names.get(node.arg, node.lineno), node.lineno)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in hidden:
            names[node.id] = min(names.get(node.id, node.lineno), node.lineno)
    return names
