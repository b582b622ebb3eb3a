"""Transfer to detection and segmentation: detectors on the zoo's backbones, their data, training and scores.

Kinds (evaluations/kinds/rcnn.py, detr.py, segmentation.py) hold the settings and the order of events; the rooms here do the work.
transformers, faster-coco-eval and pycocotools are imported where they are used: the extra ``detection``.
"""

from __future__ import annotations

import importlib
from typing import Any

from zoo.errors import UserError


def optional(module: str, what: str) -> Any:
    """A module of the extra ``detection``. Raises UserError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise UserError(f"{what} needs {package}: pip install 'selfzoo[detection]'") from None
