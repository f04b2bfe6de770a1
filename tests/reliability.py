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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def grid(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table with numbers as they are, shortened where they have a fraction.

    Example:
        >>> print(grid(["killed", "old"], [["any time", 1200]]))
        | killed | old |
        |---|--:|
        | any time | 1,200 |
    """
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *([_said(cell) for cell in row] for row in rows)]
    return "\n".join(f"|{'|'.join(line)}|" if line[0] == "---" else f"| {' | '.join(line)} |" for line in lines)


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def kills(found: Mapping[str, Any]) -> str:
    """Return what the killed processes have left, by when they were killed."""
    rows = []
    for when in ("killed at any time", f"killed at {found['moments of writing']} moments of writing"):
        states = found[f"killed {'at any time' if when.endswith('time') else 'while writing'}, found"]
        rows.append([when, sum(states.values()), states["old"], states["new"]])
    rows.append(["all; completed when asked for again", found["completed when asked for again"], "", ""])
    return grid(["", "processes", "found the old state", "found the new"], rows)


def fuzz(found: Mapping[str, Any]) -> str:
    """Return what became of the malformed files, by what they should have been."""
    outcomes, rows = Counter[tuple[str, str]](), []
    for name, number in found["outcomes"].items():
        kind, outcome = name.split(" ", 1)
        outcomes[kind, outcome if outcome in ("read", "crashed") else "refused"] += number
    for kind in sorted({kind for kind, _ in outcomes}):
        rows.append([kind, *(outcomes[kind, outcome] for outcome in ("read", "refused", "crashed"))])
    rows.append(["all", *(sum(row[column] for row in rows) for column in (1, 2, 3))])
    slowest = found["slowest"]
    said = (
        f"{found['by_hand']} of {found['files']:,} were written by hand. The slowest took {slowest['seconds']:.2g} s."
    )
    return f"{grid(['', 'read', 'refused in a sentence', 'crashed'], rows)}\n\n{said}"


def soak(found: Mapping[str, Any]) -> str:
    """Return what the process held, by the way in which it forgets."""
    rows = []
    for way, one in found["ways"].items():
        sizes = [one[size] / 2**20 for size in ("bytes_settled", "bytes_at_most")]
        rows.append([way, one["requests"], one["ledger"], *sizes, f"{one['growth']:.2%}", one["seconds"]])
    after = f"MiB after {found['settled']} requests"
    return grid(["solve", "requests", "entries in the ledger", after, "MiB at most", "growth", "seconds"], rows)


def residue(found: Mapping[str, Any]) -> str:
    """Return the bytes of planted people that were found, before they were forgotten and after."""
    what = ("id", "feature", "rating", "time")
    before = [
        [kind, *(found["before"].get(f"{kind}: {one}", 0) for one in what)] for kind in ("texts", "numbers", "command")
    ]
    names = {"texts": "ids are words", "numbers": "ids are numbers", "command": "by the command line, without features"}
    table = grid(["bytes found before", *what], [[names[kind], *counts] for kind, *counts in before])
    return (
        f"{grid(['written after', 'found'], _searched(found))}\n\nIn the {found['before_files']} files from before, in "
        f"which it must find them:\n\n{table}"
    )


def _searched(found: Mapping[str, Any]) -> Iterator[list[Any]]:
    yield ["people forgotten, in each of three ways", found["planted"]]
    yield ["spellings looked for", found["needles"]]
    yield ["files", found["files"]]
    yield ["bytes", found["bytes"]]
    yield ["**bytes of residue**", found["residue_bytes"]]


def summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what all came to, a line each."""
    killed, files, requests, left = (found[name] for name in HARNESSES)
    growth = f"{requests['growth']:.2%}"
    rows = [
        [
            "processes killed",
            killed["kills"],
            f"{killed['completed when asked for again']} in the old state or the new",
        ],
        ["malformed files read", files["files"], f"{len(files['crashes'])} crashes"],
        ["requests one after another", sum(one["requests"] for one in requests["ways"].values()), f"{growth} growth"],
        ["bytes searched for the forgotten", left["bytes"], f"{left['residue_bytes']} bytes of residue"],
    ]
    return grid(["what", "how many", "found"], rows)


TABLES = {"kills": kills, "fuzz": fuzz, "soak": soak, "residue": residue}


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

    found = {}
    for name, (script, _) in HARNESSES.items():
        count = getattr(options, name)
        sys.stdout.write(f"{script} --count {count} --seed {options.seed}\n")
        sys.stdout.flush()
        found[name] = measured(script, count, options.seed)
        sys.stdout.write(f"{json.dumps(found[name])}\n")
    made = {"summary": summary(found)} | {name: TABLES[name](found[name]) for name in HARNESSES}
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
