"""What `tiekd` does without a robot: label, train and evaluate data sets. No ROS."""
