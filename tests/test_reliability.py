"""The command that makes docs/reliability.md, with little of everything."""

import shutil
from pathlib import Path

import pytest
import reliability

pytestmark = pytest.mark.slow


def test_the_document_is_filled_with_what_was_found(tmp_path):
    document = Path(shutil.copy(reliability.DOCUMENT, tmp_path))
    little = {"kills": 4, "fuzz": 200, "soak": 4, "residue": 2}
    options = [word for name, count in little.items() for word in (f"--{name}", str(count))]
    reliability.main([*options, "--output", str(document)])
    text = document.read_text()
    for line in (
        "| processes killed | 4 | 4 in the old state or the new |",
        "| malformed files read | 200 | 0 crashes |",
        "| requests one after another | 16 |",  # in four ways
        "| **bytes of residue** | 0 |",
        "| all; completed when asked for again | 4 |",
    ):
        assert line in text, line
    found = text[text.index("| bytes found before |") :]
    assert all(int(line.split("|")[2].replace(",", "")) > 0 for line in found.splitlines()[2:5]), "nothing planted"
    assert text.count("<!-- end -->") == reliability.DOCUMENT.read_text().count("<!-- end -->") == 6
