"""Trees of arrays through shared memory: the numbers lie in a block, the rest is JSON.

A tree is None, bool, int, float, str, an array, or a list, tuple or dict (str keys) of trees. What knows
`__dlpack__` (a CPU tensor) is taken as an array, and comes out as a NumPy one. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Mapping, Sequence
from multiprocessing import resource_tracker, shared_memory
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Spec: TypeAlias = list[Any]
"""[offset, shape, dtype] of one array in a block."""

ALIGN = 64  # bytes: a cache line, and what vector loads like
SMALLEST = 1 << 16
ARRAY, TUPLE = "#", "()"  # marks in the JSON; refused as keys


def flatten(tree: Any, arrays: list[Array], where: str = "it") -> Any:
    """The JSON form of `tree`; its arrays are appended to `arrays`.

    Raises: TypeError naming the place and the type of what cannot be sent.
    """
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, np.generic):
        return flatten(tree.item(), arrays, where)
    if isinstance(tree, np.ndarray):
        if tree.dtype.hasobject:
            raise TypeError(f"{where} is an array of Python objects; arrays of numbers can be sent")
        arrays.append(cast("Array", tree))
        return {ARRAY: len(arrays) - 1}
    if isinstance(tree, Mapping):
        items = cast("Mapping[Any, Any]", tree)
        for key in items:
            if not isinstance(key, str) or key in (ARRAY, TUPLE):
                raise TypeError(f"{where} has the key {key!r}; keys are text, and not {ARRAY!r} or {TUPLE!r}")
        return {key: flatten(value, arrays, f"{where}[{key!r}]") for key, value in items.items()}
    if isinstance(tree, (list, tuple)):
        parts = cast("Sequence[Any]", tree)
        flat = [flatten(part, arrays, f"{where}[{i}]") for i, part in enumerate(parts)]
        return {TUPLE: flat} if isinstance(tree, tuple) else flat
    if hasattr(tree, "__dlpack__"):
        return flatten(np.from_dlpack(tree), arrays, where)
    raise TypeError(
        f"{where} is a {type(tree).__name__}; a pool of kind process sends numbers, text, arrays, lists and dicts"
    )


def restore(flat: Any, arrays: Sequence[Array]) -> Any:
    """The tree of its JSON form."""
    if isinstance(flat, dict):
        body = cast("dict[str, Any]", flat)
        if ARRAY in body:
            return arrays[body[ARRAY]]
        if TUPLE in body:
            return tuple(restore(part, arrays) for part in body[TUPLE])
        return {key: restore(value, arrays) for key, value in body.items()}
    if isinstance(flat, list):
        return [restore(part, arrays) for part in cast("list[Any]", flat)]
    return flat


def signature(tree: Any) -> Hashable:
    """What decides the cost of a tree: shapes and types of its arrays, names of its parts."""
    if isinstance(tree, Mapping):
        items = cast("Mapping[str, Any]", tree)
        return tuple((key, signature(items[key])) for key in sorted(items))
    if isinstance(tree, (list, tuple)):
        return tuple(signature(part) for part in cast("Sequence[Any]", tree))
    if hasattr(tree, "shape") and hasattr(tree, "dtype"):
        return (tuple(tree.shape), str(tree.dtype))
    return None


def layout(arrays: Sequence[Array]) -> tuple[list[Spec], int]:
    """Where each array goes in a block, and the bytes needed."""
    specs: list[Spec] = []
    at = 0
    for array in arrays:
        specs.append([at, list(array.shape), array.dtype.str])
        at += -(-array.nbytes // ALIGN) * ALIGN
    return specs, at


def write(block: shared_memory.SharedMemory, arrays: Sequence[Array], specs: Sequence[Spec]) -> None:
    """Copy the arrays to their places."""
    for array, view in zip(arrays, views(block, specs), strict=True):
        np.copyto(view, array, casting="no")


def views(block: shared_memory.SharedMemory, specs: Sequence[Spec]) -> list[Array]:
    """The arrays of a block, without copying: good until the block is written again."""
    return [
        np.ndarray(tuple(shape), np.dtype(dtype), buffer=block.buf, offset=offset)
        for offset, shape, dtype in specs
    ]


def create(nbytes: int) -> shared_memory.SharedMemory:
    """A block of at least so many bytes. Whoever creates it unlinks it."""
    size = max(SMALLEST, 1 << (max(nbytes, 1) - 1).bit_length())
    return shared_memory.SharedMemory(create=True, size=size)


def attach(name: str) -> shared_memory.SharedMemory:
    """Another process's block. It stays that process's to unlink."""
    # before Python 3.13 attaching also tells this process's tracker, which would unlink it at our exit
    register = resource_tracker.register
    resource_tracker.register = _ignore
    try:
        return shared_memory.SharedMemory(name)
    finally:
        resource_tracker.register = register


def release(block: shared_memory.SharedMemory, *, unlink: bool) -> None:
    """Give a block back; memory that an array still shows goes with that array."""
    if unlink:
        with contextlib.suppress(FileNotFoundError):
            block.unlink()
    with contextlib.suppress(BufferError):
        block.close()


def _ignore(name: str, rtype: str) -> None:
    return None
