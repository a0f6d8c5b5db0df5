//! Number forms that Pulsar's JSON reader accepts and its clients rely on: `5`, `"5"`, `5.9` (cut), `null` (0 or absent);
//! booleans also as `"true"`. One place, so that every body and every policy is read alike.

use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::Value;

/// The integer in a JSON value, by the reader's lenient rules; `None` when there is no number in it.
#[must_use]
pub fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Null => Some(0),
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().and_then(cut)),
        Value::String(s) => s.trim().parse::<i64>().ok(),
        _ => None,
    }
}

fn cut(number: f64) -> Option<i64> {
    // 2^63 is exact in f64: everything strictly inside fits.
    (number.is_finite() && number.abs() < 9_223_372_036_854_775_808.0).then_some(number as i64)
}

/// The boolean in a JSON value: `true`, `"true"`, `"True"`, `"TRUE"` and so on.
#[must_use]
pub fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(b) => Some(*b),
        Value::String(s) => match s.as_str() {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// For serde fields: an integer that fits the field's type.
///
/// # Errors
/// When there is no number or it does not fit.
pub fn int<'de, D: Deserializer<'de>, T: TryFrom<i64>>(deserializer: D) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = integer(&value).ok_or_else(|| D::Error::custom(format!("{value} is not a whole number")))?;
    T::try_from(number).map_err(|_| D::Error::custom(format!("{number} is out of range")))
}

/// For serde fields: an integer or nothing.
///
/// # Errors
/// When it is neither null nor a number that fits.
pub fn opt_int<'de, D: Deserializer<'de>, T: TryFrom<i64>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    if value.is_null() {
        return Ok(None);
    }
    let number = integer(&value).ok_or_else(|| D::Error::custom(format!("{value} is not a whole number")))?;
    T::try_from(number).map(Some).map_err(|_| D::Error::custom(format!("{number} is out of range")))
}

/// For serde fields: a value whose null means its default (`"properties": null`).
///
/// # Errors
/// When it is neither null nor readable.
pub fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
