"""A directive that runs the commands of a lesson at build time, and shows them with what they print.

::

    .. transcript::
       :picture: maps/dent_map.png
       :alt: what the picture shows
       :offers: today.html

       skpbas predict part.skpbas parts/today --maps maps

Before the commands, the Python blocks of the page run that stand above them. All of a page runs in one folder, below
``_generated``, which is kept: a build runs only what is new, or all of it after a change of the package. With
``-D plot_gallery=0``, which leaves out the gallery too, nothing runs and the commands are shown alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

import skpbas

_PACKAGE = Path(skpbas.__file__).parent


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("transcript", Transcript)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Transcript(SphinxDirective):
    """Commands of ``skpbas``, a line each; with the picture that they drew, and a file to open."""

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "picture": directives.unchanged,
        "alt": directives.unchanged,
        "offers": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Return a block of text for the commands, and the nodes of its picture and file."""
        self.env.note_reread()  # the package, or whether to run, may be another in the next build
        commands = [line for line in self.content if line.strip()]
        runs = str(self.config.plot_gallery) not in ("0", "False")
        printed = self._printed(commands) if runs else dict.fromkeys(commands, "")
        text = "\n".join(f"$ {command}\n{printed[command]}".rstrip() for command in commands)
        block = nodes.literal_block(text, text, language="console", classes=["transcript"])
        return [block, *(self._results() if runs else [])]

    @property
    def folder(self) -> Path:
        return Path(self.env.srcdir, Path(self.env.docname).parent, "_generated", Path(self.env.docname).name)

    def _printed(self, commands: list[str]) -> dict[str, str]:
        blocks = [
            node.astext()
            for node in self.state.document.findall(nodes.literal_block)
            if node.get("language") == "python" and not node.get("ran")
        ]
        steps = [("python", block) for block in blocks] + [("skpbas", command) for command in commands]
        for node in self.state.document.findall(nodes.literal_block):
            node["ran"] = True
        before: list[str] = self.env.temp_data.setdefault("transcript", [_digest_of_package()])
        outputs = [self._output(kind, text, before) for kind, text in steps]
        return dict(zip(commands, outputs[len(blocks) :], strict=True))

    def _output(self, kind: str, text: str, before: list[str]) -> str:
        """Return what a step prints: from the last build, if the same steps stand before it."""
        if len(before) == 1:
            self.folder.mkdir(parents=True, exist_ok=True)
        before.append(text)
        key = hashlib.sha256(json.dumps(before).encode()).hexdigest()
        record = self.folder / "transcript.json"
        known = json.loads(record.read_text("utf-8")) if record.exists() else {}
        if key not in known:
            if len(before) == 2:  # another lesson, or another package: from an empty folder
                shutil.rmtree(self.folder)
                self.folder.mkdir()
                known = {}
            known[key] = _run(kind, text, self.folder)
            record.write_text(json.dumps(known, indent=1), "utf-8")
        return str(known[key])

    def _results(self) -> list[nodes.Node]:
        place = f"_generated/{Path(self.env.docname).name}/"
        found: list[nodes.Node] = []
        if "picture" in self.options:
            found.append(
                nodes.image(
                    uri=place + self.options["picture"], alt=self.options.get("alt", ""), width="240px", align="center"
                )
            )
        if "offers" in self.options:
            name = self.options["offers"]
            link = addnodes.download_reference(
                "", "", nodes.literal("", name), reftarget=place + name, refdoc=self.env.docname
            )
            found.append(nodes.paragraph("", "", nodes.Text("The file that it wrote: "), link))
        return found


def _run(kind: str, text: str, folder: Path) -> str:
    arguments = ["-c", text] if kind == "python" else ["-m", *shlex.split(text)]
    path = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise ExtensionError(f"{text}\nended with {done.returncode}:\n{done.stdout}")
    return done.stdout.rstrip()


def _digest_of_package() -> str:
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
