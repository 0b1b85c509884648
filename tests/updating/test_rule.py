from __future__ import annotations

from dataclasses import replace

from everclip.updating.rule import Facts, decide

USUAL = Facts(
    old=10, new=5, again=0, images=100, per_class=20, exemplars=4, summed=1.0, layers=True, zero_shot=0.3
)


def test_layers_are_preferred_and_training_tried() -> None:
    found = decide(USUAL, "auto")
    assert (found.prefer, found.train, found.method) == ("layers", True, "gcl")
    older = decide(replace(USUAL, layers=False), "auto")
    assert older.prefer == "ridge"
    assert any("only its embeddings" in line for line in older.why)
    assert found.steps == 20
    assert decide(replace(USUAL, images=1000), "auto").steps == 2 * 33  # 1040 images in batches of 32


def test_new_images_of_old_classes_are_fine_tuned() -> None:
    assert decide(replace(USUAL, new=0, again=5), "auto").method == "finetune"


def test_without_exemplars_new_classes_train_nothing() -> None:
    found = decide(replace(USUAL, exemplars=0.5), "auto")
    assert not found.train
    assert any("would forget these classes" in line for line in found.why)
    assert decide(replace(USUAL, exemplars=0, new=0), "auto").lr_share == 0.1
    assert decide(replace(USUAL, old=0, exemplars=0), "auto").train  # there is nothing to forget


def test_few_images_train_nothing() -> None:
    found = decide(replace(USUAL, images=19), "auto")
    assert not found.train
    assert any("19 new images" in line for line in found.why)


def test_where_old_classes_are_names_and_the_text_tower_is_right_it_stays() -> None:
    assert decide(replace(USUAL, summed=0.0, zero_shot=0.95), "auto").prefer == "nothing"
    assert decide(replace(USUAL, summed=0.0, zero_shot=0.5), "auto").prefer == "ridge"
    assert decide(replace(USUAL, zero_shot=0.95), "auto").prefer == "layers"


def test_a_choice_of_the_user_is_followed() -> None:
    found = decide(replace(USUAL, images=5), "interpolated")
    assert (found.prefer, found.train) == ("interpolated", True)
    assert not decide(USUAL, "means").train


def test_training_is_announced_only_where_it_happens() -> None:
    few = replace(USUAL, images=5)
    assert decide(USUAL, "auto").why[0] == "new classes: training uses gcl (docs/update.md says why)"
    for found in (decide(few, "auto"), decide(USUAL, "auto", keep=True), decide(USUAL, "means")):
        assert not found.train
        assert not any("training uses" in line for line in found.why)
    assert "training uses gcl" in decide(few, "trained").why[1]
