"""Packaging of crysxpp_mm; settings of the tools are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

version: dict[str, str] = {}
exec((ROOT / "crysxpp_mm" / "version.py").read_text(), version)

DASK = ["dask[dataframe]>=2024.8"]
NOTEBOOKS = ["ipykernel>=6.29", "ipywidgets>=8.1", "jupyterlab>=4.0", "nbconvert>=7.16"]
DOCS = ["myst-nb>=1.3", "pydata-sphinx-theme>=0.16", "sphinx>=8.2"]
DEV = [
    "ase>=3.22",
    "import-linter>=2.1",
    "mypy>=1.13",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pandas-stubs>=2.2",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "types-tqdm>=4.66",
]

setup(
    name="crysxpp_mm",
    version=version["__version__"],
    description="Learned features of crystals for matminer and pymatgen: CrysAE and CrysXPP",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The weights lie beside the package in the checkout and inside it once installed.
    packages=[*find_packages(include=["crysxpp_mm", "crysxpp_mm.*"]), "crysxpp_mm.pretrained"],
    package_dir={"crysxpp_mm.pretrained": "pretrained"},
    package_data={
        "crysxpp_mm": ["py.typed"],
        "crysxpp_mm.benchmarks": ["results/*"],
        "crysxpp_mm.pretrained": ["*/*"],
        "crysxpp_mm.release": ["templates/*"],
    },
    install_requires=[
        # DGL 1.1.3 is the last release that works with today's torch; it has wheels for Python
        # 3.11 on Linux x86-64 and macOS. Elsewhere everything works without it.
        (
            "dgl>=1.1.3,<2; python_version < '3.12' and platform_system != 'Windows' "
            "and (platform_machine == 'x86_64' or platform_system == 'Darwin')"
        ),
        "jinja2>=3.1",
        "gemmi>=0.7",
        "joblib>=1.3",
        "lightning>=2.6",
        "matminer>=0.10",
        "matplotlib>=3.8",
        "monty>=2026.7",
        # Compiles the loops over bonds; without it everything works, more slowly. It follows a
        # new Python by months.
        "numba>=0.61; python_version < '3.15'",
        "numpy>=1.26",
        "pandas>=2.2",
        "platformdirs>=4.0",
        "pymatgen>=2024.8",
        "safetensors>=0.4.3",
        "scikit-learn>=1.7",
        "scipy>=1.13",
        "torch>=2.2",
        "tqdm>=4.66",
        "typer>=0.20",
    ],
    extras_require={
        "dask": DASK,
        "docs": DOCS,
        "notebooks": NOTEBOOKS,
        "dev": [*DASK, *DOCS, *NOTEBOOKS, *DEV],
    },
    entry_points={"console_scripts": ["crysxpp=crysxpp_mm.cli:app"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Chemistry",
        "Topic :: Scientific/Engineering :: Physics",
        "Typing :: Typed",
    ],
)
