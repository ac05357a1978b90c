"""The teacher's side of the wire: protocol, client, server and backends. No ROS, no student."""
