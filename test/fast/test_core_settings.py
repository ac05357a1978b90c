"""A setting that cannot work is refused with its name, its value and what would do."""

import dataclasses
import math

import pytest

from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.settings import Settings, setting, setting_info


@dataclasses.dataclass(frozen=True)
class Engine(Settings):
    speed: float = setting(1.5, "how fast", unit="m/s", minimum=0.5, maximum=3.0)
    gears: int = setting(5, "how many", minimum=1)
    tilt: float = setting(0.0, "how steep", unit="rad", maximum=0.5)
    ratio: float = setting(1.0, "any number")
    fuel: str = setting("gas", "what it burns", choices=("gas", "oil"))
    loud: bool = setting(False, "whether it may roar")


def refusal(**values) -> str:
    with pytest.raises(InvalidSettingError) as caught:
        Engine(**values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": "fast"}, "speed must be float, got 'fast' (str)"),
        ({"speed": True}, "speed must be float, got True (bool)"),
        ({"gears": 2.0}, "gears must be int, got 2.0 (float)"),
        ({"gears": True}, "gears must be int, got True (bool)"),
        ({"loud": 1}, "loud must be bool, got 1 (int)"),
        ({"fuel": None}, "fuel must be str, got None (NoneType)"),
    ],
)
def test_a_value_of_another_type_is_refused(values, message):
    assert refusal(**values) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": 0.4}, "speed must be between 0.5 and 3 m/s, got 0.4"),
        ({"speed": 3.5}, "speed must be between 0.5 and 3 m/s, got 3.5"),
        ({"gears": 0}, "gears must be at least 1, got 0"),
        ({"tilt": 0.6}, "tilt must be at most 0.5 rad, got 0.6"),
        ({"speed": math.nan}, "speed must be between 0.5 and 3 m/s, got nan"),
        ({"ratio": math.nan}, "ratio must be a finite number, got nan"),
        ({"ratio": math.inf}, "ratio must be a finite number, got inf"),
        ({"tilt": -math.inf}, "tilt must be at most 0.5 rad, got -inf"),
        ({"fuel": "coal"}, "fuel must be one of 'gas', 'oil', got 'coal'"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_would_do(values, message):
    assert refusal(**values) == message


def test_the_ends_of_a_range_belong_to_it():
    assert Engine(speed=0.5).speed == 0.5
    assert Engine(speed=3.0, gears=1, tilt=0.5).speed == 3.0


def test_a_whole_number_does_for_a_float_and_becomes_one():
    speed = Engine(speed=2).speed
    assert (speed, type(speed)) == (2.0, float)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InvalidSettingError, match=r"unknown setting 'sped': known are speed, ge"):
        Engine.from_mapping({"sped": 1.0})


def test_settings_survive_a_round_trip_through_plain_values():
    engine = Engine(speed=2.0, fuel="oil")
    assert Engine.from_mapping(engine.as_dict()) == engine


def test_replacing_a_value_checks_it_again():
    with pytest.raises(InvalidSettingError, match="gears"):
        dataclasses.replace(Engine(), gears=-1)


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Engine().speed = 2.0


def test_a_refusal_is_a_user_error():
    assert issubclass(InvalidSettingError, TiekdError)


def test_every_setting_of_the_product_fits_its_own_range_and_is_described():
    from tiekd_ros.framelog import FrameLogSettings, LabellerSettings
    from tiekd_ros.nodes.common.settings import CameraSettings, DepthSettings
    from tiekd_ros.rounds.plan import RoundPlan
    from tiekd_ros.student.architecture import InputSize
    from tiekd_ros.student.bins import DepthBins
    from tiekd_ros.teacher.client import ClientSettings
    from tiekd_ros.teacher.label_source import UploadSettings
    from tiekd_ros.teacher.protocol import AnswerChecks
    from tiekd_ros.teacher.settings import ServerSettings
    from tiekd_ros.teacher.trust import TrustSettings
    from tiekd_ros.worlds import WorldSettings

    kinds = [FrameLogSettings, LabellerSettings, CameraSettings, DepthSettings, DepthBins]
    kinds += [InputSize, ClientSettings, ServerSettings, WorldSettings]
    kinds += [AnswerChecks, TrustSettings, UploadSettings]
    for kind in [*kinds, *RoundPlan.groups().values()]:
        kind()
        for field in dataclasses.fields(kind):
            assert len(setting_info(field).description) > 8, f"{kind.__name__}.{field.name}"
            assert "\n" not in setting_info(field).description
