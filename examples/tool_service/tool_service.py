"""A policy enforcement point (PEP): a billing service that asks Countersign before each call. See docs/pep.md.

Reads one JSON request a line from standard input and answers with one line each:
  {"op": "call", "operation", "action", "case", "arguments", "delegation", "agent_certificate"}   a tool call of an agent
  {"op": "ask", "operation", "justification"}                                                      asks a human, after a denial
  {"op": "state"}                                                                                  returns the state of the service
"""
import argparse
import itertools
import json
import pathlib
import sys
import tempfile

import grpc
import grpc_tools
from grpc_tools import protoc

arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
arguments.add_argument("--server", action="append", required=True, help="HOST:PORT; may be repeated: replicas are asked in turn")
arguments.add_argument("--proto", default="proto", help="folder of Countersign's .proto files")
arguments.add_argument("--ca", help="PEM file of the server's authorities; without it, the client uses plaintext to a development server")
arguments.add_argument("--certificate", help="PEM file of this service's X.509-SVID")
arguments.add_argument("--private-key", help="PEM file of its key")
arguments = arguments.parse_args()

out = tempfile.mkdtemp()
names = [f"{arguments.proto}/countersign/v1/{name}.proto" for name in ("decision", "approval")]
include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
assert protoc.main(["", f"-I{arguments.proto}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}", *names]) == 0
sys.path.insert(0, out)
from countersign.v1 import approval_pb2, approval_pb2_grpc, decision_pb2, decision_pb2_grpc  # noqa: E402

FACTS = {"customer": "customer-1", "product": "phone", "region": "eu", "policy_set": "standard", "currency": "EUR",
         "status": "open", "refund_status": "none", "identity_check": "none", "fraud_check": "none"}
TICKET = "My phone does not charge any more. Can you credit me?"


def connect(server):
    if not arguments.ca:
        return grpc.insecure_channel(server)
    read = [pathlib.Path(path).read_bytes() for path in (arguments.ca, arguments.private_key, arguments.certificate)]
    return grpc.secure_channel(server, grpc.ssl_channel_credentials(*read))


class Billing:
    """The tool, with one case and one account. Only `credit` changes the account."""

    def __init__(self):
        channels = [connect(server) for server in arguments.server]
        self.decisions = itertools.cycle([decision_pb2_grpc.DecisionServiceStub(channel) for channel in channels])
        self.approvals = itertools.cycle([approval_pb2_grpc.ApprovalServiceStub(channel) for channel in channels])
        self.version, self.credited = 3, 0
        self.denials = {}    # denials by operation
        self.requested = {}  # approval ids by operation
        self.decided = {}    # token and case version by operation, because a retry must be the same call
        self.done = {}       # results by idempotency key

    def authorize(self, call, token, version):
        """Asks Countersign before each call, and caches nothing. An error, a missing answer or an unknown field is a denial."""
        attributes = {"tenant": "acme", "customer": "customer-1"}
        request = decision_pb2.AuthorizeRequest(
            delegation=decision_pb2.Delegation(token=call["delegation"],
                                               agent_certificate_sha256=bytes.fromhex(call.get("agent_certificate", ""))),
            action=call["action"],
            resource=decision_pb2.Resource(ref=decision_pb2.EntityReference(type="Account", id="account-1"),
                                           attributes_json=json.dumps(attributes).encode()),
            # Send the service's own view of the case, never the agent's.
            case=decision_pb2.Case(id=call["case"], version=str(version), tenant="acme", attributes_json=json.dumps(FACTS).encode()),
            arguments_json=json.dumps(call["arguments"]).encode(),
            approval_token=token, operation_id=call["operation"] if token else "",
            # Send the customer's new text to be screened with the call, because a write needs a screening of
            # this version of the case.
            untrusted=[decision_pb2.UntrustedText(source="ticket.body", text=TICKET)],
            model=decision_pb2.Model(name="example"))
        return next(self.decisions).Authorize(request, timeout=10)

    def call(self, call):
        approval = self.requested.get(call["operation"])
        token, decided_on = self.decided.get(call["operation"], ("", self.version))
        if approval and not token:
            # The token is addressed to this service, and the agent must never see it.
            token = next(self.approvals).GetApproval(approval_pb2.GetApprovalRequest(id=approval), timeout=10).token
        answer = self.authorize(call, token, decided_on)
        if answer.decision != decision_pb2.DECISION_ALLOW or answer.mode != decision_pb2.MODE_ENFORCE:
            self.denials[call["operation"]] = answer
            # The agent may know only this much.
            return {"allowed": False, "reason": answer.reason_user, "next": decision_pb2.NextAction.Name(answer.next_action)}
        self.decided[call["operation"]] = token, decided_on
        fields = None
        for obligation in answer.obligations:
            if obligation.type == "return_only":
                fields = obligation.properties["value"].split(",")
            elif obligation.type == "route":
                print(f"route to {obligation.properties['value']}", file=sys.stderr)
            else:
                self.report(answer, decision_pb2.OUTCOME_STATUS_NOT_EXECUTED)
                return {"allowed": False, "reason": "This action is not permitted.", "next": "NEXT_ACTION_NONE"}
        if call.get("interleaved"):
            self.version += 1  # simulates a change of the case while the decision is on its way
        result = self.credit(call["arguments"], decided_on, answer.approval.id or answer.evaluation_id)
        status = decision_pb2.OUTCOME_STATUS_SUCCEEDED if result else decision_pb2.OUTCOME_STATUS_NOT_EXECUTED
        self.report(answer, status)
        if not result:
            return {"allowed": False, "reason": "The case has changed. Read it again.", "next": "NEXT_ACTION_RETRY"}
        return {"allowed": True, "result": {name: result[name] for name in fields or result if name in result}}

    def credit(self, given, decided_on, key):
        """Credits an amount once for each key, and only if the case still has the version that was decided on (compare and set)."""
        if key not in self.done and decided_on == self.version:
            self.version, self.credited = self.version + 1, self.credited + given["amount_minor"]
            self.done[key] = {"credited": given["amount_minor"], "balance": self.credited}
        return self.done.get(key)

    def report(self, answer, status):
        if answer.repeated:
            return  # already reported with the first answer
        outcome = decision_pb2.ReportOutcomeRequest(evaluation_id=answer.evaluation_id, outcome_token=answer.outcome_token, status=status)
        next(self.decisions).ReportOutcome(outcome, timeout=10)

    def ask(self, ask):
        denial = self.denials[ask["operation"]]
        request = approval_pb2.RequestApprovalRequest(evaluation_id=denial.evaluation_id, binding_token=denial.access_request.binding_token,
                                                      justification=approval_pb2.Justification(**ask["justification"]))
        approval = next(self.approvals).RequestApproval(request, timeout=10).approval
        self.requested[ask["operation"]] = approval.id
        return {"requested": approval.id}

    def state(self, _):
        return {"credited": self.credited, "version": self.version, "executions": len(self.done)}


billing = Billing()
for line in sys.stdin:
    asked = json.loads(line)
    try:
        answered = {"call": billing.call, "ask": billing.ask, "state": billing.state}[asked["op"]](asked)
    except grpc.RpcError as error:
        answered = {"allowed": False, "error": error.code().name}
    print(json.dumps(answered), flush=True)
