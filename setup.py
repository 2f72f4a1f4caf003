"""Builds what Python cannot: the Cython bindings, the BPF objects and the preload library.

Everything else about the package stands in pyproject.toml. A binding is built when its source is
there. BPF objects and the library are compiled beside their sources and travel as package data.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from Cython.Build import cythonize
from setuptools import Command, Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
BPF_DIR = Path("m2m/bpf")
PRELOAD = Path("nf_adapters/sockets/preload.c")
CORE_DIR = Path("kmod/core")
ADAPTER_DIRS = (Path("nf_adapters/pcap"), Path("nf_adapters/sockets"))
C_FLAGS = ["-O2", "-Wall", "-Wextra", "-Wno-unused-parameter"]  # Cython leaves parameters unused

# module -> (libraries, the header that must be installed, the Debian package that has it)
BINDINGS = {
    "m2m._hmac": (["crypto"], "openssl/sha.h", "libssl-dev"),
    "m2m.protocol._codec": (["crypto"], "openssl/sha.h", "libssl-dev"),
    "m2m.datapath._core": ([], None, None),
    "m2m.datapath._bpf": (["bpf"], "bpf/libbpf.h", "libbpf-dev"),
    "m2m.datapath._nfqueue": (["mnl"], "libmnl/libmnl.h", "libmnl-dev"),
    "nf_adapters.pcap._mapping": ([], None, None),
    "nf_adapters.sockets._codec": ([], None, None),
    "nf_adapters.sockets._nf": ([], None, None),
}


def headers() -> list[str]:
    """The C headers that both the bindings and the BPF programs are built from."""
    rooms = (CORE_DIR, BPF_DIR, Path("m2m/datapath"), *ADAPTER_DIRS)
    found = [path for room in rooms for path in (ROOT / room).glob("*.h")]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def system_includes() -> list[Path]:
    """Where the C library's headers are, Debian's per-architecture directory among them."""
    triplet = getattr(sys.implementation, "_multiarch", "")
    places = [Path("/usr/local/include"), Path("/usr/include") / triplet, Path("/usr/include")]
    return [place for place in places if place.is_dir()]


def require_header(header: str, package: str) -> None:
    if not any((place / header).exists() for place in system_includes()):
        raise CompileError(
            f"M2M cannot be built: <{header}> is missing. Install it with:"
            f" apt-get install {package} (or run: sudo make setup)"
        )


def extensions() -> list[Extension]:
    found = []
    for name, (libraries, _, _) in BINDINGS.items():
        source = Path(*name.split(".")).with_suffix(".pyx")
        if (ROOT / source).exists():
            found.append(
                Extension(
                    name,
                    [str(source)],
                    depends=headers(),
                    include_dirs=["kmod", "m2m/datapath", *map(str, ADAPTER_DIRS)],
                    libraries=libraries,
                    extra_compile_args=C_FLAGS,
                )
            )
    return found


class BuildBindings(build_ext):
    """Say which package to install before the compiler fails to find its header."""

    def build_extension(self, ext: Extension) -> None:
        _, header, package = BINDINGS[ext.name]
        if header is not None:
            require_header(header, package)
        super().build_extension(ext)


class BuildData(Command):
    """Compile C to files that are package data; only what is older than its sources."""

    user_options: ClassVar[list[tuple[str, str, str]]] = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib: str | None = None
        self.force: bool | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"), ("force", "force"))

    def sources(self) -> list[Path]:
        raise NotImplementedError

    def name_of(self, source: Path) -> Path:
        """What is made of *source*, from the top of the project."""
        raise NotImplementedError

    def command(self) -> list[str]:
        """How it is compiled. Raises :exc:`CompileError` where something is missing for it."""
        raise NotImplementedError

    def target(self, source: Path) -> Path:
        """In an editable install it lies beside its source."""
        place = ROOT if self.editable_mode else Path(self.build_lib or "build/lib")
        return place / self.name_of(source)

    def run(self) -> None:
        for source in self.sources():
            self.compile(source)

    def compile(self, source: Path) -> None:
        target = self.target(source)
        newest = max((ROOT / path).stat().st_mtime for path in [source, "setup.py", *headers()])
        if not self.force and target.exists() and target.stat().st_mtime >= newest:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [*self.command(), str(source), "-o", str(target)]
        self.announce(" ".join(command), level=2)
        try:
            subprocess.run(command, check=True, cwd=ROOT)
        except subprocess.CalledProcessError as error:
            target.unlink(missing_ok=True)
            raise CompileError(
                f"{command[0]} could not compile {source}; see its messages above"
            ) from error

    def get_source_files(self) -> list[str]:
        return [*map(str, self.sources()), *headers()]

    def get_outputs(self) -> list[str]:
        return [] if self.editable_mode else [str(self.target(path)) for path in self.sources()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BuildBpf(BuildData):
    """Compile ``m2m/bpf/*.bpf.c`` with clang."""

    description = "compile the BPF programs"

    def sources(self) -> list[Path]:
        return sorted(path.relative_to(ROOT) for path in (ROOT / BPF_DIR).glob("*.bpf.c"))

    def name_of(self, source: Path) -> Path:
        return source.with_suffix(".o")

    def command(self) -> list[str]:
        clang = shutil.which("clang")
        if clang is None:
            raise CompileError(
                "M2M cannot be built: clang is missing, which compiles the BPF programs."
                " Install it with: apt-get install clang (or run: sudo make setup)"
            )
        require_header("bpf/bpf_helpers.h", "libbpf-dev")
        # -g carries the BTF that libbpf needs for map definitions.
        command = [clang, "-O2", "-g", "-target", "bpf", "-mcpu=v3"]
        command += ["-Wall", "-Wextra", "-Werror", "-Ikmod"]
        for place in system_includes():
            command += ["-idirafter", str(place)]
        return [*command, "-c"]


class BuildPreload(BuildData):
    """Compile the library that is loaded into proxies (LD_PRELOAD)."""

    description = "compile the preload library"

    def sources(self) -> list[Path]:
        return [PRELOAD]

    def name_of(self, source: Path) -> Path:
        return source.with_name("libm2m-sockets.so")

    def command(self) -> list[str]:
        # bound at once: nothing is looked up in the middle of a call, as after vfork()
        linked = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-z,relro,-z,now", "-pthread"]
        return ["gcc", "-O2", "-g", "-Wall", "-Wextra", *linked]


class Build(build):
    # The objects go in before the editable install looks at what there is.
    sub_commands: ClassVar[list[tuple[str, object]]] = [
        *build.sub_commands,
        ("build_bpf", None),
        ("build_preload", None),
    ]


setup(
    ext_modules=cythonize(extensions(), language_level="3", compiler_directives={"binding": True}),
    cmdclass={
        "build": Build,
        "build_bpf": BuildBpf,
        "build_ext": BuildBindings,
        "build_preload": BuildPreload,
    },
)
