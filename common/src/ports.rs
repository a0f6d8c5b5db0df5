//! Free TCP ports for processes that come back on the same one, such as those of `geminga cluster`.
//!
//! A port that the kernel gives for 0 is one of those it also gives to outgoing connections. While a process is down
//! any connection of the machine may hold its port, and the process cannot come back. These are taken from below.
#![allow(clippy::disallowed_methods)] // real sockets and the kernel's own settings: nothing of it is simulated

use crate::rng::Rng;
use std::net::TcpListener;

/// First port that is considered; services of the system are below.
const FIRST: u16 = 10_000;
/// The least ports there must be between `FIRST` and the kernel's own.
const LEAST: u16 = 1_000;
/// Ports tried before the kernel is asked.
const TRIES: usize = 200;

/// First of the ports that outgoing connections take.
fn outgoing() -> u16 {
    // What Linux starts with, for other systems.
    const USUAL: u16 = 32_768;
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(USUAL)
}

fn listen(rng: &mut Rng, end: u16) -> std::io::Result<TcpListener> {
    if end >= FIRST + LEAST {
        for _ in 0..TRIES {
            let port = FIRST + u16::try_from(rng.below(u64::from(end - FIRST))).expect("it is below a port");
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
                return Ok(listener);
            }
        }
    }
    TcpListener::bind(("127.0.0.1", 0))
}

/// Ports of the loopback that nobody listens on now, all different, and that no outgoing connection takes where the
/// kernel leaves at least 1 000 of them between 10 000 and its own.
///
/// # Errors
/// The kernel has none.
pub fn free<const N: usize>() -> std::io::Result<[u16; N]> {
    let (mut rng, end) = (Rng::from_system(), outgoing());
    // All are held until all are known, so that none comes twice.
    let listeners: Vec<TcpListener> =
        (0..N).map(|_| listen(&mut rng, end)).collect::<std::io::Result<_>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ_and_no_outgoing_connection_takes_them() {
        let ports = free::<64>().unwrap();
        let different: std::collections::HashSet<u16> = ports.iter().copied().collect();
        assert_eq!(different.len(), ports.len());
        if outgoing() >= FIRST + LEAST {
            assert!(
                ports.iter().all(|port| (FIRST..outgoing()).contains(port)),
                "{ports:?} from {}",
                outgoing()
            );
        }
    }

    #[test]
    fn the_kernel_is_asked_where_it_leaves_too_few() {
        let listener = listen(&mut Rng::from_system(), FIRST + LEAST - 1).unwrap();
        assert!(listener.local_addr().unwrap().port() >= outgoing());
    }
}
