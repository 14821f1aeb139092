"""What a mutation puts in the place of what: operators, comparisons, and functions that are taken for each other."""

import ast

OPERATORS: dict[type[ast.AST], tuple[str, list[str]]] = {
    ast.Add: ("+", ["-", "*"]),
    ast.Sub: ("-", ["+"]),
    ast.Mult: ("*", ["+", "//"]),
    ast.Div: ("/", ["*", "//"]),
    ast.FloorDiv: ("//", ["*", "%"]),
    ast.Mod: ("%", ["//", "*"]),
    ast.Pow: ("**", ["*"]),
    ast.LShift: ("<<", [">>"]),
    ast.RShift: (">>", ["<<"]),
    ast.BitAnd: ("&", ["|"]),
    ast.BitOr: ("|", ["&"]),
    ast.BitXor: ("^", ["&", "|"]),
}
COMPARISONS: dict[type[ast.AST], tuple[str, list[str]]] = {
    ast.Lt: ("<", ["<=", ">"]),
    ast.LtE: ("<=", ["<", ">="]),
    ast.Gt: (">", [">=", "<"]),
    ast.GtE: (">=", [">", "<="]),
    ast.Eq: ("==", ["!="]),
    ast.NotEq: ("!=", ["=="]),
    ast.In: ("in", ["not in"]),
    ast.NotIn: ("not in", ["in"]),
    ast.Is: ("is", ["is not"]),
    ast.IsNot: ("is not", ["is"]),
}
# Functions and methods that are taken for each other.
PAIRS = [
    ("min", "max"), ("any", "all"), ("ceil", "floor"), ("sin", "cos"), ("upper", "lower"), ("isupper", "islower"),
    ("isalpha", "isdigit"), ("startswith", "endswith"), ("lstrip", "rstrip"), ("find", "rfind"), ("add", "discard"),
    ("union", "intersection"), ("append", "extend"), ("keys", "values"), ("items", "keys"), ("index", "count"),
    ("nlargest", "nsmallest"), ("heappush", "heappushpop"), ("combinations", "permutations"), ("search", "match"),
    ("sorted", "list"), ("sum", "len"), ("zip", "product"), ("abs", "int"), ("ord", "int"), ("filter", "map"),
]  # fmt: skip
FUNCTIONS = {b: a for a, b in reversed(PAIRS)} | {a: b for a, b in reversed(PAIRS)}
SYMMETRIC = ("min", "max", "gcd", "print", "set")  # the order of arguments does not matter
