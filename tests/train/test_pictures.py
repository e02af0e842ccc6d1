"""What the model learns to see: drawn as said, brought to size as by the engine, evaluation apart from training."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from tokenizers import Tokenizer

import qwench
from qwench.config import ModelConfig
from qwench.media.image import fit
from qwench.media.settings import Caps, VisionSettings
from qwench.train import model as models
from qwench.train.data import pictures, seeing
from qwench.train.data.mix import SEEING, SEEN, Mixture
from qwench.train.data.sample import held_out
from qwench.train.encode import FREE, NOTHING, PAD, SAYINGS, encode, look

NANO = Path(qwench.__file__).parent / "assets" / "nano"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(NANO / "tokenizer.json"))


@pytest.mark.parametrize("kind", sorted(seeing.KINDS))
def test_a_seed_decides_everything(kind: str) -> None:
    first, second = ([seeing.seen(rng, False, kind) for _ in range(5)] for rng in (Random(4), Random(4)))
    assert first == second
    assert first[0].drawings != first[1].drawings


@pytest.mark.parametrize("kind", sorted(seeing.KINDS))
def test_training_sees_what_the_engine_will(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = ModelConfig.from_folder(NANO)
    assert config.vision is not None
    files = models.side_files(models.configuration(models.Sizes(), tokenizer), tokenizer)
    (tmp_path / "preprocessor_config.json").write_text(files["preprocessor_config.json"], encoding="utf-8")
    settings = VisionSettings.from_folder(tmp_path, config.vision)
    rng = Random(2)
    for _ in range(30):
        drawing = seeing.seen(rng, False, kind).drawings[0]
        shown, media = look(drawing), fit(drawing.picture, settings, Caps())
        assert np.array_equal(shown.pixels, media.pixels[0])
        assert len(shown.caption) == media.tokens


@pytest.mark.parametrize("kind", sorted(seeing.KINDS))
def test_everything_lies_inside_and_has_a_middle_of_its_own(kind: str) -> None:
    rng = Random(3)
    for _ in range(60):
        drawing = seeing.seen(rng, False, kind).drawings[0]
        width, height = drawing.picture.size
        for _, (left, top, right, bottom) in drawing.boxes:
            assert -1 <= left < right <= width + 1
            assert -1 <= top < bottom <= height + 1
        found = pictures.labels(drawing)
        assert found.shape == tuple(2 * side for side in pictures.grid_of(drawing.picture.size))
        if kind == "shapes":
            assert int(((found > 0) & (found % 2 == 0)).sum()) == len(drawing.boxes)


def test_shapes_do_not_touch_and_are_counted() -> None:
    rng = Random(5)
    for _ in range(100):
        drawing = seeing.shapes(rng, (256, 128), False)
        boxes = [box for _, box in drawing.boxes]
        assert drawing.caption[0] == str(len(boxes))
        for index, one in enumerate(boxes):
            for other in boxes[:index]:
                assert max(one[0], other[0]) > min(one[2], other[2]) or max(one[1], other[1]) > min(one[3], other[3])


def test_the_tallest_bar_has_the_colour_that_is_told() -> None:
    rng = Random(6)
    for _ in range(50):
        drawing = seeing.bars(rng, (256, 128), False)
        left, top, right, _ = min((box for _, box in drawing.boxes), key=lambda box: box[1])
        colour = drawing.picture.getpixel((int((left + right) / 2), int(top) + 2))
        assert colour == pictures.COLOURS[drawing.caption[1] or ""]


def test_numbers_and_words_of_evaluation_are_never_trained() -> None:
    rng = Random(7)
    for draw, shortest in ((seeing.a_number, 3), (seeing.a_word, 1)):
        trained = {draw(rng, False) for _ in range(3000)}
        asked = {draw(rng, True) for _ in range(300)}
        assert not {said for said in trained & asked if len(said) >= shortest}
    assert all(held_out("seen", said) for said in (seeing.a_word(rng, True) for _ in range(50)))


def test_a_picture_has_as_many_placeholders_as_tokens_and_words_are_spelled(tokenizer: Tokenizer) -> None:
    rng, pad = Random(8), tokenizer.token_to_id(PAD)
    for _ in range(20):
        sample = seeing.seen(rng, False, "word")
        row = encode(tokenizer, sample)
        (shown,) = row.shown
        count = len(shown.caption)
        assert row.ids[shown.first : shown.first + count] == [pad] * count
        assert sum(token == pad for token in row.ids) == count
        answer = [token for token, learnt in zip(row.ids, row.learn, strict=True) if learnt]
        word = sample.messages[-1]["content"]
        assert tokenizer.decode(answer) == word
        assert len(answer) == len(word) + 1
        assert [SAYINGS[at] for at in shown.caption if at != NOTHING] == list(word)


def test_a_free_row_is_neither_a_word_nor_nothing() -> None:
    rng = Random(9)
    shown = next(
        look(one) for one in iter(lambda: seeing.shapes(rng, (128, 64), False), None) if one.caption[1] is None
    )
    assert shown.caption[1] == FREE
    assert shown.caption[2] == NOTHING


def test_a_face_that_is_not_installed_is_drawn_in_pillows_own() -> None:
    assert pictures.font("NoSuchFace.ttf", 20).getname() == pictures.font("", 20).getname()


def test_the_mixture_has_every_kind(tokenizer: Tokenizer) -> None:
    assert SEEN.keys() <= SEEING.keys()
    mixture = Mixture(Random(0), lambda sample: len(encode(tokenizer, sample).ids), dict.fromkeys(SEEN, 1.0))
    rng = Random(1)
    assert {mixture.draw(rng).skill for _ in range(60)} == SEEN.keys()
