"""Kills, malformed files, a soak and planted residue, all at full size, and what came of them in docs/reliability.md.

    python tests/reliability.py

runs the scripts of :data:`HARNESSES` one after another, each in a process of its own, and puts what they print between
the markers of the document. The same scripts run in the tests, smaller every day and as large as here with ``-m slow``.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "reliability.md"
#: By section of the document: the script, and how many of what it does.
HARNESSES = {
    "kills": ("kills.py", 200),
    "fuzz": ("fuzz.py", 10_000),
    "soak": ("soak.py", 500),
    "residue": ("residue.py", 50),
}


def measured(script: str, count: int, seed: int) -> dict[str, Any]:
    """Return what a script prints.

    Raises:
        RuntimeError: it fails.
    """
    command = [sys.executable, str(HERE / script), "--count", str(count), "--seed", str(seed)]
    # One thread: processes are forked, and threads that a library has started do not come along.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=alone)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return found


def table(found: Mapping[str, Any]) -> str:
    """Return what was found as a table, numbers as they are.

    Example:
        >>> print(table({"kills": 2, "state": {"old": 1, "new": 1}}))
        | what | found |
        |---|--:|
        | kills | 2 |
        | state: old | 1 |
        | state: new | 1 |
    """
    return "\n".join(["| what | found |", "|---|--:|", *(f"| {name} | {_said(x)} |" for name, x in _flat(found))])


def _flat(found: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        said = before + str(name).replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{said}: ")
        else:
            yield said, value


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main(arguments: list[str] | None = None) -> None:
    """Run all, or some, and fill the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (_, count) in HARNESSES.items():
        parser.add_argument(f"--{name}", type=int, default=count, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=DOCUMENT, help="the document to fill")
    options = parser.parse_args(arguments)
    sys.path.append(str(HERE.parent / "examples" / "benchmarks"))
    import sections
    from rows import provenance

    made = {}
    for name, (script, _) in HARNESSES.items():
        count = getattr(options, name)
        sys.stdout.write(f"{script} --count {count} --seed {options.seed}\n")
        sys.stdout.flush()
        made[name] = table(measured(script, count, options.seed))
        sys.stdout.write(f"{made[name]}\n")
    of = provenance(workers=1)
    hardware, versions = of["hardware"], ", ".join(f"{name} {number}" for name, number in of["versions"].items())
    made["about"] = (
        f"{of['date'][:10]}, {hardware['cpu']} ({hardware['cores']} cores), one thread, seed {options.seed}. Commit "
        f"`{str(of['commit'])[:9]}`{' with changes' if of['dirty'] else ''}; Python {of['python']}, {versions}."
    )
    document = options.output.read_text(encoding="utf-8")
    options.output.write_text(sections.fill(document, "reliability", made), encoding="utf-8")


if __name__ == "__main__":
    main()
