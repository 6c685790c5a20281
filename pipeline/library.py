"""Where graphs are found: a path, or the name of one that is embedded."""

from __future__ import annotations

import os
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from .compiler import load
from .graph import Plan
from .stage import StageError

_ROOT = __name__.split(".")[0]


def embedded() -> dict[str, Path]:
    """Graphs that come with the package, by name."""
    folder = Path(str(files(f"{_ROOT}.graphs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a path or an embedded name. Raises: StageError that lists what there is."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise StageError(f"no graph file {name!r}")
        return path
    known = embedded()
    if name in known:
        return known[name]
    match = get_close_matches(name, known, n=1)
    hint = f"; did you mean {match[0]!r}?" if match else ";"
    raise StageError(f"no graph {name!r}{hint} give a .yaml file or one of: {', '.join(known)}")


def configured() -> list[str]:
    """Graph files of the service's own folder: systemd's CONFIGURATION_DIRECTORY, as /etc/penstock."""
    folder = os.environ.get("CONFIGURATION_DIRECTORY", "").partition(":")[0]
    found = sorted(Path(folder).glob("*.yaml")) if folder else []
    return [str(path) for path in found if not path.name.endswith(".test.yaml")]


def load_all(names: list[str]) -> dict[str, Plan]:
    """Compile graphs by path or name; none given means all embedded ones, the studio first.

    Raises: GraphError, StageError (also when two graphs carry one name).
    """
    paths = (
        [find(n) for n in names] if names else sorted(embedded().values(), key=lambda p: p.stem != "studio")
    )
    plans: dict[str, Plan] = {}
    for path in paths:
        plan = load(path)
        if plan.name in plans:
            raise StageError(f"{path} and {plans[plan.name].path} are both named {plan.name!r}")
        plans[plan.name] = plan
    return plans
