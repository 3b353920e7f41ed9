"""What a config asks of a model, once the model is known: settled in full, or refused in words that name the key."""

from typing import Any

import pytest
from holdfast.errors import ConfigError
from holdfast.models.registry import WINDOW, Letters, Output, Prepared
from holdfast.spool.job import Request, make_request

LETTERS = Letters({"A": 5, "C": 6}, 3, 0, 2)


def prepared(**changed: Any) -> Prepared:
    """A model like ESM-2, but for what was changed."""
    facts: dict[str, Any] = {
        "family": "esm",
        "alphabet": "protein",
        "architecture": {},
        "layers": 6,
        "width": 8,
        "letters": LETTERS,
        "start_tokens": 1,
        "end_tokens": 1,
        "start_is_cls": True,
        "mean_of": "residues",
        "max_length": None,
        "long": "whole",
        "source": "synthetic:x",
        "source_sha256": "b" * 64,
        "weights_sha256": "a" * 64,
        "synthetic": True,
        "verification": {},
    }
    return Prepared(**facts | changed)


ROTARY = prepared()
LEARNED = prepared(max_length=1022, long="window")
T5 = prepared(family="t5", start_tokens=0, start_is_cls=False)
DNA = prepared(family="mosaic_bert", alphabet="nucleotide", letters=None, max_length=100_000, long="refuse")


def request(model: Prepared, **asked: Any) -> Request:
    """What comes of options, of which those not named are left to their defaults."""
    return make_request("m", model, {"layers": ["last"], "pooling": ["mean"], "long": None, "max_length": None} | asked)


@pytest.mark.parametrize(
    ("model", "long", "max_length"),
    [(ROTARY, "whole", 0), (LEARNED, "window", 1022), (T5, "whole", 0), (DNA, "refuse", 100_000)],
)
def test_by_default_the_mean_of_the_last_layer_and_the_policy_of_the_model(
    model: Prepared, long: str, max_length: int
) -> None:
    assert request(model) == Request("a" * 64, [Output(6, "mean")], long, max_length)


def test_layers_and_poolings_are_multiplied_and_each_is_there_once() -> None:
    found = request(ROTARY, layers=["last", 0, 6, 3], pooling=["residues", "mean", "max"])
    wanted = [Output(layer, pooling) for layer in (0, 3, 6) for pooling in ("max", "mean", "residues")]
    assert found == Request("a" * 64, wanted, "whole", 0)
    same = request(ROTARY, layers=[3, 6, 0], pooling=["max", "residues", "mean"])
    assert same == found, "the order in which they are asked for gave another job"


@pytest.mark.parametrize(
    ("model", "asked", "long", "max_length"),
    [
        (ROTARY, {"long": "window"}, "window", WINDOW),
        (ROTARY, {"long": "window", "max_length": 50}, "window", 50),
        (ROTARY, {"long": "truncate", "max_length": 50}, "truncate", 50),
        (ROTARY, {"long": "refuse", "max_length": 50}, "refuse", 50),
        (T5, {"long": "window"}, "window", WINDOW),
        (LEARNED, {"max_length": 50}, "window", 50),
        (LEARNED, {"max_length": 1022}, "window", 1022),
        (LEARNED, {"long": "truncate"}, "truncate", 1022),
        (LEARNED, {"long": "refuse"}, "refuse", 1022),
        (LEARNED, {"long": "truncate", "max_length": 50}, "truncate", 50),
        (DNA, {"max_length": 200_000}, "refuse", 200_000),  # ALiBi knows no limit
        (DNA, {"long": "truncate"}, "truncate", 100_000),
        (DNA, {"long": "truncate", "max_length": 50}, "truncate", 50),
        (DNA, {"long": "whole"}, "whole", 0),
    ],
)
def test_a_policy_and_a_length_that_the_model_can_take_are_kept(
    model: Prepared, asked: dict[str, Any], long: str, max_length: int
) -> None:
    assert request(model, **asked) == Request("a" * 64, [Output(6, "mean")], long, max_length)


def test_1022_is_the_window_where_nothing_says_otherwise() -> None:
    assert WINDOW == 1022


POSITIONS = "models.m: the model has positions for 1022 letters; choose long: window, truncate or refuse"
NO_LENGTH = "needs models.m.max_length, as the model has no limit of its own"
MEANINGLESS = "models.m.max_length: means nothing for whole sequences; choose long: window, truncate or refuse"


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        (ROTARY, {"layers": [7]}, "models.m.layers: 7 is beyond the model, whose layers are 0 to 6"),
        (ROTARY, {"layers": ["last", 0, 33, 8]}, "models.m.layers: 33 is beyond the model, whose layers are 0 to 6"),
        (LEARNED, {"long": "whole"}, POSITIONS),
        (LEARNED, {"max_length": 1023}, POSITIONS),
        *((LEARNED, {"long": long, "max_length": 1023}, POSITIONS) for long in ("window", "truncate", "refuse")),
        (
            DNA,
            {"long": "window"},
            "models.m.long: window needs a model of letters, this one has tokens of several; choose another",
        ),
        (ROTARY, {"long": "truncate"}, f"models.m.long: truncate {NO_LENGTH}"),
        (ROTARY, {"long": "refuse"}, f"models.m.long: refuse {NO_LENGTH}"),
        (ROTARY, {"max_length": 500}, MEANINGLESS),
        (DNA, {"long": "whole", "max_length": 500}, MEANINGLESS),
        (
            ROTARY,
            {"pooling": ["mean", "cls"], "long": "window"},
            "models.m.pooling: cls makes no sense where long is window; leave it out",
        ),
        (LEARNED, {"pooling": ["cls"]}, "models.m.pooling: cls makes no sense where long is window; leave it out"),
        (
            T5,
            {"pooling": ["cls"]},
            "models.m.pooling: cls makes no sense for family t5, without such a token; leave it out",
        ),
    ],
)
def test_what_makes_no_sense_for_the_model_is_refused(model: Prepared, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        request(model, **asked)
    assert str(caught.value) == message


def test_cls_is_taken_where_sequences_are_whole_and_begin_with_it() -> None:
    for asked in ({}, {"long": "truncate", "max_length": 50}, {"long": "refuse", "max_length": 50}):
        assert request(ROTARY, pooling=["cls"], **asked).outputs == [Output(6, "cls")]
    assert request(LEARNED, pooling=["cls"], long="truncate").outputs == [Output(6, "cls")]
