"""Both packages, their extras and their commands; tool settings live in pyproject.toml."""

from setuptools import find_packages, setup

LEARNING = [
    "torch>=2.9",
    "e3nn>=0.5.6",
    "lightning>=2.5",
    "pytorch-optimizer>=4.1",
    "tensorboardX>=2.6",
    "vesin-torch>=0.6",
    "matplotlib>=3.9",
    "jinja2>=3.1",
    "mdtraj>=1.11",
]

setup(
    name="forcefield-ml",
    version="0.2.0",
    description="Equivariant networks that predict forces directly, inside OpenMM",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["forcefield_ml*", "data_pipeline*"]),
    include_package_data=True,
    package_data={
        "data_pipeline.dataset": ["templates/*.html"],
        "forcefield_ml.validation": ["templates/*.html"],
        "forcefield_ml.refinement": ["templates/*.html"],
        "forcefield_ml.kernels": ["*.c"],
        "forcefield_ml.pretrained": ["*.pt", "*.yaml"],
    },
    install_requires=[
        "openmm>=8.6.1",
        "pdbfixer>=1.11",
        "gemmi>=0.7.5",
        "h5py>=3.11",
        "numpy>=1.26",
        "scipy>=1.13",
        "pydantic>=2.9",
        "pyyaml>=6",
        "typer>=0.15",
        "rich>=13",
        "biopython>=1.84",
        "pebble>=5.2",
        "requests>=2.32",
        "urllib3>=2.2",
        *LEARNING,
    ],
    extras_require={
        "mlpotential": ["openmmml>=1.8"],
        "ase": ["ase>=3.25"],
        "torchforce": ["openmmtorch==1.5", "torch==2.9.1"],
        "cuda12": ["openmm[cuda12]", "openmmtorch[cuda12]==1.5", "torch==2.9.1"],
        "cluster": ["distributed>=2024.8"],
        "dev": [
            *("pytest>=8", "pytest-timeout>=2", "hypothesis>=6", "ruff", "mypy", "types-PyYAML", "types-requests"),
            *("openmmml>=1.8", "ase>=3.25"),
        ],
    },
    entry_points={
        "console_scripts": [
            "data-pipeline=data_pipeline.cli:main",
            "forcefield-ml=forcefield_ml.cli:main",
        ],
        "openmmml.potentials": ["forcefield-ml=forcefield_ml.deploy.integrations.mlpotential:ForcefieldMLFactory"],
    },
)
