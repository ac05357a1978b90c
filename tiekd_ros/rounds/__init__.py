"""Rounds on the robot: select frames, train beside inference, judge, promote, evaluate again."""
