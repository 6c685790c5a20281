"""YAML to plain data that remembers where each value stood.

Keys are always text (YAML 1.1 would read `on:` as true), duplicates are refused, only true/false are
booleans, and aliases are bounded by refusing them: a graph needs none, and they can explode.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import yaml

from .errors import Fault, GraphError

Path: TypeAlias = tuple[str | int, ...]
Marks: TypeAlias = dict[Path, tuple[int, int]]

MAX_BYTES = 256 * 1024
MAX_DEPTH = 12
_TOO_DEEP = f"nested too deep; at most {MAX_DEPTH} levels"


def parse(text: str, path: str, twice: list[Fault] | None = None) -> tuple[Any, Marks]:
    """Data and the line and column of each key and value, by path.

    twice: takes the faults of duplicate keys, whose first value counts, so that a reader finds its own too.
    Raises: GraphError for broken YAML, a duplicate key without `twice`, an alias, or a file too large or deep.
    """
    if len(text) > MAX_BYTES:
        raise GraphError(path, [Fault(1, 1, f"the file has {len(text)} characters; at most {MAX_BYTES}")])
    try:
        _check_shape(text, path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise GraphError(path, [Fault(line, column, f"not YAML: {e.problem or e}")]) from e
    except yaml.YAMLError as e:  # a character that YAML forbids
        raise GraphError(path, [Fault(1, 1, f"not YAML: {e}")]) from e
    if root is None:
        raise GraphError(path, [Fault(1, 1, "the file is empty; a graph starts with 'penstock: 1'")])
    marks: Marks = {}
    faults: list[Fault] = []
    data = _build(root, (), marks, faults, faults if twice is None else twice)
    if faults:
        raise GraphError(path, faults)
    return data, marks


def _check_shape(text: str, path: str) -> None:
    """Before anything is built: PyYAML's time grows with the square of the depth, and its composer recurses."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        why = ""
        if isinstance(event, yaml.AliasEvent):
            why = "aliases (*name) are not accepted"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH + 1:  # the file itself is one
                why = _TOO_DEEP
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if why:
            raise GraphError(path, [Fault(event.start_mark.line + 1, event.start_mark.column + 1, why)])


def _build(node: yaml.Node, path: Path, marks: Marks, faults: list[Fault], twice: list[Fault]) -> Any:
    where = (node.start_mark.line + 1, node.start_mark.column + 1)
    marks.setdefault(path, where)
    if len(path) > MAX_DEPTH:
        faults.append(Fault(*where, _TOO_DEEP))
        return None
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key, value in node.value:
            at = (key.start_mark.line + 1, key.start_mark.column + 1)
            if not isinstance(key, yaml.ScalarNode):
                faults.append(Fault(*at, "a key must be a word"))
                continue
            name = str(key.value)
            if name in out:
                twice.append(Fault(*at, f"{name!r} is given twice"))
                continue
            marks[(*path, name)] = at
            out[name] = _build(value, (*path, name), marks, faults, twice)
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, i), marks, faults, twice) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    kind = node.tag.rsplit(":", 1)[-1]
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind == "null":
        return None
    if kind in ("int", "float"):
        try:
            return int(text) if kind == "int" else float(text)
        except ValueError:  # 0x1f, 1:30 and other dialects stay text
            return text
    return text
