"""C++ that is compiled at first use, for this machine, and kept in mintage's cache.

`ATEN_CPU_CAPABILITY`, which limits what torch uses of a processor, limits what is compiled for, too.

Not here: what is computed (whoever brings the source).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from mintage.errors import UserError
from mintage.files import cache_dir, replace_file
from mintage.processor import processor_features

__all__ = ["Native"]

_FLAGS = ("-std=c++17", "-shared", "-fPIC", "-march=native")
"""Not ``-ffast-math``: linking with it makes the whole process flush small numbers to zero."""

_LIMITS = {"default": ("-mno-avx",), "avx2": ("-mno-avx512f",)}


class Native:
    """A library made from one C++ file.

    Parameters
    ----------
    source
        The file.
    instead
        What happens without it; ends the warning of `available`.
    flags
        Of the compiler, beside the usual ones.
    """

    def __init__(self, source: Path, instead: str, flags: tuple[str, ...] = ("-O2",)) -> None:
        self.source, self.instead = source, instead
        self.flags = (*_FLAGS, *flags, *_LIMITS.get(os.environ.get("ATEN_CPU_CAPABILITY", ""), ()))

    @cached_property
    def available(self) -> bool:
        """Whether there is a library, compiled now if need be; says once why not."""
        try:
            self.library  # noqa: B018
        except UserError as error:
            warnings.warn(f"{error}; {self.instead}", stacklevel=2)
            return False
        return True

    @cached_property
    def library(self) -> ctypes.CDLL:
        """The library, from the cache or compiled now.

        Raises
        ------
        UserError
            There is no compiler, it fails, or the file in the cache is damaged or another user's.
        """
        path = self._path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                self._compile(path)
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            raise UserError(f"{path} belongs to another user, and loading it would run their code; set MINTAGE_CACHE")
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise UserError(f"{path} is damaged ({error}); delete it to compile again") from None

    @property
    def name(self) -> str:
        """What tells the library from others: a digest of its source, the compiler and this machine's instructions."""
        return self._path().stem

    def _path(self) -> Path:
        digest = hashlib.blake2b(self.source.read_bytes(), digest_size=16)
        made_for = (self.flags, _compiler(), platform.machine(), platform.processor(), processor_features())
        digest.update(repr(made_for).encode())
        return cache_dir() / "kernels" / f"{digest.hexdigest()}.so"

    def _compile(self, path: Path) -> None:
        compiler = _compiler()
        if shutil.which(compiler) is None:
            raise UserError(f"the compiled kernel needs a C++ compiler, and {compiler!r} is not on PATH; set CXX")
        with replace_file(path) as temporary:
            for threads in (["-fopenmp"], []):  # some compilers come without OpenMP
                command = [compiler, *self.flags, *threads, str(self.source), "-o", str(temporary)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    return
            reason = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise UserError(f"{compiler!r} cannot compile the kernel ({reason}); set CXX to another compiler")


def _compiler() -> str:
    return os.environ.get("CXX", "g++")
