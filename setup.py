"""Compiled modules. All metadata lives in pyproject.toml.

Switches (environment variables):

ANNBATCH_CYTHON_DEBUG=1   bounds checks and initialisation checks on, optimisation off
ANNBATCH_SANITIZE=1       additionally compile with the address and undefined-behaviour sanitizers
"""

import os
import sys
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

extensions = [
    Extension(
        ".".join(path.with_suffix("").parts),
        [str(path)],
        include_dirs=[np.get_include()],
        define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )
    for path in sorted(Path("annbatch").rglob("*.pyx"))
]

setup(ext_modules=cythonize(extensions, compiler_directives=DIRECTIVES, annotate="--annotate" in sys.argv))
