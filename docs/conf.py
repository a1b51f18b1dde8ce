"""Settings of the documentation: ``sphinx-build docs docs/build/html``."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

from crysxpp_mm import __version__

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "crysxpp_mm"
author = "crysxpp_mm developers"
project_copyright = "crysxpp_mm developers, MIT licence"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["build", "**-log.md"]

html_theme = "pydata_sphinx_theme"
html_title = "crysxpp_mm"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": {  # wide tables get its room
        name: ["page-toc"]
        for name in ("index", "faq", "api/**", "concepts/**", "how-to/**", "tutorials/**")
    },
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_execution_cache_path = str(HERE / "build" / "cache")
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autoclass_content = "class"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True


# Pages that live elsewhere in the repository are copied into folders that git ignores.


def gather(pattern: str, folder: str, name: str = "{0.name}") -> None:
    """Copy files into a folder of the site, with their times, so that Sphinx sees what changed.

    Args:
        pattern: Of the files, from the root of the repository.
        folder: Below ``docs``.
        name: Of a copy; ``{0}`` is the path of the file.
    """
    (HERE / folder).mkdir(exist_ok=True)
    for source in sorted(ROOT.glob(pattern)):
        shutil.copy2(source, HERE / folder / name.format(source))


for gathered in ("tutorials", "models", "results"):
    shutil.rmtree(HERE / gathered, ignore_errors=True)
gather("notebooks/*.ipynb", "tutorials")
gather("pretrained/*/README.md", "models", "{0.parent.name}.md")
gather("crysxpp_mm/benchmarks/results/[!r]*.md", "results")  # reliability.md lies in docs
gather("crysxpp_mm/benchmarks/results/*.png", "results")


# Links into other projects, where their lists of names can be reached.

PROJECTS = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "sklearn": "https://scikit-learn.org/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "pymatgen": "https://pymatgen.org/",
    "matminer": "https://hackingmaterials.lbl.gov/matminer/",
}


def reachable(projects: dict[str, str], folder: Path) -> dict[str, tuple[str, str]]:
    """Fetch the lists of names of other projects; one that cannot be had is left out, and named."""
    found = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, address in projects.items():
        copy = folder / f"{name}.inv"
        try:
            if not copy.exists():
                with urllib.request.urlopen(f"{address}objects.inv", timeout=5) as answer:
                    content = answer.read()
                if not content.startswith(b"# Sphinx inventory version 2"):
                    raise ValueError(f"{address}objects.inv is not an inventory")
                copy.write_bytes(content)
            found[name] = (address, str(copy))
        except (OSError, ValueError) as error:
            logging.getLogger(__name__).info("no links into %s: %s", name, error)
    return found


intersphinx_mapping = reachable(PROJECTS, HERE / "build" / ".inventories")


def skip_foreign(_app: Any, _what: str, _name: str, item: Any, skip: bool, _options: Any) -> bool:
    """Leave out what scikit-learn, matminer or torch documents; their own sites have it."""
    home = getattr(item, "__module__", None) or ""
    return skip or (callable(item) and not home.startswith("crysxpp_mm"))


def setup(app: Sphinx) -> None:
    """Hand the hooks of this file to Sphinx."""
    app.connect("autodoc-skip-member", skip_foreign)
