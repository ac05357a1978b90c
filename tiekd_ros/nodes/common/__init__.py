"""Shared by the nodes: lifecycle, parameters, messages, quality of service, diagnostics."""
