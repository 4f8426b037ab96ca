"""Compiled modules. All metadata lives in pyproject.toml.

Switches (environment variables):

ANNBATCH_CYTHON_DEBUG=1   bounds checks and initialisation checks on, optimisation off
ANNBATCH_SANITIZE=1       additionally compile with the address and undefined-behaviour sanitizers
ANNBATCH_BLOSC2=0         build without C-Blosc2 even when the blosc2 wheel is installed

C-Blosc2 (with the zstd, lz4 and zlib-ng inside it) is linked from the static library that the blosc2 wheel ships. Without it
everything still builds and works; those codecs are then decoded through numcodecs.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("ANNBATCH_CYTHON_DEBUG", "0") == "1"
SANITIZE = os.environ.get("ANNBATCH_SANITIZE", "0") == "1"

# The only place where directives are set: a decorator or file header would make the debug build blind.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "nonecheck": False,
    "cdivision": True,
    "embedsignature": True,
}

compile_args: list[str] = []
link_args: list[str] = []
if sys.platform != "win32":
    compile_args += ["-O1", "-g"] if DEBUG else ["-O3"]
    if SANITIZE:
        flags = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
        compile_args += flags
        link_args += flags

# All that _decode.h uses: a library without one of them is of no use.
BLOSC2_PROBE = """
#include <blosc2.h>
size_t ZSTD_decompressDCtx(void *, void *, size_t, const void *, size_t);
int LZ4_decompress_safe(const char *, char *, int, int);
int zng_uncompress(unsigned char *, size_t *, const unsigned char *, size_t);
void *probe[] = {(void *)blosc2_decompress_ctx, (void *)blosc2_getitem_ctx, (void *)blosc2_unshuffle,
                 (void *)ZSTD_decompressDCtx, (void *)LZ4_decompress_safe, (void *)zng_uncompress};
int main(void) { return blosc2_create_dctx(BLOSC2_DPARAMS_DEFAULTS) == 0; }
"""


def blosc2_options() -> dict[str, list]:
    """Return what compiling and linking against C-Blosc2 needs, empty when it is not there or cannot be linked."""
    found = importlib.util.find_spec("blosc2")
    if os.environ.get("ANNBATCH_BLOSC2") == "0" or sys.platform == "win32" or found is None or not found.origin:
        return {}
    home = Path(found.origin).parent
    libraries = [path for folder in ("lib", "lib64") for path in (home / folder).glob("libblosc2.a")]
    if not libraries or not (home / "include" / "blosc2.h").exists():
        return {}
    # Its symbols stay inside our module: another zstd in the process is neither used nor disturbed.
    hide = [] if sys.platform == "darwin" else ["-Wl,--exclude-libs,ALL"]
    options = {"include": str(home / "include"), "link": [str(libraries[0]), *hide, "-lpthread", "-lm"]}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(BLOSC2_PROBE)
        command = [
            *os.environ.get("CC", "cc").split(),
            str(source),
            "-I",
            options["include"],
            "-o",
            str(source.with_suffix("")),
        ]
        linked = subprocess.run([*command, *options["link"]], capture_output=True, text=True, check=False)  # noqa: S603
    if linked.returncode:
        print(f"annbatch: C-Blosc2 of {home} cannot be linked, building without it:\n{linked.stderr}")
        return {}
    return {
        "include_dirs": [options["include"]],
        "define_macros": [("ANNBATCH_BLOSC2", "1")],
        "extra_link_args": options["link"],
    }


BLOSC2 = blosc2_options()
print("annbatch: C-Blosc2", "linked" if BLOSC2 else "not found: its codecs go through numcodecs")
HEADERS = [str(path) for path in Path("annbatch").rglob("*.h")]


def extension(path: Path) -> Extension:
    decodes = BLOSC2 if path.stem == "_engine" else {}
    return Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        depends=HEADERS,
        include_dirs=[np.get_include(), *decodes.get("include_dirs", [])],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"), *decodes.get("define_macros", [])],
        extra_compile_args=compile_args,
        extra_link_args=[*link_args, *decodes.get("extra_link_args", [])],
    )


extensions = [extension(path) for path in [Path(p) for p in ["annbatch/storage/engine/_engine.pyx",]]]


def readme_for_the_index() -> str:
    """Return the README with absolute links: a package index has neither our files nor our pictures."""
    home = tomllib.loads(Path("pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    raw = home.replace("github.com", "raw.githubusercontent.com")

    def absolute(link: re.Match[str]) -> str:
        base = f"{raw}/main" if link["picture"] else f"{home}/blob/main"
        return f"{link['picture']}[{link['text']}]({base}/{link['path']})"

    pattern = r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)"
    return re.sub(pattern, absolute, Path("README.md").read_text(encoding="utf-8"))


# Always anew: what an earlier build left may have been made with other directives, or for the NumPy of another interpreter.
setup(
    ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, force=True),
    long_description=readme_for_the_index(),
    long_description_content_type="text/markdown",
)
