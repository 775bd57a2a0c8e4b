"""Compiles the block-sparse kernel where a C++ compiler is found; everything else is in pyproject.toml.

Without a compiler the installation succeeds all the same, and attention_pruning warns when the kernel is asked for.
"""

from __future__ import annotations

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("attention_pruning/ops/cpu/csrc")
#: Flags of each build; ``native.py`` chooses among them when it runs.
BUILDS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    BUILDS["avx2"] = ["-march=x86-64-v3"]
    # Pairs and tiles are used for bfloat16 alone, and only where the processor says that it has them.
    BUILDS["avx512"] = ["-march=x86-64-v4", "-mprefer-vector-width=512", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"]
# Errors of the mathematical functions and floating-point traps are not looked at; NaN and infinity keep their meaning.
FLAGS = ["-std=gnu++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-fvisibility=hidden", "-g0"]


class OptionalKernels(build_ext):
    """Try with OpenMP, then without (one thread), then do without the build."""

    def build_extension(self, extension: Extension) -> None:
        arguments = extension.extra_compile_args
        for openmp in (["-fopenmp"], []):
            extension.extra_compile_args = [*arguments, *openmp]
            extension.extra_link_args = openmp
            try:
                return super().build_extension(extension)
            except Exception as error:  # noqa: BLE001 - whatever a compiler may fail with
                self.warn(f"{extension.name} was not compiled{' with OpenMP' if openmp else ''}: {error}")

    def copy_extensions_to_source(self) -> None:
        self.extensions = [extension for extension in self.extensions if self._built(extension)]
        super().copy_extensions_to_source()

    def _built(self, extension: Extension) -> bool:
        return Path(self.build_lib, self.get_ext_filename(self.get_ext_fullname(extension.name))).is_file()


setup(
    ext_modules=[
        Extension(
            f"attention_pruning.ops.cpu._block_sparse_{build}",
            sources=[str(KERNELS / "kernel.cpp")],
            depends=[str(path) for path in KERNELS.glob("*.h")],
            extra_compile_args=[*FLAGS, *flags],
            language="c++",
        )
        for build, flags in BUILDS.items()
    ],
    cmdclass={"build_ext": OptionalKernels},
)
