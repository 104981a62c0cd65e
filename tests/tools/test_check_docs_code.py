"""Which lines of the documentation are code, and which of them are too wide."""

import inspect

import check_docs_code
import pytest
from check_docs_code import MAX_WIDTH, ROOT, code_in_markdown, code_in_rst, too_wide

FITS, TOO_WIDE = "x" * MAX_WIDTH, "x" * (MAX_WIDTH + 1)


def written(folder, name, text):
    """A file with the lines of ``text``, in which FITS and TOO_WIDE stand for lines of code."""
    lines = inspect.cleandoc(text).replace("TOO_WIDE", TOO_WIDE).replace("FITS", FITS)
    path = folder / name
    path.write_text(lines + "\n", encoding="utf-8")
    return path


def code(text, read):
    return [line for _, line in read(inspect.cleandoc(text).splitlines()) if line]


@pytest.mark.parametrize("name", ["page.md", "page.rst"])
def test_a_line_of_the_largest_width_passes_and_one_more_character_does_not(name, tmp_path):
    block = {"page.md": "```python\n%s\n```\n", "page.rst": ".. code-block:: python\n\n   %s\n"}[name]
    path = tmp_path / name
    path.write_text(block % FITS, encoding="utf-8")
    assert too_wide(path) == []
    path.write_text(block % TOO_WIDE, encoding="utf-8")
    assert too_wide(path) == [(2 if name == "page.md" else 3, MAX_WIDTH + 1)]


def test_width_counts_characters_and_not_bytes_or_spaces_at_the_end(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("```\n" + "é" * MAX_WIDTH + "   \n```\n", encoding="utf-8")
    assert too_wide(path) == []


def test_a_tab_is_as_wide_as_it_is_shown(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("```\n\t" + "x" * (MAX_WIDTH - 8) + "\n\t" + "x" * (MAX_WIDTH - 7) + "\n```\n", encoding="utf-8")
    assert too_wide(path) == [(3, MAX_WIDTH + 1)]


def test_prose_headings_and_tables_may_be_wide(tmp_path):
    markdown = written(tmp_path, "page.md", "# TOO_WIDE\n\nTOO_WIDE `TOO_WIDE`\n\n| a |\n|---|\n| TOO_WIDE |")
    rst = written(
        tmp_path,
        "page.rst",
        """
        TOO_WIDE ``TOO_WIDE``

        .. list-table:: TOO_WIDE
           :header-rows: 1

           * - TOO_WIDE
             - TOO_WIDE

        .. note:: TOO_WIDE

        .. math::

           TOO_WIDE

        .. TOO_WIDE
           a comment::

               TOO_WIDE
        """,
    )
    assert too_wide(markdown) == too_wide(rst) == []


def test_each_line_of_a_continued_shell_command_counts_for_itself(tmp_path):
    path = written(
        tmp_path,
        "page.rst",
        r"""
        .. code-block:: console

           $ python a_command.py
           $ a command \
                 --with options \
                 --TOO_WIDE

        Prose again: TOO_WIDE
        """,
    )
    assert too_wide(path) == [(6, 6 + 2 + MAX_WIDTH + 1)]


def test_options_of_a_directive_are_not_code_and_its_block_may_have_empty_lines():
    text = """
    .. code-block:: python
       :caption: a caption
       :emphasize-lines: 1, 2

       first = 1

       if first:
           second = 2

    prose
    """
    assert code(text, code_in_rst) == ["first = 1", "if first:", "    second = 2"]


def test_blocks_are_found_at_any_depth_and_lose_only_their_own_indentation():
    text = """
    - An item

      .. code-block:: python

         if a:
             b

      prose in the item::

         c
          d

      prose

      1. .. code:: bash

            e

    .. note::

       prose

       .. sourcecode:: python

          f

    prose
    """
    assert code(text, code_in_rst) == ["if a:", "    b", "c", " d", "e", "f"]


def test_literal_blocks_follow_two_colons_at_the_end_of_a_paragraph():
    text = """
    A paragraph::

        a::

            b

    ::

      c

    A paragraph that goes on after two::
    colons is prose.

       A quotation.

    An item of a list follows::

       d
    """
    assert code(text, code_in_rst) == ["a::", "    b", "c", "d"]


def test_doctests_are_code_up_to_the_next_empty_line():
    text = """
    prose

       >>> a = f(
       ...     1)
       2

    >>> b

    prose >>> prose
    """
    assert code(text, code_in_rst) == [">>> a = f(", "...     1)", "2", ">>> b"]


def test_code_in_markdown_is_what_is_between_fences_of_one_kind():
    text = """
    ```text``` is not a fence

    ```python
    a
    ~~~
    ```

    - item

      ~~~~bash
      b
        c
      ~~~
      ~~~~

    ````
    ```
    ````
    prose
    """
    assert code(text, code_in_markdown) == ["a", "~~~", "b", "  c", "~~~", "```"]


def test_the_command_names_file_and_line_and_fails(tmp_path, capsys):
    good = written(tmp_path, "good.md", "```\nFITS\n```")
    bad = written(tmp_path, "bad.md", "prose\n\n```\nFITS\nTOO_WIDE\n```")
    assert check_docs_code.main([str(good)]) == 0
    assert capsys.readouterr().err == ""
    assert check_docs_code.main([str(good), str(bad)]) == 1
    assert capsys.readouterr().err == f"{bad}:5: code of 80 characters; at most 79 are allowed\n"


def test_without_files_it_checks_the_readme_and_every_page_of_the_guide(monkeypatch):
    checked = []
    monkeypatch.setattr(check_docs_code, "too_wide", lambda path: checked.append(path) or [])
    assert check_docs_code.main([]) == 0
    pages = {path.name for path in checked}
    assert {"README.md", "CONTRIBUTING.md", "index.rst", "method.rst"} <= pages
    assert all(path.is_relative_to(ROOT) for path in checked)
