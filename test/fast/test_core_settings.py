"""A setting that cannot work is refused with its name, its value and what would do."""

import dataclasses
import math

import pytest

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting, setting_info


@dataclasses.dataclass(frozen=True)
class Engine(Settings):
    speed: float = setting(1.5, "how fast", unit="m/s", minimum=0.5, maximum=3.0)
    gears: int = setting(5, "how many", minimum=1)
    tilt: float = setting(0.0, "how steep", unit="rad", maximum=0.5)
    ratio: float = setting(1.0, "any number")
    fuel: str = setting("gas", "what it burns", choices=("gas", "oil"))
    loud: bool = setting(False, "whether it may roar")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"speed": "fast"}, "speed must be float, got 'fast' (str)"),
        ({"speed": True}, "speed must be float, got True (bool)"),
        ({"gears": 2.0}, "gears must be int, got 2.0 (float)"),
        ({"gears": True}, "gears must be int, got True (bool)"),
        ({"loud": 1}, "loud must be bool, got 1 (int)"),
        ({"fuel": None}, "fuel must be str, got None (NoneType)"),
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
def test_a_value_of_another_type_or_out_of_range_is_refused_with_what_would_do(values, message):
    with pytest.raises(InvalidSettingError) as caught:
        Engine(**values)
    assert str(caught.value) == message


def test_the_ends_of_a_range_belong_to_it_and_a_whole_number_does_for_a_float():
    assert Engine(speed=0.5).speed == 0.5
    assert Engine(speed=3.0, gears=1, tilt=0.5).speed == 3.0
    speed = Engine(speed=2).speed
    assert (speed, type(speed)) == (2.0, float)


def test_settings_survive_a_round_trip_and_are_checked_again_when_a_value_is_replaced():
    engine = Engine(speed=2.0, fuel="oil")
    assert Engine.from_mapping(engine.as_dict()) == engine
    with pytest.raises(InvalidSettingError, match=r"unknown setting 'sped': known are speed, ge"):
        Engine.from_mapping({"sped": 1.0})
    with pytest.raises(InvalidSettingError, match="gears"):
        dataclasses.replace(engine, gears=-1)


def test_every_setting_of_the_product_fits_its_own_range_and_is_described():
    from tiekd_ros.nodes.common.parameter_groups import NODE_SETTINGS
    from tiekd_ros.student.architecture import InputSize
    from tiekd_ros.student.bins import DepthBins
    from tiekd_ros.teacher.settings import ServerSettings
    from tiekd_ros.worlds import WorldSettings

    kinds = {kind for groups in NODE_SETTINGS.values() for kind in groups.values()}
    for kind in (*kinds, DepthBins, InputSize, ServerSettings, WorldSettings):
        kind()
        for field in dataclasses.fields(kind):
            assert len(setting_info(field).description) > 8, f"{kind.__name__}.{field.name}"
            assert "\n" not in setting_info(field).description
