//! Address of the risk store's server.

use ::redis::RedisError;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// Some nodes of a cluster; the others are discovered.
    Cluster(Vec<String>),
    /// Addresses of the sentinels, and their name for the primary.
    Sentinel(Vec<String>, String),
    Single(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`windows.urls` is invalid: use `redis://host:port` or `rediss://host:port`, and set `windows.master` for sentinels"
)]
pub struct AddressError;

impl From<RedisError> for AddressError {
    fn from(_: RedisError) -> Self {
        Self
    }
}
