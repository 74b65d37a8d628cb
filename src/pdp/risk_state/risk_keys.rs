//! The keys under which the risk store has the history of a call, and the batches that are executed before
//! and after the decision.

use smol_str::SmolStr;

use crate::model::call::Call;
use crate::model::chain::Chain;
use crate::pdp::redacted_values::repeats_key;
use crate::risk::{DENIALS, PROVOKED_DENIALS, RiskRules, UNSAFE_DRAFTS};
use crate::risk_store::{Acquire, Batch, Change, Key, Observation, Tenant, Update};

/// Names in the memory of a case that mark a version as screened, and as having text that could not be
/// screened.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct VersionNames {
    pub(in crate::pdp) screened: SmolStr,
    pub(in crate::pdp) unscreened: SmolStr,
}

/// Keys of the entries that concern a call.
#[derive(Clone, Debug)]
pub(in crate::pdp) struct RiskKeys {
    pub(in crate::pdp) tenant: Tenant,
    pub(in crate::pdp) case: Key,
    version: VersionNames,
    /// Memory of the agent on the case.
    pair: Key,
    /// Memory of the agent for the customer.
    customer: Key,
    /// Distinct cases and resources of the agent, and its denied actions. These are counted per tool service,
    /// so that denials that one tool service causes do not affect calls through another.
    pub(in crate::pdp) agent: [Key; 3],
    /// The same counters of the supervisor.
    pub(in crate::pdp) supervisor: [Key; 3],
    items: [u64; 3],
    /// The tool service, whose part of the tenant's table the entries belong to.
    pub(in crate::pdp) by: Key,
}

/// Subjects of a call in the risk store; members may be empty.
#[derive(Clone, Copy, Debug)]
pub(in crate::pdp) struct RiskSubject<'a> {
    pub(in crate::pdp) tenant: &'a str,
    pub(in crate::pdp) case: &'a str,
    pub(in crate::pdp) case_version: &'a str,
    pub(in crate::pdp) customer: &'a str,
    pub(in crate::pdp) agent: &'a str,
    pub(in crate::pdp) supervisor: &'a str,
    pub(in crate::pdp) tool_service: &'a str,
    pub(in crate::pdp) action: &'a str,
    pub(in crate::pdp) resource: (&'a str, &'a str),
}

impl<'a> RiskSubject<'a> {
    /// Creates a subject with a tenant and nothing else.
    pub(in crate::pdp) fn nobody(tenant: &'a str) -> Self {
        Self {
            tenant,
            case: "",
            case_version: "",
            customer: "",
            agent: "",
            supervisor: "",
            tool_service: "",
            action: "",
            resource: ("", ""),
        }
    }

    pub(in crate::pdp) fn of(tenant: &'a str, chain: &'a Chain, call: &'a Call, customer: &'a str) -> Self {
        let reference = &call.resource.reference;
        Self {
            tenant,
            case: &call.case.id,
            case_version: &call.case.version,
            customer,
            agent: &chain.agent,
            supervisor: &chain.supervisor,
            tool_service: &chain.tool_service,
            action: &call.action,
            resource: (&reference.kind, &reference.id),
        }
    }
}

/// Returns the key that identifies a tool service's part of a tenant's table.
pub(in crate::pdp) fn by(tenant: Tenant, tool_service: &str) -> Key {
    tenant.key("tool-service", &[tool_service])
}

impl RiskKeys {
    pub(in crate::pdp) fn of(environment: &str, subject: RiskSubject<'_>) -> Self {
        let tenant = Tenant::of(environment, subject.tenant);
        let breadth = |of: &str, id: &str| {
            let [cases, resources] = ["cases", "resources"].map(|what| tenant.key(of, &[what, id]));
            [cases, resources, denied_key(tenant, of, id, subject.tool_service)]
        };
        let item = |parts: &[&str]| tenant.key("item", parts).short();
        // The name is short enough to be stored inline.
        let version = |what: &str| SmolStr::new(format!("{what}:{:016x}", item(&["version", subject.case_version])));
        Self {
            tenant,
            case: tenant.key("case", &[subject.case]),
            version: VersionNames { screened: version("s"), unscreened: version("u") },
            pair: tenant.key("case-agent", &[subject.case, subject.agent]),
            customer: tenant.key("customer-agent", &[subject.customer, subject.agent]),
            agent: breadth("agent", subject.agent),
            supervisor: breadth("supervisor", subject.supervisor),
            by: by(tenant, subject.tool_service),
            items: [
                item(&[subject.case]),
                item(&[subject.resource.0, subject.resource.1]),
                item(&[subject.case, subject.action]),
            ],
        }
    }

    /// Names that mark this version in the case's memory.
    pub(in crate::pdp) fn version(&self) -> &VersionNames {
        &self.version
    }

    /// Returns the batch to execute before the decision. It counts the call in every window that covers it,
    /// and its case and resource as distinct items. Memories are read only if a policy reads them.
    pub(in crate::pdp) fn before(&self, risk: Option<&RiskRules>, reads: bool, acquires: Vec<Acquire>) -> Batch {
        let mut batch = Batch { acquires, by: Some(self.by), ..Batch::default() };
        if let Some(risk) = risk {
            let within = risk.probing.micros();
            let [case, resource, _] = self.items;
            for [cases, resources, denied] in [self.agent, self.supervisor] {
                batch.observations.push(Observation { key: cases, item: Some(case), within, most: None });
                batch.observations.push(Observation { key: resources, item: Some(resource), within, most: None });
                if reads {
                    batch.observations.push(Observation { key: denied, item: None, within, most: None });
                }
            }
            if reads {
                batch.reads = vec![self.case, self.pair, self.customer];
            }
        }
        batch
    }

    /// Returns the batch that deletes everything stored about the named subjects, when a human clears it.
    pub(in crate::pdp) fn forget<'s>(
        &self,
        subject: RiskSubject<'_>,
        tool_services: impl Iterator<Item = &'s str>,
    ) -> Batch {
        let named = |names: &[&str], keys: &[Key]| {
            if names.iter().any(|name| name.is_empty()) { vec![] } else { keys.to_vec() }
        };
        let mut deletes = named(&[subject.case], &[self.case, repeats_key(self.tenant, subject.case)]);
        deletes.extend(named(&[subject.case, subject.agent], &[self.pair]));
        deletes.extend(named(&[subject.customer, subject.agent], &[self.customer]));
        deletes.extend(named(&[subject.agent], &self.agent));
        deletes.extend(named(&[subject.supervisor], &self.supervisor));
        for tool_service in tool_services {
            let denied = |of: &str, id: &str| denied_key(self.tenant, of, id, tool_service);
            deletes.extend(named(&[subject.agent], &[denied("agent", subject.agent)]));
            deletes.extend(named(&[subject.supervisor], &[denied("supervisor", subject.supervisor)]));
        }
        Batch { deletes, ..Batch::default() }
    }

    /// Returns the batch that adds the outcome of a call after the decision.
    pub(in crate::pdp) fn after(&self, risk: &RiskRules, happened: &CallOutcome) -> Batch {
        let mut batch = Batch { by: Some(self.by), ..Batch::default() };
        let add = |key: Key, name: &str| {
            let factor = risk.factor(name)?;
            Some(Update {
                key,
                name: name.into(),
                change: Change::Add { step: factor.micros(), reach: factor.reach() },
            })
        };
        if happened.probing && happened.hostile {
            // The case's text provoked the denial, so it counts only for the agent with this customer.
            batch.updates.extend(add(self.customer, PROVOKED_DENIALS));
        } else if happened.probing {
            let within = risk.probing.micros();
            let [_, _, denied] = self.items;
            for [_, _, key] in [Some(self.agent), happened.supervised.then_some(self.supervisor)].into_iter().flatten()
            {
                batch.observations.push(Observation { key, item: Some(denied), within, most: None });
            }
        }
        if !happened.reads_case {
            return batch;
        }
        if happened.probing && !happened.hostile {
            batch.updates.extend(add(self.pair, DENIALS));
        }
        batch.updates.extend(happened.kinds.iter().filter_map(|kind| add(self.case, kind)));
        if happened.unsafe_draft {
            batch.updates.extend(add(self.case, UNSAFE_DRAFTS));
        }
        let versions = [(&self.version.screened, happened.screened), (&self.version.unscreened, happened.unscreened)];
        for (name, _) in versions.into_iter().filter(|(_, is)| *is) {
            let change = Change::For(i64::from(risk.screening_minutes) * 60_000_000);
            batch.updates.push(Update { key: self.case, name: name.clone(), change });
        }
        batch
    }
}

/// Returns the key of a principal's denied actions through one tool service.
fn denied_key(tenant: Tenant, of: &str, id: &str, tool_service: &str) -> Key {
    tenant.key(of, &["denied", id, tool_service])
}

/// Outcome of a call, as far as it is stored.
#[derive(Clone, Debug, Default)]
pub(in crate::pdp) struct CallOutcome {
    pub(in crate::pdp) probing: bool,
    /// Whether the supervisor belongs to the agent's tenant.
    pub(in crate::pdp) supervised: bool,
    pub(in crate::pdp) hostile: bool,
    pub(in crate::pdp) reads_case: bool,
    pub(in crate::pdp) kinds: Vec<String>,
    pub(in crate::pdp) unsafe_draft: bool,
    pub(in crate::pdp) screened: bool,
    pub(in crate::pdp) unscreened: bool,
}
