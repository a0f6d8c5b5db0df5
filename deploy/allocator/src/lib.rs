//! The allocator of the server's process: `process` names it, says how long it keeps what was freed, and in pages of what size.

mod process;

pub use process::set_up;
