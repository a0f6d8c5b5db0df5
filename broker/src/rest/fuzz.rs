//! Entry points of fuzz runs: what of REST is a pure function over bytes from outside.

use super::api::StoredEntry;
use super::{message, request};
use bytes::Bytes;
use geminga_common::ids::{EntryId, LedgerId, Position};
use geminga_common::names::Domain;

/// Shows a stored entry as the peek and examine requests do, compressed payloads unfolded. Whether it could be shown.
#[must_use]
pub fn show(entry: Bytes) -> bool {
    let position = Position::new(LedgerId(1), EntryId(0));
    message::show(&StoredEntry { position, bytes: entry }).is_ok()
}

/// Reads a text as every kind of name that stands in a path.
pub fn path_names(text: &str) {
    // Either answer is right; what is held to is that a name that was taken can be taken again as it prints.
    if let Ok(tenant) = request::tenant_of(text) {
        assert_eq!(request::tenant_of(tenant.as_str()).ok(), Some(tenant));
    }
    let (tenant, local) = text.split_once('/').unwrap_or(("public", text));
    if let Ok(namespace) = request::namespace_of(tenant, local)
        && let Ok(topic) = request::topic_of(Domain::Persistent, namespace.clone(), text)
    {
        let again = request::topic_of(Domain::Persistent, namespace, &topic.local_encoded());
        assert_eq!(again.ok(), Some(topic));
    }
    let _either = request::subscription_of(text);
    let _number = request::number::<u32>(text);
}
