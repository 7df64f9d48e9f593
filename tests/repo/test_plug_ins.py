"""Installing a domain is enough to plug it in."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
from repo.sources import DOMAINS

from fewstep.core.domain import Domain


def plug_in(name: str) -> Domain:
    (point,) = entry_points(group="fewstep.domains", name=name)
    return point.load()


@pytest.mark.parametrize("name", DOMAINS)
def test_a_domain_keeps_the_contract(name):
    domain = plug_in(name)
    assert isinstance(domain, Domain)
    assert domain.name == name
    assert domain.summary
    assert "\n" not in domain.summary
