//! Where etcd is and how to log in. Pure data; whoever reads files and flags fills it in.

use super::ConnectError;
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use std::time::Duration;

/// How to reach etcd.
#[derive(Clone)]
pub struct Config {
    /// Client URLs of members, `http://host:port` or `https://host:port`. At least one; all of them is better, because calls go
    /// round those that answer.
    pub endpoints: Vec<String>,
    /// Name and password, where etcd's authentication is on.
    pub user: Option<(String, String)>,
    /// Needed for `https`.
    pub tls: Option<Tls>,
    /// Longest wait for one answer. Default 2 s, 100 ms to a third of the lease's time to live: three attempts at a renewal must
    /// fit into it.
    pub call_timeout: Duration,
    /// Longest wait for a first answer. Default 30 s.
    pub start_timeout: Duration,
}

/// Certificates, PEM.
#[derive(Clone)]
pub struct Tls {
    /// Authority that signed etcd's certificate.
    pub ca: Vec<u8>,
    /// Own certificate and key, where etcd wants to know its clients.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Shows no password and no key.
impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("endpoints", &self.endpoints)
            .field("user", &self.user.as_ref().map(|(name, _)| name))
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Without login or TLS.
    #[must_use]
    pub fn plain(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            user: None,
            tls: None,
            call_timeout: Duration::from_secs(2),
            start_timeout: Duration::from_secs(30),
        }
    }

    pub(super) fn options(&self) -> Result<ConnectOptions, ConnectError> {
        let refuse = |why: String| Err(ConnectError::Config(why));
        if self.endpoints.is_empty() {
            return refuse("no endpoint is given".to_owned());
        }
        for endpoint in &self.endpoints {
            match (endpoint.strip_prefix("http://"), endpoint.strip_prefix("https://")) {
                (Some(_), _) if self.tls.is_some() => {
                    return refuse(format!("{endpoint} is not https, but certificates are given"));
                }
                (_, Some(_)) if self.tls.is_none() => {
                    return refuse(format!(
                        "{endpoint} needs the certificate of the authority that signed etcd's"
                    ));
                }
                (Some(_), _) | (_, Some(_)) => {}
                (None, None) => return refuse(format!("`{endpoint}` is no http:// or https:// URL")),
            }
        }
        // Pings find a peer that is gone without a word; a member without leader says so instead of keeping calls.
        let mut options = ConnectOptions::new()
            .with_keep_alive(self.call_timeout, self.call_timeout)
            .with_keep_alive_while_idle(false)
            .with_connect_timeout(self.call_timeout)
            .with_require_leader(true);
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        if let Some(tls) = &self.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                with = with.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(with);
        }
        Ok(options)
    }

    pub(super) fn no_answer(&self, error: String) -> ConnectError {
        ConnectError::NoAnswer { endpoints: self.endpoints.join(", "), error }
    }
}
