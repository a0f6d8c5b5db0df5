//! A stored entry as REST shows it: the payload uncompressed as body, its metadata as `X-Pulsar-*` headers.

use super::api::StoredEntry;
use super::response::{Answer, RestError};
use super::time::iso_utc;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use geminga_proto::payload::parse_payload;
use geminga_proto::pulsar::{CompressionType, MessageMetadata};
use prost::Message as _;
use std::collections::BTreeMap;
use std::io::Read as _;

/// Most bytes a payload may unfold to: the metadata's word is not trusted.
const UNCOMPRESSED_BYTES_MAX: usize = 64 << 20;
/// Window of 8 MiB, which the format recommends every decoder to support.
const ZSTD_WINDOW_LOG_MIN: u32 = 23;

/// The answer for an entry.
pub(super) fn show(entry: &StoredEntry) -> Answer {
    let damaged = |what: &str| {
        RestError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("message {} is not readable: {what}", entry.position),
        )
    };
    let parts = parse_payload(entry.bytes.clone()).map_err(|error| damaged(&error.to_string()))?;
    let metadata = MessageMetadata::decode(parts.metadata()).map_err(|error| damaged(&error.to_string()))?;
    let encrypted = !metadata.encryption_keys.is_empty();
    let body = if encrypted {
        parts.payload().to_vec()
    } else {
        unfold(&metadata, parts.payload()).map_err(|e| damaged(&e))?
    };
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in describe(entry, &metadata, encrypted) {
        // Header values hold no control characters; such a name or key is shown with marks in their place.
        let safe: String = value.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        if let Ok(value) = HeaderValue::from_bytes(safe.as_bytes()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(response)
}

fn describe(entry: &StoredEntry, metadata: &MessageMetadata, encrypted: bool) -> Vec<(&'static str, String)> {
    let properties: BTreeMap<&str, &str> =
        metadata.properties.iter().map(|pair| (pair.key.as_str(), pair.value.as_str())).collect();
    let compression = CompressionType::try_from(metadata.compression.unwrap_or(0));
    let mut list = vec![
        ("x-pulsar-message-id", entry.position.to_string()),
        ("x-pulsar-property", serde_json::to_string(&properties).unwrap_or_default()),
        ("x-pulsar-publish-time", iso_utc(metadata.publish_time)),
        ("x-pulsar-is-encrypted", encrypted.to_string()),
        ("x-pulsar-producer-name", metadata.producer_name.clone()),
        ("x-pulsar-sequence-id", metadata.sequence_id.to_string()),
        (
            "x-pulsar-compression",
            compression.map_or_else(|_| "UNKNOWN".to_owned(), |c| c.as_str_name().to_uppercase()),
        ),
        ("x-pulsar-uncompressed-size", metadata.uncompressed_size.unwrap_or(0).to_string()),
        (
            "x-pulsar-partition-key-b64-encoded",
            metadata.partition_key_b64_encoded.unwrap_or(false).to_string(),
        ),
    ];
    let mut also = |name, value: Option<String>| list.extend(value.map(|value| (name, value)));
    also("x-pulsar-event-time", metadata.event_time.filter(|ms| *ms != 0).map(iso_utc));
    also(
        "x-pulsar-deliver-at-time",
        metadata.deliver_at_time.and_then(|ms| u64::try_from(ms).ok()).map(iso_utc),
    );
    also("x-pulsar-partition-key", metadata.partition_key.clone());
    also("x-pulsar-num-batch-message", metadata.num_messages_in_batch.map(|n| n.to_string()));
    also("x-pulsar-replicated-from", metadata.replicated_from.clone());
    also("x-pulsar-base64-schema-version", metadata.schema_version.as_deref().map(base64));
    also("x-pulsar-null-value", metadata.null_value.map(|flag| flag.to_string()));
    also("x-pulsar-chunk-id", metadata.chunk_id.map(|n| n.to_string()));
    also("x-pulsar-num-chunks-from-msg", metadata.num_chunks_from_msg.map(|n| n.to_string()));
    also("x-pulsar-total-chunk-msg-size", metadata.total_chunk_msg_size.map(|n| n.to_string()));
    also("x-pulsar-uuid", metadata.uuid.clone());
    list
}

fn unfold(metadata: &MessageMetadata, payload: &[u8]) -> Result<Vec<u8>, String> {
    let size = metadata.uncompressed_size.unwrap_or(0) as usize;
    let kind = CompressionType::try_from(metadata.compression.unwrap_or(0))
        .map_err(|_| "unknown compression".to_owned())?;
    // A chunk of a large message is compressed as a whole: one chunk alone cannot be unfolded.
    if kind == CompressionType::None || metadata.num_chunks_from_msg.is_some_and(|n| n > 1) {
        return Ok(payload.to_vec());
    }
    if size > UNCOMPRESSED_BYTES_MAX {
        return Err(format!("claims to unfold to {size} bytes"));
    }
    let mut out = Vec::new();
    let bound = size as u64 + 1;
    match kind {
        CompressionType::None => {}
        CompressionType::Lz4 => {
            // The whole claim is allocated at once; a byte gives 255 at best.
            if size / 255 > payload.len() {
                return Err(format!("claims to unfold {} bytes to {size}", payload.len()));
            }
            out = lz4_flex::block::decompress(payload, size).map_err(|e| e.to_string())?
        }
        CompressionType::Snappy => {
            let claimed = snap::raw::decompress_len(payload).map_err(|e| e.to_string())?;
            if claimed != size || claimed / 64 > payload.len() {
                return Err(format!("claims to unfold {} bytes to {claimed}", payload.len()));
            }
            out = snap::raw::Decoder::new().decompress_vec(payload).map_err(|e| e.to_string())?;
        }
        CompressionType::Zlib => {
            let reader = flate2::read::ZlibDecoder::new(payload);
            reader.take(bound).read_to_end(&mut out).map_err(|e| e.to_string())?;
        }
        CompressionType::Zstd => {
            let mut reader = zstd::stream::read::Decoder::new(payload).map_err(|e| e.to_string())?;
            // The window is allocated by the frame's word, before any byte: no more than the payload can need, but what every
            // decoder must take.
            let window = size.next_power_of_two().trailing_zeros().max(ZSTD_WINDOW_LOG_MIN);
            reader.window_log_max(window).map_err(|e| e.to_string())?;
            reader.take(bound).read_to_end(&mut out).map_err(|e| e.to_string())?;
        }
    }
    if out.len() == size { Ok(out) } else { Err(format!("unfolds to {} bytes instead of {size}", out.len())) }
}

/// Standard base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|i| u32::from(chunk.get(i).copied().unwrap_or(0)));
        let bits = a << 16 | b << 8 | c;
        for i in 0..4 {
            let sign = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= chunk.len() { sign } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(kind: CompressionType, size: usize, payload: &[u8]) -> Result<Vec<u8>, String> {
        let metadata = MessageMetadata {
            compression: Some(kind as i32),
            uncompressed_size: Some(size as u32),
            ..MessageMetadata::default()
        };
        unfold(&metadata, payload)
    }

    /// A payload that the most is made of is shown, and a claim that no payload of that length could meet is refused before it is
    /// allocated.
    #[test]
    fn a_claim_is_not_allocated_before_it_is_believed() {
        let plain = vec![7; 8 << 20];
        let packed = [
            (CompressionType::Lz4, lz4_flex::block::compress(&plain)),
            (CompressionType::Snappy, snap::raw::Encoder::new().compress_vec(&plain).unwrap()),
            (CompressionType::Zstd, zstd::bulk::compress(&plain, 19).unwrap()),
        ];
        for (kind, payload) in packed {
            assert_eq!(claims(kind, plain.len(), &payload).as_ref(), Ok(&plain), "{kind:?}");
            let lie = claims(kind, UNCOMPRESSED_BYTES_MAX, &payload[..payload.len().min(64)]);
            assert!(lie.is_err(), "{kind:?}");
        }
        let word = |kind, payload: &[u8]| claims(kind, UNCOMPRESSED_BYTES_MAX, payload).unwrap_err();
        assert!(word(CompressionType::Lz4, &[0x1f, 7, 1, 0]).starts_with("claims"));
        // Snappy's own claim of 64 MiB, and nothing behind it.
        assert!(word(CompressionType::Snappy, &[0x80, 0x80, 0x80, 0x20]).starts_with("claims"));
        // A zstd frame with a window of 2 GiB.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
        let refused = claims(CompressionType::Zstd, 1000, &frame).unwrap_err();
        assert!(refused.contains("requires too much memory"), "{refused}");
    }
}
