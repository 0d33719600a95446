"""Generated files are as the code makes them, and the check would notice if they were not."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace_operator.generate import GENERATORS, REPOSITORY, differences, main, write


@pytest.mark.parametrize("path", GENERATORS)
def test_a_generated_file_is_up_to_date(path: str) -> None:
    assert (REPOSITORY / path).read_text() == GENERATORS[path](), "run `make generate` and commit the result"


def test_writing_twice_changes_nothing(tmp_path: Path) -> None:
    assert write(tmp_path) == list(GENERATORS)

    assert write(tmp_path) == []
    assert differences(tmp_path) == ""


def test_the_check_shows_the_difference_and_fails(tmp_path: Path) -> None:
    write(tmp_path)
    page = tmp_path / "docs/api.md"
    page.write_text(page.read_text().replace("# API reference", "# Something else"))

    result = CliRunner().invoke(main, ["--check", "--root", str(tmp_path)])

    assert result.exit_code == 1
    assert "-# Something else" in result.output
    assert "make generate" in result.output
    assert page.read_text().startswith("# Something else")


def test_the_check_misses_no_missing_file(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "docs/api.md").unlink()

    assert "docs/api.md" in differences(tmp_path)
