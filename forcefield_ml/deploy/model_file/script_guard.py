"""Look the TorchScript of a model.pt over before torch sees it: mathematics on tensors and nothing else.

TorchScript is a language: `torch.jit.load` runs ``__setstate__`` of what it reads, and there are operators that write
files (``aten::save``, ``aten::from_file``) or come from other libraries. The source in the archive is therefore read
here as Python would read it, which it resembles, and each name in it must be one that our networks need. The
characters are restricted such that torch's own lexer cannot see other words in it than Python's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set

import torch

OPERATORS = frozenset(
    """__and__ __derive_index __is__ __isnot__ __not__ __or__ __range_length abs acos add add_ addcmul all any append
    arange argmax argmin argsort asin atan atan2 baddbmm bincount bitwise_and bitwise_not bitwise_or bmm broadcast_to
    cat ceil chunk clamp clamp_min clone contiguous copy cos cosh cross cumsum detach diagonal diff dim div div_ dot
    einsum embedding_bag eq erf erfc exp expand expm1 extend eye fill_ flatten floor floordiv format full full_like
    gather ge gelu gt index index_add index_add_ index_put_ index_select is_floating_point is_grad_enabled isfinite
    isnan layer_norm le leaky_relu len lerp lerp_ linalg_cross linalg_det linalg_norm linalg_vector_norm linear list
    log log1p logical_and logical_not logical_or lt masked_fill masked_select matmul max maximum mean min minimum mm
    mul mul_ narrow ne neg new_full new_ones new_zeros nonzero norm numel one_hot ones ones_like outer pad permute pow
    prod reciprocal relu remainder repeat repeat_interleave requires_grad_ reshape roll round rsqrt rsub scatter_add
    searchsorted select set_grad_enabled sigmoid sign silu silu_ sin sinh size slice softmax softplus sort split
    split_with_sizes sqrt square squeeze stack sub sub_ sum t tan tanh tensor to topk transpose trapezoid tril triu
    type_as unbind unsqueeze upper var view vstack warn where zero_ zeros zeros_like zip""".split()
)
"""Operators of torch (``aten::``) that a model may use: no file, no process, no network."""

GRADIENT = ["autograd", "grad"]
"""``torch.autograd.grad``, by which a model with an energy finds its forces; of ``torch.autograd`` nothing else."""

PRIMITIVES = frozenset("RaiseException device dtype is_cuda max min data layout requires_grad shape type".split())
"""Operators ``ops.prim.*`` that a model may use."""

LIBRARIES = ("torch.classes.vesin._NeighborList",)
"""Compiled classes that a model may use: the neighbour list, with its methods."""

BUILTINS = frozenset(
    "annotate bool float getattr int isinstance len list range str tuple unchecked_cast uninitialized".split()
)

METHODS = frozenset(("compute", "__new__", "__init__", "__enter__", "__exit__", "__len__", *OPERATORS))
"""What may follow a dot and be called, besides names of the archive itself that are no operator's."""

FORBIDDEN = frozenset("save from_file load_tensor classes fork __setstate__ __getstate__ __import__ eval exec".split())
"""Names that nothing in a model may have, so that nothing can stand for them."""

SYNTAX = (
    ast.AnnAssign, ast.Assign, ast.Attribute, ast.Call, ast.ClassDef, ast.Constant, ast.Dict, ast.Expr, ast.For,
    ast.FunctionDef, ast.If, ast.IfExp, ast.List, ast.Load, ast.Module, ast.Name, ast.Pass, ast.Return, ast.Store,
    ast.Subscript, ast.Tuple, ast.USub, ast.UnaryOp, ast.While, ast.With, ast.arg, ast.arguments, ast.keyword,
    ast.withitem,
)  # fmt: skip
"""What the source of exported models is made of."""

STRING = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"|' r"'(?:[^'\\\n]|\\[^\n])*'")
ROOTS = ("torch", "ops", "__torch__", "CONSTANTS")


def faults(sources: Mapping[str, str]) -> Iterator[str]:
    """Yield what in the source of an archive is more than a model needs.

    Parameters
    ----------
    sources
        Name of each file under ``code/`` to its text.
    """
    trees = {}
    for name, text in sources.items():
        odd = _odd_characters(text)
        if odd:
            yield f"{name} holds {odd}"
            continue
        try:
            trees[name] = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            yield f"{name} is not the source that torch writes ({error})"
    defined = {name for tree in trees.values() for name in _defined(tree)}
    known = METHODS | defined
    called = METHODS | {name for name in defined if not _is_operator(name)}
    for name, tree in trees.items():
        for fault in _faults_of(tree, known, called):
            yield f"{name} {fault}"


def _is_operator(name: str) -> bool:
    """Tell whether torch would take ``x.name(...)`` on a tensor for an operator, whatever else has that name."""
    return any(torch._C._jit_get_schemas_for_operator(f"{space}::{name}") for space in ("aten", "prim"))


def _odd_characters(text: str) -> str:
    """Return what two lexers could read differently, or nothing."""
    if not text.isascii() or not all(char.isprintable() or char == "\n" for char in text):
        return "characters other than printable ASCII"
    bare = STRING.sub("\0", text)
    if re.search(r"\w\0|\0\s*\0", bare):
        return "a string with a prefix or another beside it"
    found = re.search(r"[#;\\\"'`$?!]", bare)
    return f"{found.group()!r} outside of strings" if found else ""


def _defined(tree: ast.Module) -> Iterator[str]:
    """Yield names of functions, classes, fields and arguments."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _functions(tree: ast.Module) -> set[int]:
    """Return the ids of calls by a name that stands, wherever its function stores it, for something under `ROOTS`."""
    found: set[int] = set()
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        inside = [*ast.walk(function)]
        short = {
            id(node.targets[0])
            for node in inside
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Attribute) and _chain(node.value)[0] in ROOTS
        }
        stored = [node for node in inside if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
        names = {node.id for node in stored} - {node.id for node in stored if id(node) not in short}
        names -= {node.arg for node in inside if isinstance(node, ast.arg)}
        found.update(id(node) for node in inside if isinstance(node, ast.Call) and _name(node.func) in names)
    return found


def _faults_of(tree: ast.Module, known: Set[str], called: Set[str]) -> Iterator[str]:
    """Yield faults; `known` are names that may follow a dot, `called` those that may be called there, too."""
    functions = _functions(tree)
    callees = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    rooted: set[int] = set()  # names and attributes that were judged as part of a longer chain
    for node in ast.walk(tree):  # from the outside in, so that a chain is met before its parts
        where = f"line {getattr(node, 'lineno', 0)}"
        if not isinstance(node, SYNTAX):
            yield f"({where}) uses {type(node).__name__}"
        if _name(node) in FORBIDDEN:
            yield f"({where}) names {_name(node)!r}, which is not allowed"
        if isinstance(node, ast.Attribute) and id(node) not in rooted:
            root, names, parts = _chain(node)
            if root in ROOTS:
                rooted.update(parts)
                if not _allowed(root, names):
                    yield f"({where}) uses {root}.{'.'.join(names)}, which is not allowed"
                continue
            if node.attr not in (called if id(node) in callees else known) or node.attr in FORBIDDEN:
                yield f"({where}) uses .{node.attr}, which is not allowed"
        elif isinstance(node, ast.Name) and node.id in ROOTS and id(node) not in rooted:
            yield f"({where}) uses {node.id} other than by what is in it"
        elif isinstance(node, ast.Call) and not isinstance(node.func, ast.Attribute):
            callee = node.func.id if isinstance(node.func, ast.Name) else type(node.func).__name__
            if not (isinstance(node.func, ast.Name) and callee in BUILTINS) and id(node) not in functions:
                yield f"({where}) calls {callee}, which is not allowed"
            if callee == "getattr":
                last = node.args[-1] if len(node.args) == 2 and not node.keywords else None
                value = last.value if isinstance(last, ast.Constant) else None
                if not isinstance(value, str) or not (value.isdecimal() or value in known):
                    yield f"({where}) asks for the attribute {value!r}, which is not allowed"


def _name(node: ast.AST) -> str:
    """Return the name that a node gives or uses; those after a dot are judged with their chain."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    if isinstance(node, (ast.arg, ast.keyword)):
        return node.arg or ""
    return ""


def _chain(node: ast.Attribute) -> tuple[str, list[str], list[int]]:
    """Return the name at the left end of a.b.c (empty if there is none), the names after it, and the parts' ids."""
    names: list[str] = []
    parts: list[int] = []
    here: ast.expr = node
    while isinstance(here, ast.Attribute):
        names.append(here.attr)
        parts.append(id(here))
        here = here.value
    return (here.id if isinstance(here, ast.Name) else ""), names[::-1], [*parts, id(here)]


def _allowed(root: str, names: list[str]) -> bool:
    if root == "torch":
        return names == GRADIENT or (len(names) == 1 and names[0] in OPERATORS)
    if root == "ops":
        return len(names) == 2 and names[0] == "prim" and names[1] in PRIMITIVES
    if root == "CONSTANTS":
        return len(names) == 1 and bool(re.fullmatch(r"c\d+", names[0]))
    path = ".".join(names)
    if names[:2] == ["torch", "classes"]:
        return path in LIBRARIES or path.removesuffix(".__new__") in LIBRARIES
    return True  # a class or function of the archive itself; where there is none, torch says so
