"""The page of a ranking: one HTML file that needs neither a server nor the internet, and the numbers beside it as JSON.

It shows the table, the intervals as a figure, and for the first models what their features call similar: some images, and the
nearest other images of each. Pictures are part of the file.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from engine import checkpoint, rng
from engine.maths.knn import search
from zoo.errors import UserError

from .inputs.features import FeatureRequest, layers_of, pool_of
from .measure import Measurement, Settings, say
from .rank import LABELLED, QUALITY, Ranking, Row

TEMPLATE = Path(__file__).with_name("rank_page.html")
SHOWN = 6  # models with a montage
QUERIES, NEAREST, TILE = 8, 7, 56  # rows and columns of a montage, pixels of a tile
SAME, OTHER = (22, 118, 74), (179, 38, 30)  # frames: of the query's class, of another


def write(ranking: Ranking, folder: Path, settings: Settings) -> Path:
    """index.html and rank.json in ``folder``; returns the page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(folder / "rank.json", json.dumps(numbers(ranking), indent=1) + "\n")
    pictures: list[tuple[Row, str]] = []
    for row in ranking.rows[:SHOWN]:
        try:
            pictures.append((row, embedded(montage(ranking, row, settings))))
        except UserError as error:  # the images changed meanwhile, a disk is full: the table stands
            say(f"{row.place}: no montage: {error}")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        ranking=ranking,
        columns=columns(ranking),
        cells={row.place: cells(ranking, row) for row in ranking.rows},
        figure=Markup(figure(ranking)) if ranking.labelled else "",
        pictures=pictures,
        queries=QUERIES,
        nearest=NEAREST,
    )
    target = folder / "index.html"
    checkpoint.write_text(target, page)
    return target


def numbers(ranking: Ranking) -> dict[str, Any]:
    """Everything that the page shows, as plain values."""
    rows = [
        {
            "model": row.place,
            "rank": row.rank or None,
            "cost": asdict(row.cost),
            "measured": {
                protocol: {
                    name: {"value": m.value, "interval": m.ci, "sd": m.sd}
                    for name, m in record.metrics.items()
                    if m.style == "honest"
                }
                for protocol, record in row.found.items()
            },
        }
        for row in ranking.rows
    ]
    return {"folder": ranking.folder, "ranked_by": ranking.by or None, "models": rows, "left_out": ranking.refused}


def columns(ranking: Ranking) -> list[str]:
    own = ["kNN, %", "ridge, %", "k-means, ANMI"] if ranking.labelled else list(QUALITY)
    return [*own, "ms/image", "parameters", "features"]


def cells(ranking: Ranking, row: Row) -> list[str]:
    """Texts of a row, one for each column."""
    if ranking.labelled:
        metrics = [row.metric(LABELLED[n], m) for n, m in (("knn", "top1"), ("ridge", "top1"), ("clusters", "anmi"))]
    else:
        metrics = [row.metric("quality_folder", name) for name in QUALITY]
    digits = 1 if ranking.labelled else 3
    shown = []
    for metric in metrics:
        if metric is None:
            shown.append("–")
            continue
        low, high = metric.ci or (None, None)
        spread = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
        shown.append(f"{metric.value:.{digits}f}{spread}")
    return [*shown, f"{row.cost.milliseconds:.2f}", f"{row.cost.parameters:,}", f"{row.cost.width:,}"]


def figure(ranking: Ranking) -> str:
    """SVG: kNN and ridge of each model with their 95 % intervals, best at the top."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.hashsalt": "selfzoo", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    ):
        drawn = Figure(figsize=(7.5, 0.9 + 0.32 * len(ranking.rows)), layout="constrained")
        panel = drawn.add_subplot()
        for shift, protocol, colour, title in (
            (-0.14, "knn", "#1666b0", "kNN"),
            (0.14, "ridge", "#b45f06", "ridge regression"),
        ):
            for at, row in enumerate(ranking.rows):
                metric = row.found[LABELLED[protocol]].metrics["top1"]
                low, high = metric.ci or (metric.value, metric.value)
                panel.plot([low, high], [at + shift] * 2, color=colour, linewidth=1.5)
                panel.plot(
                    [metric.value], [at + shift], "o", color=colour, markersize=4, label=title if not at else None
                )
        panel.set_yticks(range(len(ranking.rows)), [f"{row.rank}. {short(row.place)}" for row in ranking.rows])
        panel.set_ylim(len(ranking.rows) - 0.4, -0.6)
        panel.set_xlabel("images of the held-out part that are right, % (95 % interval)")
        panel.grid(axis="x", color="#e3e7eb")
        panel.legend(fontsize=8, loc="best")
        file = io.StringIO()
        drawn.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def short(place: str) -> str:
    return place if len(place) <= 44 else f"…{place[-43:]}"


def montage(ranking: Ranking, row: Row, settings: Settings) -> Image.Image:
    """Some images and the nearest others of each by the features of a model; frames tell whether the class is the same."""
    settings = replace(settings, overrides={**row.resized, **settings.overrides})
    measurement = Measurement.of(ranking.by or "quality_folder", row.place, settings)
    layer = layers_of(measurement.protocol, measurement.model)[0]
    splits = measurement.protocol.splits
    asked, bank = (
        FeatureRequest(split, layer, pool_of(measurement.protocol, layer)) for split in (splits.test, splits.train)
    )
    queries, shown = measurement.source(splits.test), measurement.source(splits.train)
    chosen = np.sort(rng.permutation(0, "queries of a montage", 0, len(queries))[:QUERIES])
    alone = int(splits.test == splits.train)
    count = min(NEAREST + alone, len(shown))
    _, index = search(measurement.get(bank), np.asarray(measurement.get(asked)[chosen]), count)
    sheet = Image.new("RGB", (TILE * (NEAREST + 1) + 8, TILE * len(chosen)), "white")
    for line, (query, near) in enumerate(zip(chosen.tolist(), index.tolist(), strict=True)):
        sheet.paste(tile(queries.image(query)), (0, line * TILE))
        for place, i in enumerate([i for i in near if not alone or i != query][:NEAREST]):
            same = bool(shown.labels[i] == queries.labels[query]) if ranking.labelled else None
            sheet.paste(tile(shown.image(i), same), (8 + (place + 1) * TILE, line * TILE))
    return sheet


def tile(image: Image.Image, same: bool | None = None) -> Image.Image:
    """A square of TILE pixels; framed where it is known whether the class is the same."""
    image = ImageOps.fit(image.convert("RGB"), (TILE - 6, TILE - 6))
    return ImageOps.expand(image, 3, "white" if same is None else SAME if same else OTHER)


def embedded(picture: Image.Image) -> str:
    """A picture as the source of an <img>: WebP would be smaller, JPEG is read everywhere."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
