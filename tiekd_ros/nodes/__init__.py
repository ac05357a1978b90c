"""ROS nodes: the only room that imports rclpy or message packages."""
