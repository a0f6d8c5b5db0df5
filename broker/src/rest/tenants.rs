//! Tenants.

use super::Rest;
use super::request::{Req, tenant_of};
use super::response::{Answer, RestError, done, ok};
use crate::namespace::{NamespaceError, Tenant};
use axum::http::Method;

pub(super) async fn route(rest: &Rest, req: &Req, path: &[&str]) -> Answer {
    match (&req.method, path) {
        (&Method::GET, []) => ok(&rest.namespaces.tenants()),
        (&Method::GET, [tenant]) => {
            let record = rest.namespaces.tenant(&tenant_of(tenant)?);
            ok(&*record.ok_or_else(|| RestError::not_found("Tenant does not exist"))?)
        }
        (&Method::PUT, [tenant]) => {
            let tenant = tenant_of(tenant)?;
            rest.namespaces.create_tenant(&tenant, &checked(rest, req)?).await?;
            done()
        }
        (&Method::POST, [tenant]) => {
            let tenant = tenant_of(tenant)?;
            rest.namespaces.update_tenant(&tenant, &checked(rest, req)?).await?;
            done()
        }
        (&Method::DELETE, [tenant]) => {
            if req.flag("force") {
                return Err(RestError::not_allowed("Broker doesn't allow forced deletion of tenants"));
            }
            match rest.namespaces.delete_tenant(&tenant_of(tenant)?).await {
                Err(NamespaceError::TenantNotFound(_)) => Err(RestError::not_found("Tenant doesn't exist")),
                other => other.map_err(RestError::from).and_then(|()| done()),
            }
        }
        (_, [] | [_]) => Err(RestError::not_allowed("Method Not Allowed")),
        _ => Err(RestError::not_found("Not Found")),
    }
}

fn checked(rest: &Rest, req: &Req) -> Result<Tenant, RestError> {
    let record: Option<Tenant> = req.body_as()?;
    let record = record.ok_or_else(|| RestError::precondition("TenantInfo is null"))?;
    if record.allowed_clusters.is_empty() {
        return Err(RestError::precondition("Clusters cannot be null"));
    }
    if record.allowed_clusters.iter().any(|cluster| *cluster != rest.namespaces.defaults().cluster) {
        return Err(RestError::precondition("Clusters do not exist"));
    }
    if record.admin_roles.iter().any(|role| role.trim().is_empty() || role.trim() != role) {
        return Err(RestError::precondition("AdminRoles contains whitespace in the beginning or end."));
    }
    Ok(record)
}
