"""The two optional C extensions; everything else about the project is in pyproject.toml.

With a C compiler the build gives an abi3 wheel for CPython 3.11 and later, without one a pure-Python wheel,
and each is tagged as what it is. Environment variables:

- `MMWAL_REQUIRE_EXTENSION=1`: an extension that cannot be built fails the build.
- `MMWAL_PURE=1`: build no extension, even where a compiler exists.
- `MMWAL_STRICT=1`: compiler warnings are errors. For our own checks: a user's newer compiler must not break
  an installation.
"""

import os
import shutil
import sysconfig
import tempfile
from atexit import register as at_exit
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def switched_on(name: str) -> bool:
    """Tell whether an environment variable is set to something other than 0."""
    return os.environ.get(name, "") not in ("", "0")


PURE = switched_on("MMWAL_PURE")
REQUIRED = switched_on("MMWAL_REQUIRE_EXTENSION")
STRICT = switched_on("MMWAL_STRICT")
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no limited API before 3.15

if PURE and REQUIRED:
    raise SystemExit("MMWAL_PURE=1 and MMWAL_REQUIRE_EXTENSION=1 contradict each other: unset one")

COMPILE_ARGS = [
    "-O3",
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-fno-strict-aliasing",
    "-fstack-protector-strong",
    "-U_FORTIFY_SOURCE",  # some distributions predefine it; defining it twice is a warning
    "-D_FORTIFY_SOURCE=2",
    *(["-Werror"] if STRICT else []),
]


def extension(name: str) -> Extension:
    """Describe the extension `name`, whose C source lies at the module's own place in the tree."""
    source = Path(*name.split(".")).with_suffix(".c")
    return Extension(
        name,
        sources=[source.as_posix()],
        depends=[header.as_posix() for header in sorted(source.parent.glob("*.h"))],
        define_macros=[] if FREE_THREADED else [("Py_LIMITED_API", "0x030B0000")],
        py_limited_api=not FREE_THREADED,
        extra_compile_args=COMPILE_ARGS,
        optional=not REQUIRED,
    )


class BuildExtensions(build_ext):
    """Build the extensions; one left by an earlier in-place build must not pass for this build's."""

    def run(self) -> None:
        if self.inplace or self.editable_mode:
            for extension in self.extensions:
                source = Path(extension.sources[0])
                for stale in source.parent.glob(f"{source.stem}.*.so"):
                    stale.unlink()
        if PURE:
            self.extensions = []
        super().run()


class Wheel(bdist_wheel):
    """Tag the wheel as pure when it turned out to hold no extension."""

    def run(self) -> None:
        self.run_command("build")
        outputs = self.get_finalized_command("build_ext").get_outputs()
        if not any(Path(output).exists() for output in outputs):
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()


# A build directory of its own for every run: files left in build/ by an earlier one would get into the wheel.
build_base = tempfile.mkdtemp(prefix="mmwal-build-")
at_exit(shutil.rmtree, build_base, ignore_errors=True)

setup(
    ext_modules=[extension("mmwal.kernel._kernel"), extension("mmwal.disk._sync")],
    cmdclass={"build_ext": BuildExtensions, "bdist_wheel": Wheel},
    options={
        "build": {"build_base": build_base},
        "bdist_wheel": {} if FREE_THREADED else {"py_limited_api": "cp311"},
    },
)
