//! Which ledgers are due.
