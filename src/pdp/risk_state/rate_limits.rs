//! Windows of `rates.yaml` that cover a call. Calls are counted in the risk store when they are made; sums
//! are reserved in the state store when a call is allowed, so that no amount is lost and no sum exceeded.

use crate::approvals::store::error::StoreError;
use crate::approvals::store::sums::Sum;
use crate::approvals::store::transitions::Reservation;
use crate::json::Value;
use crate::model::call::Call;
use crate::model::chain::Chain;
use crate::pdp::risk_state::RiskState;
use crate::pdp::snapshot::Moment;
use crate::policy::shape::Action;
use crate::rates::{CallRate, Most, Per, Rates, SumRate, covers};
use crate::risk_store::{Acquire, Observation, Tenant};

/// Returns the call windows that cover an action, by name, with their rules and the operation that counts one more call
/// in each.
pub(in crate::pdp) fn acquires<'r>(
    rates: &'r Rates,
    action: &Action,
    tenant: Tenant,
    per: impl Fn(Per) -> String,
) -> Vec<(&'r str, &'r CallRate, Acquire)> {
    let covering = rates.calls.iter().filter(|(_, rate)| covers(&rate.actions, action));
    covering
        .map(|(name, rate)| {
            let apart: Vec<String> = rate.per.iter().map(|of| per(*of)).collect();
            let whose: Vec<&str> = std::iter::once(name.as_str()).chain(apart.iter().map(String::as_str)).collect();
            let acquire = Acquire { key: tenant.key("rate", &whose), every: rate.every(), room: rate.room() };
            (name.as_str(), rate, acquire)
        })
        .collect()
}

/// Returns the windows of distinct items that cover an action, by name, and the operation that adds the
/// call's item to each.
pub(in crate::pdp) fn observations<'r>(
    rates: &'r Rates,
    action: &Action,
    tenant: Tenant,
    per: impl Fn(Per) -> String,
) -> Vec<(&'r str, Observation)> {
    let covering = rates.distinct.iter().filter(|(_, rate)| covers(&rate.actions, action));
    covering
        .map(|(name, rate)| {
            let apart: Vec<String> = rate.per.iter().map(|of| per(*of)).collect();
            let whose: Vec<&str> = std::iter::once(name.as_str()).chain(apart.iter().map(String::as_str)).collect();
            let item = tenant.key("item", &[&per(rate.of)]).short();
            (
                name.as_str(),
                Observation {
                    key: tenant.key("distinct", &whose),
                    item: Some(item),
                    within: rate.micros(),
                    most: Some(rate.most),
                },
            )
        })
        .collect()
}

/// Returns the maximum of a sum for this call. If it is an attribute that the resource lacks, nothing is
/// allowed.
fn most(most: &Most, call: &Call) -> i64 {
    match most {
        Most::Fixed(most) => *most,
        Most::Resource { resource } => {
            match call.resource.attributes.as_ref().and_then(|attributes| attributes.get(resource)) {
                Some(Value::Integer(most)) => *most,
                Some(_) | None => 0,
            }
        }
    }
}

/// Returns the amount that a call adds to a sum. The schema requires the argument. A negative one reduces
/// nothing.
fn amount(rate: &SumRate, call: &Call) -> i64 {
    match call.arguments.get(&rate.argument) {
        _ if rate.argument.is_empty() => 1,
        Some(Value::Integer(amount)) => (*amount).max(0),
        Some(_) | None => i64::MAX,
    }
}

impl RiskState {
    /// Returns the sums that cover a call, and the amounts that it would add to them.
    pub(in crate::pdp) fn reservations(&self, moment: &Moment, chain: &Chain, call: &Call) -> Vec<Reservation> {
        let seen = self.seen_sums(moment, chain, call).into_iter();
        seen.filter(|reservation| reservation.amount > 0).collect()
    }

    /// Returns the sums that cover a call or that its policies see, and the amounts that it would add to
    /// them.
    fn seen_sums(&self, moment: &Moment, chain: &Chain, call: &Call) -> Vec<Reservation> {
        let bundle = &moment.snapshot.bundle;
        let Some(action) = bundle.policies.shapes.actions.get(&call.action) else { return vec![] };
        let tenant = Tenant::of(&self.options.environment, &call.case.tenant);
        let sums = bundle.rules.rates.sums.iter();
        sums.filter(|(_, rate)| covers(&rate.actions, action) || covers(&rate.seen_by, action))
            .map(|(name, rate)| {
                // An argument that separates sums may have any type, so its canonical form is used.
                let argument = |name: &String| {
                    String::from_utf8_lossy(&crate::json::canonical(&call.arguments.get(name))).into_owned()
                };
                let apart: Vec<String> = rate
                    .per
                    .iter()
                    .map(|of| of.of(chain, call, bundle.case_owner(&call.case)).to_owned())
                    .chain(rate.apart.iter().map(argument))
                    .collect();
                let whose: Vec<&str> = std::iter::once(name.as_str()).chain(apart.iter().map(String::as_str)).collect();
                let key = tenant.key("sum", &whose).to_string();
                let amount = if covers(&rate.actions, action) { amount(rate, call) } else { 0 };
                Reservation { window: name.clone(), key, amount, most: most(&rate.most, call), within: rate.within() }
            })
            .collect()
    }

    /// Returns the sums that cover a call or that its policies see, as they would be with it.
    pub(in crate::pdp) async fn sums(
        &self,
        moment: &Moment,
        chain: &Chain,
        call: &Call,
    ) -> Result<Vec<Sum>, StoreError> {
        let reservations = self.seen_sums(moment, chain, call);
        if reservations.is_empty() {
            return Ok(vec![]);
        }
        self.store.sums_with(reservations, moment.now).await
    }
}
