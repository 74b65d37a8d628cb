"""A tool service's side of one allowed, one denied and one malformed call. Usage: client.py HOST:PORT"""

import json
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc

out = tempfile.mkdtemp()
include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
files = ["proto/countersign/v1/decision.proto", "proto/countersign/v1/admin.proto"]
assert protoc.main(["protoc", "-Iproto", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}", *files]) == 0
sys.path.insert(0, out)
from countersign.v1 import decision_pb2 as pb  # noqa: E402
from countersign.v1 import decision_pb2_grpc as rpc  # noqa: E402

CASE = {"customer": "customer-1", "product": "phone", "region": "eu", "policy_set": "standard", "currency": "EUR",
        "status": "open", "refund_status": "none", "identity_check": "none", "fraud_check": "none"}
ORDER = {"tenant": "acme", "customer": "customer-1", "currency": "EUR", "paid_minor": 9000, "refunded_minor": 0}


def call(step="enrichment", order=ORDER, tenant="acme"):
    return pb.AuthorizeRequest(
        request_id="python-1",
        delegation=pb.Delegation(asserted=pb.AssertedChain(agent="support-bot", supervisor="rep-1", step=step)),
        action="order.check",
        resource=pb.Resource(ref=pb.EntityReference(type="Order", id="order-1"), attributes_json=json.dumps(order).encode()),
        case=pb.Case(id="case-1", version="3", tenant=tenant, attributes_json=json.dumps(CASE).encode()),
    )


channel = grpc.insecure_channel(sys.argv[1])
stub = rpc.DecisionServiceStub(channel)

allowed = stub.Authorize(call(), timeout=10)
assert allowed.decision == pb.DECISION_ALLOW, allowed
assert allowed.mode == pb.MODE_ENFORCE and allowed.request_id == "python-1", allowed
assert [o.type for o in allowed.obligations] == ["return_only"], allowed
assert allowed.audit.log == "countersign/development" and allowed.policy.digest.startswith("sha256:"), allowed

denied = stub.Authorize(call(step="intake"), timeout=10)
assert denied.decision == pb.DECISION_DENY and denied.reason == pb.REASON_STEP_NOT_ALLOWED, denied
foreign = stub.Authorize(call(tenant="globex"), timeout=10)
assert foreign.decision == pb.DECISION_DENY and foreign.reason == pb.REASON_NOT_PERMITTED, foreign

try:
    stub.Authorize(call(order={**ORDER, "paid_minor": "nine thousand"}), timeout=10)
    raise SystemExit("a malformed call was answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    assert error.details() == "`resource.attributes_json.paid_minor` is not an integer", error.details()

database = ProtoReflectionDescriptorDatabase(channel)
assert "countersign.v1.DecisionService" in database.get_services(), database.get_services()

print("allowed, denied, malformed, reflected: as expected")
