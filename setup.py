"""Root meta-package: points its extras at the sibling folders of this checkout, and nothing else."""

from pathlib import Path

from setuptools import setup

PACKAGES = Path(__file__).resolve().parent / "packages"
DOMAINS = ("video", "threed", "restoration", "lidar")


def sibling(name: str) -> str:
    """Requirement of one sibling distribution as a file URL (relative URLs are not valid metadata)."""
    return f"fewstep-{name} @ {(PACKAGES / name).as_uri()}"


setup(
    install_requires=[sibling("core")],
    extras_require={name: [sibling(name)] for name in DOMAINS} | {"all": [sibling(name) for name in DOMAINS]},
)
