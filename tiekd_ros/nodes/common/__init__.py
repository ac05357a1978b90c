"""What the nodes share: lifecycle, parameters, messages, QoS, diagnostics."""
