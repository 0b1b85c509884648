"""What the config refuses, and how: one line that says what to write; a fuzzer that nothing else escapes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everclip.config import Config, known_keys, load_config
from everclip.config.sections import CODE
from everclip.config.sources import is_override, shipped
from everclip.config.values import dump
from everclip.errors import UserError
from everclip.system.reading import TOML_BYTES
from tests.complaints import complaint


def refusal(tokens: list[str]) -> str:
    return complaint(load_config, tokens)


def toml(folder: Path, text: str, name: str = "my.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def round_trip(config: Config) -> Config:
    return Config.model_validate(tomllib.loads(dump(config)))


# What is refused --------------------------------------------------------------------------------------------

ALL_KEYS = ", ".join(sorted(known_keys()))

REFUSED = [
    (["lr=1"], 'unknown key "lr"; did you mean "train.lr"?'),
    (["batch-size=1"], 'unknown key "batch-size"; did you mean "train.batch_size"?'),
    (["sede=1"], 'unknown key "sede"; did you mean "seed"?'),
    (["data.path=1"], 'unknown key "data.path"; did you mean "data"?'),
    (["zzzz=1"], f'unknown key "zzzz"; known: {ALL_KEYS}'),
    (["train=3"], '"train" is a section: use one of its keys, such as train.epochs=VALUE'),
    (["method.a=1", "method.a.b=3"], '"method.a.b" is given twice: give it once'),
    (["method.a.b=1", "method.a=3"], '"method.a" is given twice: give it once'),
    (["method.a.b.c=3"], 'unknown key "method.a.b.c"; did you mean "method"?'),
    (["train.lr=-1"], "train.lr is -1: use a number above 0 or none"),
    (["train.lr=0"], "train.lr is 0: use a number above 0 or none"),
    (["train.lr=nan"], "train.lr is NaN: use a number above 0 or none"),
    (["train.lr=inf"], "train.lr is Infinity: use a number above 0 or none"),
    (["train.lr=1e-4x"], 'train.lr is "1e-4x": use a number above 0 or none'),
    (["train.lr=true"], "train.lr is true: use a number above 0 or none"),
    (["train.lr=[1]"], "train.lr is [1]: use a number above 0 or none"),
    (["train.lr={a = 1}"], 'train.lr is "{a = 1}": use a number above 0 or none'),
    (["train.warmup=1.5"], "train.warmup is 1.5: use a number from 0 to 1"),
    (["train.precision=fp16"], 'train.precision is "fp16": use "fp32" or "bf16" or "bf16_text" or "auto"'),
    (["train.batch_size=0"], "train.batch_size is 0: use a whole number from 1"),
    (["train.epochs=2.5"], "train.epochs is 2.5: use a whole number from 1 or none"),
    (["train.epochs=1", "train.steps=1"], "train: epochs and steps are both given: use one of them"),
    (
        ["memory.budget=9", "memory.per_class=1"],
        "memory: budget and per_class are both given: use one of them",
    ),
    (["memory.per_class=-1"], "memory.per_class is -1: use a whole number from 0 or none"),
    (["memory.budget=none"], "memory: budget is none and per_class is not given: use one of them"),
    (["seed=true"], "seed is true: use a whole number from 0 to 4294967295"),
    (["seed=-1"], "seed is -1: use a whole number from 0 to 4294967295"),
    (["seed=" + "9" * 30], f'seed is "{"9" * 30}": use a whole number from 0 to 4294967295'),
    (["seed=0x" + "f" * 30], f'seed is "0x{"f" * 30}": use a whole number from 0 to 4294967295'),
    (["seed=1", "seed=1"], '"seed" is given twice: give it once'),
    (["method=gcl", "method.name=gcl"], '"method.name" is given twice: give it once'),
    (["image_size=8"], "image_size is 8: use a whole number from 16 to 4096 or none"),
    (["memory.budget=al"], 'memory.budget is "al": use a whole number from 0 or "all"'),
    (["memory.budget=-1"], 'memory.budget is -1: use a whole number from 0 or "all"'),
    (
        ["memory.policy=a..b"],
        'memory.policy is "a..b": use "method", a policy\'s name, a module such as my_package.my_plug_in'
        " or a file such as ./my_plug_in.py",
    ),
    (
        ["scenario.kind=a..b"],
        f'scenario.kind is "a..b": use a scenario\'s name, {CODE}',
    ),
    (
        ["scenario.tasks=[5, 0]"],
        ("scenario.tasks is [5, 0]: use a whole number from 1 or a list, each a whole number from 1"),
    ),
    (
        ["scenario.tasks=[]"],
        "scenario.tasks: the list is empty: give at least one entry, or leave the key out",
    ),
    (
        ["scenario.order=[cat, dog]"],
        (
            'scenario.order is "[cat, dog]": use a whole number from 0 to 4294967295 or "given" or "icarl"'
            ' or "seed"'
            " or a list, each text"
        ),
    ),
    (['templates=["a photo"]'], 'templates: "a photo" must contain "{}" once, where the class name goes'),
    (["templates=[]"], "templates: the list is empty: give at least one template, or leave the key out"),
    (["method=a..b"], f'method is "a..b": use a method\'s name, {CODE}'),
    (["device=gpu"], 'device is "gpu": use "auto", "cpu", "cuda", "cuda:1", "xpu" or "mps"'),
    (["out=a\x00b"], 'out is "a\\u0000b": use text or none'),
    (["out=a\udcffb"], 'the value of "out" is not UTF-8: set the terminal to UTF-8'),
    (["train.lr=" + "[" * 5000], 'the value of "train.lr" is nested too deeply: use a plain list'),
    (["=3"], '"=3" has no key: use for example train.lr=1e-4'),
    (["seed="], '"seed=" has no value: use for example seed=0'),
    (["seed=0", "gdro"], '"gdro" is not KEY=VALUE: use for example train.lr=1e-4'),
    (
        ["default", "b.toml"],
        (
            '"b.toml" is not KEY=VALUE: use for example train.lr=1e-4;'
            " a config's name or file comes first, and only once"
        ),
    ),
    (["defualt"], '"defualt" is not a shipped config, .toml file or KEY=VALUE; did you mean "default"?'),
    (
        ["no.toml"],
        "config no.toml does not exist: give a .toml file, or one of cifar100, default, demo, domainnet,"
        " imagenet",
    ),
    (
        ["a\nb.toml"],
        'config "a\\nb.toml" does not exist: give a .toml file, or one of cifar100, default, demo,'
        " domainnet, imagenet",
    ),
    (["~nobody-there/a.toml"], None),
    (["x" * 5000 + ".toml"], None),
]


@pytest.mark.parametrize(("tokens", "message"), REFUSED, ids=[repr(tokens)[:40] for tokens, _ in REFUSED])
def test_a_bad_command_line_gives_one_line(tokens: list[str], message: str | None) -> None:
    found = refusal(tokens)
    assert len(found.splitlines()) == 1
    if message is not None:
        assert found == message


BAD_FILES = [
    ("trian = 1", 'unknown key "trian"; did you mean "train.lr"?'),
    (
        "[train]\nlrr = 1",
        'unknown key "train.lrr"; did you mean "train.lr" or "train.lr_text" or "train.lr_head"?',
    ),
    ("train = 1", "train is 1 but it is a section: use train.epochs=VALUE"),
    ("[[train]]\nlr = 1", 'train is [{"lr": 1}] but it is a section: use train.epochs=VALUE'),
    ("method = 1", "method is 1 but it is a section: use method=VALUE"),
    ("[method]\nname = 1", f"method is 1: use a method's name, {CODE}"),
    ('[train]\nlr = "1e-4"', 'train.lr is "1e-4": use a number above 0 or none'),
    ("seed = 2026-01-31", 'seed is "2026-01-31": use a whole number from 0 to 4294967295'),
    ("[train]\nepochs = 1\nsteps = 1", "train: epochs and steps are both given: use one of them"),
    ("extends = 3", "extends is 3: give one config's name or path"),
    ("seed = 1\nseed = 2", "no valid TOML: Cannot overwrite a value (at end of document)"),
    ("seed == 1", "no valid TOML: Invalid value (at line 1, column 7)"),
    ("a = " + "[" * 5000, "lists or tables nested too deeply: sections of a config do not nest"),
    ("seed = " + "9" * 5000, None),
    ("seed = " + "9" * 30, "a whole number is too large: it must fit in 64 bits"),
    ("#" * (TOML_BYTES + 1), f"larger than {TOML_BYTES} bytes"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[text[:30] for text, _ in BAD_FILES])
def test_a_bad_file_gives_one_line_that_names_it(tmp_path: Path, text: str, message: str | None) -> None:
    path = toml(tmp_path, text)
    found = refusal([path])
    assert len(found.splitlines()) == 1
    assert found.startswith(f"{path}: ")
    if message is not None:
        assert found == f"{path}: {message}"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(b'# fine\ndata = "\xff"\n')
    assert refusal([str(path)]) == f"{path}: line 2 is not UTF-8 text"
    (tmp_path / "folder.toml").mkdir()
    assert (
        refusal([str(tmp_path / "folder.toml")])
        == f"{tmp_path / 'folder.toml'} is a folder: give a .toml file"
    )
    toml(tmp_path, "", "config.toml")
    assert "is a folder: use" in refusal([str(tmp_path)])
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    assert len(refusal([str(tmp_path / "loop.toml")]).splitlines()) == 1
    assert load_config([toml(tmp_path, "\ufeffseed = 5")]).seed == 5


def test_files_that_extend_one_another_without_end(tmp_path: Path) -> None:
    first = toml(tmp_path, 'extends = "b.toml"', "a.toml")
    toml(tmp_path, 'extends = "a.toml"', "b.toml")
    assert refusal([first]) == f"{first}: extends itself through {tmp_path / 'b.toml'}: remove one extends"
    for number in range(12):
        toml(tmp_path, f'extends = "{number + 1}.toml"', f"{number}.toml")
    toml(tmp_path, "seed = 1", "12.toml")
    assert "more than 8 configs extend one another" in refusal([str(tmp_path / "0.toml")])
    assert load_config([str(tmp_path / "6.toml")]).seed == 1


def test_a_mistake_in_an_extended_file_names_that_file(tmp_path: Path) -> None:
    base = toml(tmp_path, "sed = 1", "base.toml")
    assert refusal([toml(tmp_path, 'extends = "base.toml"')]).startswith(f'{base}: unknown key "sed"')
    assert refusal([toml(tmp_path, 'extends = "defualt"')]).startswith('"defualt" is not a shipped')


# Fuzz: only UserError escapes, with one line, and no key is ignored -----------------------------------------

KEYS = st.one_of(
    st.sampled_from([*known_keys(), "train", "method.tau", "method.name", "extends", "lr"]),
    st.text(max_size=12),
)
VALUES = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(
        ["none", "auto", "true", "[]", "[1, 2]", '["a {}"]', "{a=1}", '"x"', "1e-4", "'", "[[1]]"]
    ),
    st.sampled_from(["given", "all", "bf16", "cpu", "gcl", "random", "fixed", "domain-incremental"]),
)
TOKENS = st.one_of(st.builds("{}={}".format, KEYS, VALUES), st.text(max_size=12))


def loads_or_refuses(tokens: list[str]) -> Config | None:
    try:
        return load_config(tokens)
    except UserError as error:
        message = str(error)
    assert len(message.splitlines()) == 1, message
    return None


@settings(max_examples=300, deadline=None)
@given(st.lists(TOKENS, max_size=4))
@example(["cifar100"])  # A shipped config; found among the names in the source.
def test_fuzzed_command_lines(tokens: list[str]) -> None:
    config = loads_or_refuses(tokens)
    if config is not None:
        assert all(is_override(token) or token in shipped() for token in tokens)
        assert round_trip(config) == config


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzz.toml"


PLAIN = st.recursive(
    st.one_of(
        st.none().map(lambda _: "none"),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(
    values=st.dictionaries(st.sampled_from([*known_keys(), "train", "method.tau", "x"]), PLAIN, max_size=4)
)
def test_fuzzed_files(values: dict[str, object], scratch: Path) -> None:
    nested: dict[str, object] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            inner = nested.setdefault(section, {})
            if isinstance(inner, dict):
                inner[name] = value
        else:
            nested.setdefault(section, value)
    scratch.write_text(tomli_w.dumps(nested), encoding="utf-8")
    config = loads_or_refuses([str(scratch)])
    if config is not None:
        assert "x" not in nested
        assert round_trip(config) == config


@settings(max_examples=500, deadline=None)
@given(place=st.integers(0, 10_000), gone=st.integers(0, 3), new=st.text(max_size=3))
def test_mutated_files(place: int, gone: int, new: str, scratch: Path) -> None:
    text = dump(load_config(["method.tau=0.1", "train.clip_norm=none"]))
    place %= len(text)
    mutated = text[:place] + new + text[place + gone :]
    scratch.write_bytes(mutated.encode("utf-8", "surrogatepass"))
    loads_or_refuses([str(scratch)])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_files_of_random_bytes(scratch: Path, data: bytes) -> None:
    scratch.write_bytes(data)
    loads_or_refuses([str(scratch)])
