"""torch.hub: every model of the zoo by its id, and under the authors' own hub names.

    model = torch.hub.load("<owner>/<repository>", "swav_800ep", trust_repo=True)

The package is loaded under a private name, so that a caller's own modules named zoo, utils, models, results or src stay
his, and so that two checkouts can live in one process.
"""

dependencies = ["torch", "torchvision", "filelock", "numpy", "PIL", "pydantic", "requests", "tqdm", "yaml"]


def _package():  # type: ignore[no-untyped-def]
    import hashlib
    import importlib.util
    import sys
    from pathlib import Path

    folder = Path(__file__).resolve().parent / "zoo"
    name = "_selfzoo_hub_" + hashlib.sha256(str(folder).encode()).hexdigest()[:10]
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module(name + ".hub")


globals().update(_package().functions())
