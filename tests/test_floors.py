"""What the method is made of can be used, and read, without Lightning."""

import ast
from pathlib import Path

import pytest

import lightning_ifru

HOUSE = Path(lightning_ifru.__file__).parent
MODULES = {".".join(path.relative_to(HOUSE).with_suffix("").parts): path for path in HOUSE.rglob("*.py")}
MODULES = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}
BELOW = ["errors", "interactions", "request", "graph", "solvers", "objective", "curvature", "pruning", "influence",
         "report", "verdict", "degradation", *(name for name in MODULES if name.startswith("metrics"))]  # fmt: skip


def imported(name):
    """The full names of what a module imports, at its head or later."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


def way_to_lightning(name):
    """The modules by which one reaches Lightning, itself first; none where it does not."""
    ways = [[name]]
    seen = {name}
    for way in ways:
        for one in imported(way[-1]):
            if one.partition(".")[0] in ("lightning", "pytorch_lightning", "lightning_fabric"):
                return [*way, one]
            ours = one.removeprefix("lightning_ifru.")
            if one != ours and ours in MODULES and ours not in seen:
                seen.add(ours)
                ways.append([*way, ours])
    return []


@pytest.mark.parametrize("name", BELOW)
def test_the_lower_floors_know_nothing_of_lightning(name):
    assert way_to_lightning(name) == []


def test_the_upper_floors_do():
    assert way_to_lightning("assessment")[-1].partition(".")[0] == "lightning"
