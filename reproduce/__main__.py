"""python -m reproduce ID [path=value …] [--plan], or labels RUN --to FILE: see `python -m reproduce --help`."""
import contextlib
import io
import os
import sys

from zoo.errors import guard

if __name__ == "__main__":
    if sys.argv[1:2] == ["labels"]:
        from reproduce import labels

        sys.exit(guard(lambda: labels.main(sys.argv[2:])))
    from reproduce.launch import main

    # Under torchrun every process meets the same error; one of them says it.
    first = int(os.environ.get("RANK", "0")) == 0
    with contextlib.nullcontext() if first else contextlib.redirect_stderr(io.StringIO()):
        status = guard(main)
    sys.exit(status)
