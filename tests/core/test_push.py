"""Uploading an artefact: only where asked, private, with whatever token the hub's own library finds."""

from __future__ import annotations

import huggingface_hub
import pytest

from fewstep.core.cli.looking import push
from fewstep.core.errors import UserError


def test_a_push_makes_a_private_repository_and_uploads_the_folder(monkeypatch, tmp_path):
    asked = []

    class Hub:
        def create_repo(self, name, **options):
            asked.append((name, options))

        def upload_folder(self, **options):
            asked.append(options)
            return "https://hub/owner/student"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push(tmp_path, "owner/student") == "https://hub/owner/student"
    assert asked[0] == ("owner/student", {"private": True, "exist_ok": True})
    assert (asked[1]["repo_id"], asked[1]["folder_path"]) == ("owner/student", tmp_path)
    assert all("token" not in str(each) for each in asked)


def test_a_hub_that_refuses_is_one_line_and_the_artefact_stays(monkeypatch, tmp_path):
    class Hub:
        def create_repo(self, name, **options):
            raise PermissionError("403 Forbidden\nmore")

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    with pytest.raises(UserError, match=f"--push owner/student: the hub refuses .403 Forbidden.; .*{tmp_path.name}"):
        push(tmp_path, "owner/student")
