"""Offline training on data sets: recipes, the loop, snapshots, curves, several devices.

Needs the extra `train` (accelerate, tensorboard). Rounds on the robot use
`tiekd_ros.rounds.trainer`, which shares its steps with this.
"""
