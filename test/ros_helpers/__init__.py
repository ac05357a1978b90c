"""What the ROS tests share: a peer that talks to the nodes, nodes in threads, processes."""
