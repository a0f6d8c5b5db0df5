//! Stories for each rule, and random lives of subscriptions checked against a plain model.

mod model;
mod random;
mod stories;
