"""What Ray Serve's gRPC ingress has to register: the Open Inference Protocol's service.

Ray imports `add_GRPCInferenceServiceServicer_to_server` by name in each of its proxies, and sends
requests on to the replicas pickled. tritonclient's messages were generated as top-level modules
and say that they come from `grpc_service_pb2` and `model_config_pb2`, which nobody can import, so
that every call would fail with a PicklingError. `register_messages`, called when this module is
imported, gives them these names.
"""

from __future__ import annotations

import sys

from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

__all__ = ["SERVICER", "add_GRPCInferenceServiceServicer_to_server", "register_messages"]

SERVICER = f"{__name__}.add_GRPCInferenceServiceServicer_to_server"
"""What stands in Serve's `grpc_servicer_functions`."""


def register_messages() -> None:
    """Let this process pickle and unpickle the protocol's messages."""
    sys.modules.setdefault("grpc_service_pb2", service_pb2)
    sys.modules.setdefault("model_config_pb2", model_config_pb2)


register_messages()
