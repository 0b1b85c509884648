"""Filling in what a config leaves open, with methods of the package and from outside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from everclip import config as configs
from everclip import plugins
from everclip.config import load_config
from everclip.config.values import dump
from everclip.errors import UserError
from everclip.methods.base.registry import method_class, method_config, options_of
from everclip.models.catalogue import recommended
from everclip.runs.resolve import resolve
from tests.complaints import complaint

HEAD = """
from typing import Any, ClassVar, Literal
from pydantic import Field
from everclip.methods import Method, MethodConfig

"""
BODY = """
    def encode(self, clip, batch, phase):
        return {}
    def loss(self, features, batch, phase):
        return {}
"""
MINE = f"""{HEAD}
class Mine(Method):
    class Config(MethodConfig):
        recommends: ClassVar[dict[str, Any]] = {{"epochs": 2, "lr": 0.5, "batch_size": 8}}
        margin: float = Field(default=0.3, ge=0, description="distance")
        layers: list[int] = Field(default=[1, 2], description="which")
        cap: int | None = Field(default=4, description="limit")
        table: dict[str, int | str] = Field(default={{}}, description="of values")
        rate: float | None = Field(default=None, description="rate")
        kind: Literal["kl", "none"] = Field(default="kl", description="of divergence")
{BODY}
"""


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Modules of a user's own, on the path."""
    folder: Path = tmp_path_factory.mktemp("path")
    package = folder / "everclip_test_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text(MINE)
    (package / "steps.py").write_text(MINE.replace('"epochs": 2, "lr": 0.5', '"steps": 20'))
    (package / "two.py").write_text(f"{HEAD}\nclass A(Method):{BODY}\nclass B(Method):{BODY}")
    (package / "empty.py").write_text(HEAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def mine(*tokens: str, module: str = "mine") -> configs.Config:
    return load_config([f"method=everclip_test_methods.{module}", *tokens])


def test_the_user_comes_before_the_method_before_the_model() -> None:
    train = resolve(mine("train.weight_decay=0.7")).train
    assert (train.epochs, train.lr, train.batch_size) == (2, 0.5, 8)  # the method's
    assert train.lr_text == recommended("lite")["lr_text"]  # the model's
    assert (train.weight_decay, train.lr_head, train.warmup) == (0.7, 1e-3, 0.1)
    train = resolve(mine("train.lr=0.1", "train.epochs=9", "train.batch_size=16", "train.lr_head=3")).train
    assert (train.lr, train.epochs, train.batch_size, train.lr_head) == (0.1, 9, 16, 3)


def test_the_rate_of_heads_is_tied_to_no_other() -> None:
    for tokens in ([], ["train.lr=0.1"], ["model=ViT-B-16:laion400m_e32"], ["method=foster"]):
        assert resolve(load_config(tokens)).train.lr_head == 1e-3
    assert resolve(load_config(["train.lr=0.1", "defaults=1"])).train.lr_head == 1.0


def test_a_wrapped_method_learns_at_its_own_rates() -> None:
    for tokens, epochs in ((["method=wise_ft"], 5), (["method=joint"], 15)):
        train = resolve(load_config([*tokens, "method.loss=proof"])).train
        assert (train.lr_head, train.epochs) == (1e-4, epochs)


def test_the_rate_of_lite_by_generations() -> None:
    assert (resolve(load_config([])).train.lr, resolve(load_config(["defaults=1"])).train.lr) == (3e-5, 3e-4)


def test_joint_training_has_epochs_of_its_own() -> None:
    assert resolve(load_config(["method=joint"])).train.epochs == 15
    assert resolve(load_config(["method=joint", "train.epochs=3"])).train.epochs == 3
    assert resolve(load_config(["method=joint", "defaults=1"])).train.epochs == 5


def test_no_page_calls_joint_training_a_bound() -> None:
    root = Path(__file__).parents[2]
    pages = [
        root / "README.md",
        *(root / "docs").glob("*.md"),
        *(root / "src").rglob("*.toml"),
        *(root / "src").rglob("*.py"),
    ]
    assert [page for page in pages if "upper bound" in page.read_text(encoding="utf-8")] == []


def test_the_length_of_training_is_in_one_unit() -> None:
    def lengths(config: configs.Config) -> tuple[int | None, int | None]:
        train = resolve(config).train
        return train.epochs, train.steps

    assert lengths(load_config(["method=zero_shot"])) == (5, None)
    assert lengths(mine("train.steps=7")) == (None, 7)
    assert lengths(mine(module="steps")) == (None, 20)
    assert lengths(mine("train.epochs=1", module="steps")) == (1, None)


def test_no_limit_on_the_gradient_is_kept() -> None:
    assert resolve(mine("train.clip_norm=none")).train.clip_norm is None
    assert resolve(mine("train.clip_norm=auto")).train.clip_norm == 1.0


@pytest.mark.parametrize("model", ["lite", "ViT-B-32:openai"])
def test_nothing_is_left_open(model: str) -> None:
    train = resolve(load_config(["method=zero_shot", f"model={model}"])).train
    assert [name for name, value in train if value is None] == ["steps"]
    assert train.lr == recommended(model)["lr"]


def test_a_resolved_config_is_complete_and_repeats_itself(tmp_path: Path) -> None:
    config = mine(
        "method.cap=none", "method.layers=[3]", "method.table.a=1", "train.clip_norm=none", "train.steps=4"
    )
    once = resolve(config)
    assert once.method.options == {
        "margin": 0.3,
        "layers": [3],
        "cap": "none",
        "table": {"a": 1},
        "kind": "kl",
    }
    assert method_config(once) == method_config(config)
    path = tmp_path / "config.toml"
    path.write_text(dump(once), encoding="utf-8")
    again = load_config([str(path)])
    assert again == once
    assert resolve(again) == once
    assert configs.config_hash(resolve(again)) == configs.config_hash(once)


def test_none_and_auto_as_a_methods_options() -> None:
    values = method_config(mine("method.cap=none", "method.kind=none")).model_dump()
    assert (values["cap"], values["kind"]) == (None, "none")
    assert method_config(mine("method.cap=auto")).model_dump()["cap"] == 4


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            ["method.margn=1"],
            'method "everclip_test_methods.mine" has no option "margn"; did you mean "margin"?',
        ),
        (["method.margin=-1"], "method.margin is -1: use a number from 0"),
        (["method.margin=x"], 'method.margin is "x": use a number from 0'),
        (["method.layers=[a]"], 'method.layers is "[a]": use a list, each a whole number'),
        (["method.layers=[1.5]"], "method.layers is [1.5]: use a list, each a whole number"),
        (["method.kind=js"], 'method.kind is "js": use "kl" or "none"'),
        (["method.margin.x=1"], 'method.margin is {"x": 1}: use a number from 0'),
        (["method.table=1"], "method.table is 1: use a table of names and values"),
        (["method.cap=true"], "method.cap is true: use a whole number or none"),
    ],
)
def test_a_bad_option_gives_one_line(tokens: list[str], message: str) -> None:
    assert complaint(resolve, mine(*tokens)) == message


def test_a_message_says_where_the_options_stand() -> None:
    with pytest.raises(
        UserError, match=r"^method\.options\.label_smoothing is 2: use a number from 0 to below 1$"
    ):
        options_of("finetune", {"label_smoothing": 2}, "method.options.")


def test_a_method_without_options_says_so() -> None:
    expected = 'method "zero_shot" has no option "tau"; it has no options'
    assert complaint(resolve, load_config(["method=zero_shot", "method.tau=1"])) == expected


def test_an_ambiguous_name_is_refused() -> None:
    assert "der_expand" in complaint(resolve, load_config(["method=DER"]))
    assert "dark_er" in complaint(resolve, load_config(["method=der"]))


def test_methods_that_are_not_there() -> None:
    assert (
        complaint(resolve, load_config(["method=zero_shoot"]))
        == 'unknown method "zero_shoot"; did you mean "zero_shot"?'
    )
    assert "give a module in the working folder or on PYTHONPATH" in complaint(
        resolve, load_config(["method=nowhere.to_be_found"])
    )
    need = "it must define one subclass of everclip.methods.Method"
    assert (
        complaint(resolve, mine(module="two")) == f"module everclip_test_methods.two defines A and B: {need}"
    )
    assert (
        complaint(resolve, mine(module="empty"))
        == f"module everclip_test_methods.empty defines no method: {need}"
    )


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_every_method_of_the_package_resolves(name: str) -> None:
    config = resolve(load_config([f"method={name}"]))
    assert method_class(name).__module__ == f"everclip.methods.{name}"
    assert method_config(config) == method_class(name).Config()
