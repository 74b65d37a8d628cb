//! Checks that what a case names exists. Otherwise a misspelt name would be denied, and a case that expects a denial would
//! pass for the wrong reason.

use std::collections::BTreeSet;

use crate::bundle::Bundle;
use crate::model::answer::{Gate, Reason};
use crate::model::fault::Fault;
use crate::model::fault::code::Code;
use crate::model::right::{Right, RightOn};
use crate::model::roles::Roles;
use crate::model::source::Source;
use crate::model::text::known;
use crate::workbench::tables::form::{Case, File, Fixtures, Names};

/// Returns the faults of all cases.
pub(super) fn check(bundle: &Bundle, fixtures: &Fixtures, files: &[(Source, File)]) -> Vec<Fault> {
    let Some(roles) = &bundle.roles else { return vec![] };
    let mut faults = vec![];
    for (source, file) in files {
        let mut seen = BTreeSet::new();
        for case in &file.cases {
            let names = CaseNames { bundle, roles, fixtures, source, case };
            faults.extend(names.faults());
            if !seen.insert(&case.name) {
                faults.push(names.fault(&case.name, format!("another case of the file is named \"{}\"", case.name)));
            }
        }
    }
    faults
}

struct CaseNames<'a> {
    bundle: &'a Bundle,
    roles: &'a Roles,
    fixtures: &'a Fixtures,
    source: &'a Source,
    case: &'a Case,
}

impl CaseNames<'_> {
    fn faults(&self) -> Vec<Fault> {
        let (case, roles) = (self.case, self.roles);
        let mut faults = self.empty_lists();
        if case.name.is_empty() {
            faults.push(self.fault("cases", "a case has no `name`".to_owned()));
        }
        if !case.expect.says_something() {
            faults.push(self.fault(&case.name, "`expect` expects nothing".to_owned()));
        }
        if case.unknown {
            return faults;
        }
        let entities = [
            ("caller", &case.caller, &roles.tool_service),
            ("agent", &case.agent, &roles.agent),
            ("supervisor", &case.supervisor, &roles.supervisor),
            ("reviewer", &case.reviewer, &roles.supervisor),
        ];
        for (member, names, kind) in entities {
            let all: Vec<&str> = self.bundle.policies.ids(kind).collect();
            faults.extend(self.missing(member, listed(names), &all, kind));
        }
        let steps: Vec<&str> = self.bundle.policies.shapes.choices(&roles.step).iter().map(String::as_str).collect();
        faults.extend(self.missing("step", listed(&case.step), &steps, &roles.step));
        let scopes = self.bundle.policies.shapes.entities.get(&roles.agent);
        let scopes =
            scopes.and_then(|agent| agent.attributes.get("scopes")).map_or(&[][..], |scopes| scopes.shape.choices());
        let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
        faults.extend(self.missing("scopes", &case.scopes, &scopes, "scope"));
        let actions: Vec<&str> = self.bundle.policies.shapes.actions.keys().map(String::as_str).collect();
        faults.extend(self.missing("action", &case.action.0, &actions, "action"));
        let resources: Vec<&str> = self.fixtures.resources.keys().map(String::as_str).collect();
        faults.extend(self.missing("case", &case.case.0, &resources, "fixture"));
        let on = case.action.0.first().and_then(|action| Right::from_name(action)).filter(|_| case.case.0.is_empty());
        match on.map(Right::on) {
            // The id of the server is the name of its environment.
            Some(RightOn::Server) => {}
            Some(RightOn::Tenant) => {
                let tenants: Vec<&str> = self.bundle.policies.ids(&roles.tenant).collect();
                faults.extend(self.missing("resource", listed(&case.resource), &tenants, &roles.tenant));
            }
            Some(RightOn::Approval) | None => {
                faults.extend(self.missing("resource", listed(&case.resource), &resources, "fixture"));
            }
        }
        faults.extend(self.unknown_expectations());
        let contexts: Vec<&str> = self.fixtures.contexts.keys().map(String::as_str).collect();
        faults.extend(self.missing("context", &case.context, &contexts, "context of the fixtures"));
        faults
    }

    /// An expectation that no answer can meet.
    fn unknown_expectations(&self) -> Vec<Fault> {
        let expect = &self.case.expect;
        let reasons: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        let gates: Vec<&str> = Gate::ALL.iter().map(|gate| gate.name()).collect();
        let one = |name: &Option<String>| name.iter().filter(|name| !name.is_empty()).cloned().collect::<Vec<_>>();
        let mut faults = self.missing("expect: reason", &one(&expect.reason), &reasons, "reason");
        faults.extend(self.missing("expect: gate", &one(&expect.gate), &gates, "gate"));
        faults
    }

    /// An empty list multiplies the case by nothing.
    fn empty_lists(&self) -> Vec<Fault> {
        let case = self.case;
        let lists = [
            ("caller", &case.caller),
            ("agent", &case.agent),
            ("supervisor", &case.supervisor),
            ("step", &case.step),
            ("resource", &case.resource),
            ("reviewer", &case.reviewer),
        ];
        let empty = lists.into_iter().filter(|(_, names)| names.as_ref().is_some_and(|names| names.0.is_empty()));
        empty
            .map(|(member, _)| self.fault(&case.name, format!("`{member}` is an empty list: the case decides nothing")))
            .collect()
    }

    fn missing(&self, member: &str, names: &[String], all: &[&str], kind: &str) -> Vec<Fault> {
        let unknown = names.iter().filter(|name| !all.contains(&name.as_str()));
        let message = |name: &String| {
            let known = known(name, all.iter().copied());
            format!("case \"{}\": `{member}` names `{name}`, which is no {kind}{known}", self.case.name)
        };
        let help = "write `unknown: true` into a case that names something unknown on purpose";
        unknown.map(|name| self.fault(name, message(name)).help(help)).collect()
    }

    fn fault(&self, name: &str, message: String) -> Fault {
        let at = self.source.find(self.case.written_name()).unwrap_or((0, 0)).0;
        let within = self.source.text.get(at..).and_then(|rest| rest.find(name)).map_or(at, |found| at + found);
        Fault::new(Code::TestsInvalid, self.source, (within, name.len()), message)
    }
}

fn listed(names: &Option<Names>) -> &[String] {
    names.as_ref().map_or(&[], |names| &names.0)
}
