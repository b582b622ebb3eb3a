"""The site: static pages of the zoo, its methods, protocols, tables and figures, that need neither a server nor the internet.

``pages`` renders everything to text, ``write`` puts it into a folder. The same registry, records and library versions give
the same bytes. Templates are Jinja2 files in ``templates/``; what they show is collected in ``content.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..pages import write_text
from ..published import Catalogue
from ..store import RecordStore
from .content import Content

TEMPLATES = Path(__file__).parent / "templates"


def pages(store: RecordStore, catalogue: Catalogue) -> dict[str, str]:
    """Path inside the site -> text of every file."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = Content(store, catalogue)
    found: dict[str, str] = {name: (TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "site.js")}

    def page(path: str, template: str, **values: object) -> None:
        root = "../" * path.count("/")
        found[path] = templates.get_template(template).render(content=content, root=root, path=path, **values)

    found |= {f"figure/{name}": svg for name, svg in content.figures.items()}
    page("index.html", "index.html")
    page("zoo.html", "zoo.html")
    page("methods.html", "methods.html")
    page("protocols.html", "protocols.html")
    page("tables.html", "tables.html")
    for model in content.models:
        page(f"model/{model.id}.html", "model.html", model=model)
    for method in content.methods:
        page(f"method/{method.id}.html", "method.html", method=method)
    for protocol in content.protocols:
        page(f"protocol/{protocol.id}.html", "protocol.html", protocol=protocol)
    for built in content.tables:
        page(f"table/{built.table.id}.html", "table.html", table=content.table(built))
    return found


def write(roots: Sequence[Path], folder: Path) -> Path:
    """Write the site into ``folder``; returns its front page."""
    for name, text in pages(RecordStore(roots), Catalogue()).items():
        write_text(folder / name, text)
    return folder / "index.html"
