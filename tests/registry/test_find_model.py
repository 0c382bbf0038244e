"""A word names a registered model before it names a folder; a path always names a folder."""

from pathlib import Path

import pytest

from star.errors import InputError
from star.folders.manifest import Manifest
from star.folders.publish import publish
from star.registry.find_model import find_model, get_model_folder_or_hub_id
from star.registry.lineage_tree import print_lineage
from star.registry.promotion.promote_and_rollback import promote
from star.registry.promotion.register_model import register_model


@pytest.fixture
def shop(home: Path, model: Path, environment: pytest.MonkeyPatch) -> Path:
    """Version 1 of the model `shop` is the champion, and a folder `shop` lies in the current directory."""
    environment.chdir(home)
    register_model(model, name="shop", scores={}, lineage={}, model_digest="d1")
    promote("shop", 1)
    (home / "shop").mkdir()
    return home / "shop"


def test_a_word_is_a_registered_model_and_a_path_a_folder(shop: Path, capsys: pytest.CaptureFixture) -> None:
    for word, name in (
        ("shop", "star"),
        ("champion", "shop"),
        ("1", "shop"),
        ("shop/1", "star"),
        ("shop@champion", "star"),
    ):
        version, _ = find_model(word, name=name)
        assert str(version) == "shop version 1", word
    assert capsys.readouterr().err == ""
    for path in ("./shop", str(shop)):
        assert find_model(path, name="shop") == (None, Path(path))
    Path("cut.GGUF").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"cut\.GGUF has 4 bytes"):  # converted, were it whole
        find_model("./cut.GGUF", name="shop")


def test_a_word_is_never_a_folder(shop: Path) -> None:
    shop.rename(shop.with_name("bag"))
    with pytest.raises(InputError, match=r"no version of shop is called 'bag'.*; write \./bag if you mean the folder"):
        find_model("bag", name="shop")
    with pytest.raises(InputError, match="no version of shop is called 'box'"):
        find_model("box", name="shop")
    with pytest.raises(InputError, match=r"no model folder at \./box"):
        find_model("./box", name="shop")


def test_a_name_of_the_hub_is_never_a_folder(shop: Path) -> None:
    assert get_model_folder_or_hub_id("team/model", name="shop") == "team/model"
    (shop.parent / "team" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match=r"write \./team/model if you mean the folder"):
        get_model_folder_or_hub_id("team/model", name="shop")
    for path in ("./team/model", str(shop.parent / "team" / "model")):
        assert get_model_folder_or_hub_id(path, name="shop") == Path(path)
    assert get_model_folder_or_hub_id("shop/1", name="star") == get_model_folder_or_hub_id("1", name="shop")


def test_a_folder_without_lineage_is_called_what_it_is(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"shop version 1 has no lineage\.json: it was registered by an older star"):
        print_lineage("shop", name="star")
    with pytest.raises(InputError, match=r"\./shop is no model that `star register` published"):
        print_lineage("./shop", name="star")
    made = tmp_path / "made"
    made.mkdir()
    publish(made, out=tmp_path / "data", manifest=Manifest("synthesize", "f", "c", "c", "0", inputs={}))
    with pytest.raises(InputError, match=r"is the output of synthesize, .* and no published model"):
        print_lineage(str(tmp_path / "data"), name="star")
