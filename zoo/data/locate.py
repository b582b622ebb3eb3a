"""Location of a data set's files: given, below SELFZOO_DATA, in a system folder, downloaded; or an error that lists what was tried."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from ..errors import UserError
from ..files import exclusive, whole
from .paths import user_cache
from .scenes import VERSION
from .specs import DatasetSpec, SplitRule


class DataMissing(UserError):
    """No data found; the message lists every place that was tried and the next step."""


class PartMissing(DataMissing):
    """The data set is there, but not this part of it."""


def find(spec: DatasetSpec, root: str | Path | None = None, fetch: bool = True) -> Path | None:
    """The folder of the data set; None for one that comes with an installed package.

    A folder that was named must be there: nothing else is tried instead.  ``fetch`` False: no download, and no folder
    that has yet to be made (composed scenes are made by ``open_source``).
    """
    if spec.embedded:
        if root is not None:
            raise UserError(f"{spec.name}: {spec.prepare}; it is not read from a folder, leave out data={root}")
        return None
    if root is not None:
        given = Path(root).expanduser()
        if not given.is_dir():
            what = "is a file, not a folder" if given.exists() else "does not exist"
            raise DataMissing(f"{spec.name}: data={given} {what}. Next: {spec.prepare}")
        return given
    tried = ["data=PATH (not given)"]
    home = os.environ.get("SELFZOO_DATA")
    below = Path(home).expanduser() / spec.name if home else None
    tried.append(f"SELFZOO_DATA/{spec.name} " + (f"({below} is no folder)" if below else "(SELFZOO_DATA is not set)"))
    candidates = [below] if below else []
    for folder in spec.folders:
        candidates.append(Path(folder))
        tried.append(f"{folder} (is no folder)")
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    if spec.made and (fetch or (scenes(spec) / "scenes.json").is_file()):
        return scenes(spec)
    target = user_cache() / "data" / spec.name
    if spec.download and not fetch:
        if (target / ".complete").exists():
            return target
        tried.append("a download is possible, and was not asked for")
    elif spec.download:
        try:
            return downloaded(spec, target)
        except Exception as error:  # noqa: BLE001  torchvision lets urllib, ssl, tarfile and its own errors through
            reason = " ".join(str(error).split()) or type(error).__name__
            tried.append(f"download through torchvision to {target} ({reason})")
    raise DataMissing(f"{spec.name}: no data found. Tried: {'; '.join(tried)}. Next: {spec.prepare}")


def scenes(spec: DatasetSpec) -> Path:
    """Where composed scenes are kept, made or not yet."""
    return user_cache() / "data" / f"scenes_{spec.options['items']}_{spec.options['format']}_v{VERSION}"


def present(spec: DatasetSpec) -> str:
    """One word on where the set is: embedded, found, download, made on use, or missing."""
    home = os.environ.get("SELFZOO_DATA")
    places = [Path(home).expanduser() / spec.name] if home else []
    if spec.embedded:
        return "embedded"
    if any(p.is_dir() for p in [*places, *map(Path, spec.folders), user_cache() / "data" / spec.name]):
        return "found"
    return "made on use" if spec.made else "download" if spec.download else "-"


def downloaded(spec: DatasetSpec, folder: Path) -> Path:
    """``folder``, filled by torchvision unless an earlier download finished there (a file ``.complete`` says so)."""
    done = folder / ".complete"
    if done.exists():
        return folder
    from .arrays import download_torchvision

    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock"):
        if not done.exists():
            print(f"{spec.name}: downloading to {folder}", file=sys.stderr, flush=True)
            download_torchvision(spec, folder)
            done.touch()
    return folder


def published_list(spec: DatasetSpec, rule: SplitRule, folder: Path | None, fetch: bool = True) -> Path:
    """A published list of file names: beside the data, or downloaded once; refused when its hash is another one."""
    name = str(rule.names)
    kept = user_cache() / "lists" / name
    path = next((p for p in ([folder / name] if folder else []) + [kept] if p.is_file()), None)
    if path is None:
        if rule.url is None or not fetch:
            raise DataMissing(f"{spec.name}: {name} is not in {folder}" + (f"; get {rule.url}" if rule.url else ""))
        from urllib.request import urlopen

        try:
            with urlopen(rule.url, timeout=30) as answer:
                content = answer.read()
        except OSError as error:
            raise DataMissing(
                f"{spec.name}: {name} is neither in {folder} nor in {kept.parent}, and {rule.url} cannot be read ({error});"
                " put the file into one of the two folders"
            ) from None
        _verify(content, rule, rule.url)
        with whole(kept) as part:
            part.write_bytes(content)
        return kept
    _verify(path.read_bytes(), rule, str(path))
    return path


def _verify(content: bytes, rule: SplitRule, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != rule.sha256:
        raise UserError(
            f"{where}: sha256 is {found[:16]}…, the published list has {str(rule.sha256)[:16]}…; delete the file"
        )
