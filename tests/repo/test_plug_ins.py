"""Installing a domain is enough to plug it in; one without recipes says so in one line."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from repo.sources import DOMAINS

from fewstep.core.domain import Domain
from fewstep.core.errors import UserError


def plug_in(name: str) -> Domain:
    (point,) = entry_points(group="fewstep.domains", name=name)
    return point.load()


def has_recipes(name: str) -> bool:
    return any(plug_in(name).configs.glob("*.yaml"))


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_keeps_the_contract(name):
    domain = plug_in(name)
    assert isinstance(domain, Domain)
    assert domain.name == name
    assert domain.summary
    assert "\n" not in domain.summary


@pytest.mark.parametrize("name", [name for name in DOMAINS if not has_recipes(name)])
def test_a_domain_without_recipes_says_so(name):
    domain = plug_in(name)
    assert "no recipes yet" in domain.summary
    with pytest.raises(UserError, match="no recipes yet"):
        domain.build(domain.config_type(), (), seed=0, device="cpu")
    with pytest.raises(UserError, match="no recipes yet"):
        domain.process(domain.config_type())

    command = Path(sys.executable).parent / f"fewstep-{name}"
    done = subprocess.run([command, "train"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "no recipes yet" in done.stderr
