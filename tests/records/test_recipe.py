"""What a measured number says of its origin."""

from pathlib import Path

import pytest

from minicpm4.records import recipe


def test_a_checkout_names_its_commit_and_an_installed_copy_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if (Path(recipe.__file__).resolve().parents[3] / ".git").exists():
        assert recipe.source_commit()
    monkeypatch.setattr(recipe, "__file__", str(tmp_path / "lib" / "site-packages" / "minicpm4" / "recipe.py"))
    assert recipe.source_commit() is None


@pytest.mark.parametrize("executor", ["torch", pytest.param("mindspore", marks=pytest.mark.mindspore)])
def test_an_executor_of_another_library_names_its_version(executor: str) -> None:
    facts = recipe.software_facts("native")  # no package: ours
    assert facts.keys() >= {"machine", "system", "python", "numpy", "minicpm4", "commit"}
    assert recipe.software_facts(executor).keys() - facts.keys() == {executor}
