"""The documentation says nothing that the code does not bear out: its blocks run, its links lead somewhere."""

import ast
import functools
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import yaml

from lightning_ifru.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
#: A fenced block: its language, its code, and whether the comment before it says that it is not to be run.
BLOCK = re.compile(r"^(<!-- not run[^\n]*-->\n+)?```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: Offered, and described elsewhere: PyG's own classes, and the type of a function.
NOT_OURS = {"LinkPredNDCG", "LinkPredRecall", "Decoder"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page, language):
    """Return line, code and whether it is run, for each of a page's blocks in a language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        if match[2] == language:
            found.append((text.count("\n", 0, match.start(3)) + 1, match[3], match[1] is None))
    return found


def files(page):
    """Return the files that a page shows as a whole, by name."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', text, re.MULTILINE | re.DOTALL))


def commands(page):
    """Return the page's shell commands that are run, with their blocks' lines."""
    return [(line, code) for line, code, run in blocks(page, "sh") if run and code.startswith("lightning-ifru")]


def config():
    # Material's tags are Python objects; none of them matters here.
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=loader)


def leaves(tree):
    if isinstance(tree, str):
        yield tree
    else:
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(branch)


def anchors(page):
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    text = re.sub(r"^```.*?^```", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the pages speak of, small enough to be trained on in a moment."""
    generator = np.random.default_rng(0)
    users = [str(user) for user in range(1, 61)]
    films = ["6", "858", *(str(1000 + film) for film in range(40))]
    rows = [
        {"userId": user, "movieId": film, "rating": rating, "timestamp": int(time)}
        for user in users
        for film, rating, time in zip(
            ["6", *generator.choice(films[1:], 11, replace=False)],
            generator.choice([2.0, 3.5, 4.0, 5.0], 12),
            generator.integers(10**9, 10**9 + 10**6, 12),
            strict=True,
        )
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "ratings.csv", index=False)
    (tmp_path / "forget.csv").write_text("user,item\n9,\n10,\n11,\n12,\n13,\n14,\n,1007\n17,6\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIGHTNING_IFRU_KEY", "the key of all tests")
    original = lightning.Trainer.__init__

    @functools.wraps(original)
    def brief(self, *args, **kwargs):
        """Be as the page says, but for the number of epochs and what is shown of them."""
        epochs = kwargs.get("max_epochs")
        original(self, *args, **kwargs | {"enable_progress_bar": False, "max_epochs": epochs and min(epochs, 2)})

    monkeypatch.setattr(lightning.Trainer, "__init__", brief)
    return tmp_path


def test_the_navigation_covers_every_page_once():
    assert sorted(leaves(config()["nav"])) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_links_and_images_lead_somewhere(page):
    targets = LINK.findall(
        re.sub(r"```.*?```|`[^`\n]*`", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    )
    for target in targets:
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        aim = (DOCS / page).parent / path if path else DOCS / page
        assert aim.is_file(), f"{page} links to {target}"
        if anchor and not anchor.startswith("lightning_ifru"):  # those of the API are in the built site only
            assert anchor in anchors(aim.resolve().relative_to(DOCS).as_posix()), f"{page} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") or files(page)])
def test_blocks_run_in_the_order_of_the_page(page, folder, capfd):
    for name, content in files(page).items():
        (folder / name).write_text(content)
    namespace = {"__name__": "__docs__"}
    python = [(line, code, run) for line, code, run in blocks(page, "python")]
    for line, code, run in sorted([*python, *((line, code, None) for line, code in commands(page) if files(page))]):
        if run is None:
            for command in code.replace("\\\n", "").splitlines():
                assert main(shlex.split(command)[1:]) == 0, f"{page}:{line}: {capfd.readouterr().err}"
            continue
        tree = compile(code, f"{page}:{line}", "exec", ast.PyCF_ONLY_AST)
        ast.increment_lineno(tree, line - 1)
        if run:
            exec(compile(tree, str(DOCS / page), "exec"), namespace)


def test_some_blocks_are_run():
    run = [code for page in PAGES for _, code, run in blocks(page, "python") if run]
    assert len(run) > 10
    assert any("trainer.unlearn(data" in code for code in run)


@pytest.mark.parametrize(
    ("module", "page"),
    [
        ("lightning_ifru", "api/forgetting.md"),
        ("lightning_ifru.models", "api/models.md"),
        ("lightning_ifru.metrics", "api/metrics.md"),
    ],
)
def test_the_api_pages_name_everything_that_is_offered(module, page, built):
    names = importlib.import_module(module).__all__
    html = (built / page).with_suffix(".html").read_text(encoding="utf-8")
    described = set(re.findall(r'id="(?:\w+\.)*(\w+)"', html))
    assert [name for name in names if name not in described | NOT_OURS] == []
    assert [name for name in NOT_OURS.intersection(names) if name not in html] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The site, built as strictly as in CI."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, done.stderr
    return site


def test_the_site_loads_nothing_from_elsewhere(built):
    for path in built.rglob("*.html"):
        loaded = re.findall(r'(?:src|<link[^>]+href)="((?:https?:)?//[^"]+)"', path.read_text(encoding="utf-8"))
        assert loaded == [], path
    for path in built.rglob("*.css"):
        assert "url(http" not in path.read_text(encoding="utf-8"), path


def test_the_site_has_equations_and_no_markup_of_sphinx(built):
    pages = {path: path.read_text(encoding="utf-8") for path in built.rglob("*.html")}
    assert sum(text.count("<math") for text in pages.values()) > 100
    for path, text in pages.items():
        seen = re.sub(r"<details.*?</details>", "", text, flags=re.DOTALL)  # the source code, as it is
        assert not re.search(r":[a-z]+:`|:[a-z]+:<code>|\.\. math::|arithmatex\">\\", seen), path


@pytest.fixture(scope="module")
def markdown():
    pytest.importorskip("griffe")
    return runpy.run_path(str(DOCS / "hooks" / "docstrings.py"))["markdown"]


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        ("With :math:`\\|r\\|` small.", "With $\\|r\\|$ small."),
        (
            "See :class:`~a.b.C` and :meth:`run`.",
            'See <autoref optional identifier="x.a.b.C"><code>C</code></autoref> and '
            '<autoref optional identifier="x.run"><code>run</code></autoref>.',
        ),
        (
            "It is\n\n.. math::\n\n    a =\n    b\n\nwith b.",
            "It is\n\n$$\na = b\n$$\n\nwith b.",
        ),
        ("    .. math::  a = b\n\n    with b.", "    $$\n    a = b\n    $$\n\n    with b."),
        ("Example:\n    >>> 1\n    1", "Examples:\n    >>> 1\n    1"),
        ("Source: a book.", "**Source:** a book."),
        (
            "Args:\n    a, b: both,\n        long.\n    c: one.",
            "Args:\n    a: both,\n        long.\n    b: both,\n        long.\n    c: one.",
        ),
        ("Of a, b: nothing.", "Of a, b: nothing."),
        (
            "=====  ====\nname   what\n=====  ====\none,   a b\ntwo    c\n       d\n=====  ====\n\nEnd.",
            "| name | what |\n| --- | --- |\n| one, | a b |\n| two | c d |\n\nEnd.",
        ),
    ],
    ids=["math", "names", "block", "line", "example", "source", "together", "prose", "table"],
)
def test_docstrings_become_markdown(markdown, docstring, wanted):
    assert markdown(docstring, lambda name: f"x.{name}") == wanted


@pytest.fixture(scope="module")
def equations():
    pytest.importorskip("latex2mathml")
    return runpy.run_path(str(DOCS / "hooks" / "equations.py"))


def test_equations_become_mathml_with_their_numbers(equations):
    page = equations["on_page_content"](
        '<p><span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[\nx = 1 \\tag{2}\n\\]</div>'
    )
    assert '<span class="arithmatex"><math' in page
    assert "<mo>&#x0003C;</mo>" in page
    assert "\\(" not in page
    assert '<span class="equation-number">(2)</span></div>' in page
    assert "tag" not in page
    assert 'display="block"' in page


def test_a_binomial_is_raised_as_a_whole(equations):
    math = equations["mathml"](r"\binom{n}{B}^{-1}")
    assert re.search(r"<msup><mrow>.*<mfrac.*</mrow><mrow><mo>&#x02212;</mo><mn>1</mn></mrow></msup>", math)


def test_what_latex2mathml_breaks_is_no_equation(equations):
    with pytest.raises(ValueError, match=r"gives an msup of 4 parts"):
        equations["mathml"](r"\binom{n_{v}}{B}^{-1}")


def test_an_unknown_command_is_no_equation(equations):
    with pytest.raises(ValueError, match=r"\\nonsense"):
        equations["mathml"](r"a \nonsense b")


def named_tests(document):
    """Return the tests that a document names, each with its file; of ``::test_it`` the file is the last one named."""
    found, file = [], None
    for name, test in re.findall(r"`(?:tests/(\w+\.py))?(?:::(\w+))?`", document):
        file = name or file
        if name or test:
            found.append((file, test or None))
    return found


@pytest.mark.parametrize("document", ["docs/guarantees.md", "SECURITY.md"])
def test_every_promise_names_tests_that_there_are(document):
    named = named_tests((ROOT / document).read_text(encoding="utf-8"))
    assert len(named) > 15
    for file, test in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert test is None or f"\ndef {test}(" in text, (file, test)


#: Stands in for the program: a model is the list of who is gone, and what a command has made it leaves as it is.
PROGRAM = """#!/bin/sh
loaded="$5" request="$7" output="$9" report="${11}"
gone="$(cat "$request")"
case "$gone" in bad) echo "unknown id" >&2; exit 1;; esac
if [ -e "$output" ]; then
    [ "$output" = "$loaded" ] || [ "$(cat "$output")" = "$(cat "$loaded") $gone" ] || exit 1
else
    grep -qw "$gone" "$loaded" || echo "$(cat "$loaded") $gone" > "$output"
fi
echo "{}" > "$report"
"""
#: Stands in for a tool: at its nth call, counted in a file, the job is killed before or after it has done its work.
KILLING = """#!/bin/sh
echo >> {count}
[ "$(wc -l < {count})" -ne {n} ] || [ {when} != before ] || kill -9 $PPID
PATH={rest} {tool} "$@"; code=$?
[ "$(wc -l < {count})" -ne {n} ] || [ {when} != after ] || kill -9 $PPID
exit $code
"""


def nightly(place, kill=None):
    """Run the documented job with stand-ins in a folder and return its exit code; ``kill`` is tool, call and when."""
    tools, rest = place / "bin", os.environ["PATH"]
    shutil.rmtree(tools, ignore_errors=True)
    tools.mkdir()
    scripts = {"lightning-ifru": PROGRAM}
    if kill is not None:
        tool, n, when = kill
        (tools / "real").mkdir()
        if tool == "lightning-ifru":
            (tools / "real" / tool).write_text(PROGRAM)
            (tools / "real" / tool).chmod(0o755)
        given = {"count": tools / "count", "n": n, "when": when, "tool": tool, "rest": f"{tools / 'real'}:{rest}"}
        scripts[tool] = KILLING.format(**given)
    for name, text in scripts.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = files("command-line.md")["nightly.sh"]
    environment = os.environ | {"HOME": str(place), "PATH": f"{tools}:{rest}"}
    return subprocess.run(["sh", "-c", job], env=environment, capture_output=True, check=False).returncode


@pytest.fixture
def inbox(tmp_path):
    """A folder with a model that has forgotten nobody, and three requests, the middle one of which is bad."""
    place = tmp_path / "recommender"
    for name in ("models", "inbox", "done", "reports"):
        (place / name).mkdir(parents=True)
    (place / "models" / "original.ckpt").write_text("trained\n")
    (place / "current").symlink_to("models/original.ckpt")
    for name, gone in {"1": "anna", "2": "bad", "3": "carl"}.items():
        (place / "inbox" / f"{name}.csv").write_text(gone)
    return place


TOOLS = [("lightning-ifru", 1), ("lightning-ifru", 3), ("ln", 1), ("ln", 2), *(("mv", n) for n in (1, 2, 3, 4))]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("tool", "n"), [(None, 0), *TOOLS])
def test_the_nightly_job_loses_and_repeats_nothing_wherever_it_is_killed(inbox, tool, n, when):
    if tool is not None:
        assert nightly(inbox.parent, (tool, n, when)) == -9
        assert (inbox / "current").exists(), "there is a model in use at any time"
    (inbox / "inbox" / "0.csv").write_text("dora")  # comes before the one that the kill has interrupted
    assert nightly(inbox.parent) == 1
    assert sorted((inbox / "current").read_text().split()) == ["anna", "carl", "dora", "trained"]
    names = {part: sorted(path.name for path in (inbox / part).iterdir()) for part in ("inbox", "done", "models")}
    assert names["inbox"] == ["2.csv"], "the one that was refused, and it did not keep the others"
    assert names["done"] == ["0.csv", "1.csv", "3.csv"]
    assert names["models"] == ["0.ckpt", "1.ckpt", "3.ckpt", "original.ckpt"]
    (inbox / "inbox" / "2.csv").write_text("anna")  # all of it was forgotten before: no checkpoint is written
    assert nightly(inbox.parent) == 0
    assert sorted((inbox / "current").read_text().split()) == ["anna", "carl", "dora", "trained"]
    assert (inbox / "done" / "2.csv").exists()
    (inbox / "inbox" / "1.csv").write_text("emil")  # a name of old
    assert nightly(inbox.parent) == 1
    assert (inbox / "done" / "1.csv").read_text() == "anna"
    assert not any(inbox.glob("current.*"))
