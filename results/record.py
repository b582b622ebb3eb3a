"""One measured result as one typed JSON file: ``<root>/<model>/<protocol>--<key>.json``.

A record says what was measured (model, protocol, metrics), on what (hashes of weights and data), how it was chosen
(selection, number of reads of the test split) and how to do it again (commands, versions, hardware). Its key is the
hash of weights, data, protocol@version, overrides and evaluation seed: the same key is the same measurement.

This module imports nothing of the project.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

SCHEMA = 1
COMMITTED = Path(__file__).resolve().parent / "measured"
"""Records of the project's own models, in git."""
LOCAL = Path("runs") / "measured"
"""Records of a user's models; evaluations write to ``<out>/measured``."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class RecordError(Exception):
    """A record that cannot be read or written; the message names the file, the field and the next step."""

    user_error = True


@dataclass(frozen=True, config=_STRICT)
class Metric:
    """One number with what is needed to believe it. Rates are in percent (0..100)."""

    value: float
    n: int | None = Field(default=None, ge=1)  # samples scored (images of the test split)
    sd: float | None = Field(default=None, ge=0)  # sample standard deviation over per_seed, else over per_fold
    ci: tuple[float, float] | None = None  # 95 % interval of value given n samples
    per_fold: tuple[float, ...] | None = None  # scores on the folds used for selection
    per_seed: tuple[float, ...] | None = None  # one value per seed of the evaluation (heads, k-means, subsets)
    style: Literal["honest", "paper"] = "honest"  # "paper": as papers print it (best epoch on test), never ranked
    note: str | None = None  # what a reader of the label must know, e.g. "best epoch on test"

    @classmethod
    def over_seeds(cls, values: Sequence[float], **fields: Any) -> Metric:
        """The mean of one value per evaluation seed, with its sample standard deviation (None for one seed)."""
        kept = tuple(float(v) for v in values)
        spread = statistics.stdev(kept) if len(kept) > 1 else None
        return cls(value=statistics.fmean(kept), sd=spread, per_seed=kept, **fields)


def interval(percent: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson 95 % interval, in percent, of a rate of ``percent`` over ``n`` samples."""
    p = percent / 100
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * (centre - half), 100 * (centre + half)


def around(percent: float, error: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval, in percent, of a score with standard error ``error``: for what is not a rate of independent samples.
    It ends at -100 and 100, and has no width where the error is zero, as at a perfect score."""
    return max(percent - z * error, -100.0), min(percent + z * error, 100.0)


@dataclass(frozen=True, config=_STRICT)
class Selection:
    """How hyper-parameters were chosen. ``grid`` or ``file`` keeps every candidate with its score."""

    on: str  # the only images selection saw: "folds of train", "val"
    metric: str
    chosen: dict[str, Any]
    score: float | None = None
    grid: Any = None
    file: str | None = None  # path below results/selection/, for grids too large to sit here


@dataclass(frozen=True, config=_STRICT)
class Git:
    commit: str | None
    dirty: bool = False


@dataclass(frozen=True, config=_STRICT)
class Provenance:
    git: Git
    libraries: dict[str, str]
    hardware: dict[str, Any]
    threads: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0)]
    peak_memory: Count | None = None  # bytes


@dataclass(frozen=True, config=_STRICT)
class Record:
    """Fields in the order of a reader's questions; see the module docstring for ``key``."""

    schema: int
    model: str
    pretrain_seed: int | None  # None: released weights, or a file of unknown origin
    protocol: str
    version: int
    form: Literal["faithful", "fast"]
    command: str
    pretrain_command: str | None  # None: weights that were not trained by this project
    metrics: Annotated[dict[str, Metric], Field(min_length=1)]
    selection: Selection | None
    test_reads: Count
    data_fingerprint: str
    weights_sha256: Hash
    predictions_sha256: Hash | None
    provenance: Provenance
    overrides: dict[str, Any] = Field(default_factory=dict)
    evaluation_seed: int = 0
    transductive: bool = False  # pre-training saw the test images, without their labels

    input: dict[str, Any] | None = None  # mean and std that were assumed for a weight file that does not say its own

    @field_validator("schema")
    @classmethod
    def _known_schema(cls, value: int) -> int:
        if value != SCHEMA:
            raise ValueError(f"this version reads schema {SCHEMA}, the file has {value}; measure again")
        return value

    @field_validator("model", "protocol")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or "--" in value:
            raise ValueError("a name of letters, digits, '.', '_' and '-' without '--' (see results.record.slug)")
        return value

    @property
    def key(self) -> str:
        return key(
            weights_sha256=self.weights_sha256,
            data_fingerprint=self.data_fingerprint,
            protocol=self.protocol,
            version=self.version,
            overrides=self.overrides,
            evaluation_seed=self.evaluation_seed,
        )

    @property
    def question(self) -> tuple[object, ...]:
        """What was asked, whoever answers it: model, seed, protocol, overrides and evaluation seed."""
        return (self.model, self.pretrain_seed, self.protocol, _canonical(self.overrides), self.evaluation_seed)

    @property
    def unnamed_weights(self) -> str:
        """The hash of weights that no command of this project makes again; empty where one does."""
        return "" if self.pretrain_command else self.weights_sha256

    @property
    def identity(self) -> tuple[object, ...]:
        """What a newer record replaces: an answer to the same question on the same data, by the same weights where no
        pre-training command stands for them."""
        return (*self.question, self.data_fingerprint, self.unnamed_weights)

    @property
    def filename(self) -> Path:
        return Path(self.model) / f"{self.protocol}--{self.key}.json"


_RECORD: TypeAdapter[Record] = TypeAdapter(Record)


def slug(text: str) -> str:
    """A model name for a path: ``runs/a/b.pth`` -> ``runs-a-b.pth``."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._") or "model"


def key(
    *,
    weights_sha256: str,
    data_fingerprint: str,
    protocol: str,
    version: int,
    overrides: Mapping[str, Any] | None = None,
    evaluation_seed: int = 0,
) -> str:
    """12 hex digits naming one measurement; known before it is run, so that nothing is measured twice."""
    parts = [weights_sha256, data_fingerprint, f"{protocol}@{version}", dict(overrides or {}), evaluation_seed]
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()[:12]


def find(root: Path | str, model: str, protocol: str, key: str) -> Path | None:
    """The file that already holds this measurement, or None."""
    path = Path(root) / model / f"{protocol}--{key}.json"
    return path if path.is_file() else None


def files(root: Path | str) -> Iterator[Path]:
    """Every record file below a root, sorted; an absent root has none."""
    yield from sorted(p for p in Path(root).glob("*/*.json") if not p.name.startswith("."))


def dumps(record: Record) -> str:
    """Sorted, indented JSON that ends with a newline: equal records are equal bytes."""
    tree = asdict(record)
    if tree["input"] is None:  # of nearly every model
        del tree["input"]
    return _json(tree, indent=1) + "\n"


def write(record: Record, root: Path | str = LOCAL, *, force: bool = False) -> Path:
    """Store a record whole or not at all, and drop the older ones it replaces (see ``Record.identity``).

    The same key again changes nothing (``find`` tells beforehand) unless ``force``.
    """
    path = Path(root) / record.filename
    if path.is_file() and not force:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    replaced = [
        p for p in _same_protocol(path.parent, record.protocol) if p != path and _identity(p) == record.identity
    ]
    text = dumps(record)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    for old in replaced:
        old.unlink(missing_ok=True)
    return path


def read(path: Path | str) -> Record:
    """The record in a file; RecordError names the file, the field, its value and what to do."""
    path = Path(path)
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise RecordError(f"{path}: no such record; `python -m results show` lists those there are") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error}); remove it and measure again") from None


def parse(text: str, place: str) -> Record:
    """A record from its JSON text; ``place`` is named in errors. Types are not coerced: "75" is no number."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{place}: line {error.lineno}: not JSON ({error.msg}); remove it and measure again"
        ) from None
    if not isinstance(tree, dict):
        raise RecordError(f"{place}: a record is a JSON object, this is {type(tree).__name__}; measure again")
    try:
        return _RECORD.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "record"
        absent = first["type"] in ("missing", "unexpected_keyword_argument")
        said = "" if absent else f" (got {str(first['input'])[:80]!r})"
        more = f" and {error.error_count() - 1} more" if error.error_count() > 1 else ""
        command = tree.get("command")
        again = f"run it again: {command}" if isinstance(command, str) else "measure again"
        raise RecordError(f"{place}: {field}: {first['msg']}{said}{more}; {again}") from None


def _canonical(value: Any) -> str:
    return _json(value, separators=(",", ":"))


def _json(value: Any, **style: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, **style)
    except (TypeError, ValueError) as error:
        raise RecordError(f"selection, overrides and hardware must be plain finite JSON values: {error}") from None


def _same_protocol(folder: Path, protocol: str) -> Iterator[Path]:
    yield from (p for p in folder.glob("*.json") if p.name.partition("--")[0] == protocol)


def _identity(path: Path) -> tuple[object, ...] | None:
    """None for a file that is no record: it is left for `python -m results show` to report."""
    try:
        return read(path).identity
    except RecordError:
        return None
