//! The seed corpora, made from frames as clients write them and from the golden bytes of the formats. Small on purpose: they
//! show the fuzzer what is legal, and it finds the rest.
//!
//! What a seed is called is what it holds; running this again writes the same files.

use bytes::{Bytes, BytesMut};
use geminga_bookie_client::entry::{Entry, Header, Kind};
use geminga_bookie_client::grpc::{convert, table};
use geminga_bookie_client::quorum::QuorumSpec;
use geminga_bookie_client::record::{
    Fragment, LedgerAttributes, LedgerKind, LedgerRecord, LedgerState, OpId, RepairRange,
};
use geminga_bookie_client::rpc::{Add, BookieRef, IdRange, Replicate};
use geminga_broker::cursor::{CursorId, record};
use geminga_broker::managed_ledger::record::{encode_counter, encode_tombstone};
use geminga_broker::namespace::{Policies, Tenant, TopicRecord, encode};
use geminga_common::ids::{
    BookieId, EntryId, Incarnation, LedgerId, MessageIndex, OwnerEpoch, Term, TopicId,
};
use geminga_offload::format::TRAILER_LEN;
use geminga_offload::format::block::BLOCK_HEADER_LEN;
use geminga_offload::format::directory::{Directory, Row};
use geminga_offload::format::footer::{Footer, Trailer};
use geminga_offload::writer::Shape;
use geminga_proto::bookie as wire_bookie;
use geminga_proto::encode::{encode_command, encode_with_payload};
use geminga_proto::packed::Packed;
use geminga_proto::payload::encode_payload;
use geminga_proto::pulsar::base_command::Type;
use geminga_proto::pulsar::{
    self as wire, BaseCommand, KeyValue, MessageIdData, MessageMetadata, SingleMessageMetadata,
};
use prost::Message as _;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

/// A whole object of tiering, hex.
const OBJECT: &str = include_str!("../../../broker/offload/src/format/golden.txt");
/// One format per line, `name: hex`.
const GOLDEN: &str = include_str!("../../../bookie/src/format/golden.txt");

type Seeds = Vec<(String, Vec<u8>)>;

/// Writes all seeds under `corpus`.
///
/// # Panics
/// When the directory cannot be written.
pub fn write(corpus: &Path) {
    let all = [
        ("frames", frames()),
        ("messages", messages()),
        ("names", names()),
        ("records", records()),
        ("formats", formats()),
        ("objects", objects()),
        ("rpc", rpc()),
        ("store", noise(12, 60)),
        ("session", noise(16, 300)),
    ];
    for (target, seeds) in all {
        let dir = corpus.join(target);
        std::fs::create_dir_all(&dir).expect("the corpus can be written");
        for (name, bytes) in seeds {
            std::fs::write(dir.join(name), bytes).expect("the corpus can be written");
        }
    }
}

fn of(r#type: Type, fill: impl FnOnce(&mut BaseCommand)) -> Vec<u8> {
    let mut command = BaseCommand { r#type: r#type as i32, ..BaseCommand::default() };
    fill(&mut command);
    let mut out = BytesMut::new();
    encode_command(&command, &mut out);
    out.to_vec()
}

fn message_id() -> MessageIdData {
    MessageIdData {
        ledger_id: 3,
        entry_id: 300,
        batch_index: Some(1),
        ack_set: vec![-2],
        batch_size: Some(2),
        ..Default::default()
    }
}

fn metadata() -> MessageMetadata {
    MessageMetadata {
        producer_name: "p".into(),
        sequence_id: 1,
        publish_time: 1_700_000_000_000,
        partition_key: Some("k".into()),
        properties: vec![KeyValue { key: "a".into(), value: "b".into() }],
        schema_version: Some(Bytes::from_static(&[0; 8])),
        num_messages_in_batch: Some(2),
        ..Default::default()
    }
}

fn frames() -> Seeds {
    let connect =
        wire::CommandConnect { client_version: "c".into(), protocol_version: Some(21), ..Default::default() };
    let subscribe = wire::CommandSubscribe {
        topic: "t".into(),
        subscription: "s".into(),
        request_id: 2,
        ..Default::default()
    };
    let producer = wire::CommandProducer { topic: "t".into(), request_id: 1, ..Default::default() };
    let flow = wire::CommandFlow { consumer_id: 1, message_permits: 1000 };
    let ack =
        wire::CommandAck { message_id: vec![message_id(); 2], request_id: Some(3), ..Default::default() };
    let send =
        wire::CommandSend { producer_id: 1, sequence_id: 2, num_messages: Some(2), ..Default::default() };
    let mut sent = BytesMut::new();
    let command = BaseCommand { r#type: Type::Send as i32, send: Some(Box::new(send)), ..Default::default() };
    encode_with_payload(&command, &metadata(), &batch(), &mut sent);
    let mut seeds = vec![
        ("connect".to_owned(), of(Type::Connect, |c| c.connect = Some(Box::new(connect)))),
        ("subscribe".to_owned(), of(Type::Subscribe, |c| c.subscribe = Some(Box::new(subscribe)))),
        ("producer".to_owned(), of(Type::Producer, |c| c.producer = Some(Box::new(producer)))),
        ("flow".to_owned(), of(Type::Flow, |c| c.flow = Some(Box::new(flow)))),
        ("ack".to_owned(), of(Type::Ack, |c| c.ack = Some(Box::new(ack)))),
        ("send".to_owned(), sent.to_vec()),
        ("too-large".to_owned(), vec![0xff; 8]),
    ];
    // A connection's worth, and each command without its frame.
    let all = seeds.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let bare: Seeds = seeds
        .iter()
        .filter(|(_, b)| b.len() > 8)
        .map(|(n, b)| (format!("{n}-bare"), b[8..].to_vec()))
        .collect();
    seeds.push(("all".to_owned(), all));
    seeds.extend(bare);
    seeds
}

fn batch() -> Vec<u8> {
    let mut out = Vec::new();
    for payload in [&b"one"[..], b"two!"] {
        let metadata = SingleMessageMetadata { payload_size: payload.len() as i32, ..Default::default() };
        out.extend((metadata.encoded_len() as u32).to_be_bytes());
        out.extend(metadata.encode_to_vec());
        out.extend(payload);
    }
    out
}

fn kind(kind: u8, bytes: &[u8]) -> Vec<u8> {
    [&[kind], bytes].concat()
}

fn messages() -> Seeds {
    let plain = b"some text, some text, some text, some text".repeat(3);
    let zlib = {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&plain).and_then(|()| encoder.finish()).expect("a vector takes any bytes")
    };
    let packed = [
        (1, lz4_flex::block::compress(&plain)),
        (2, zlib),
        (3, zstd::bulk::compress(&plain, 3).expect("it is small")),
        (4, snap::raw::Encoder::new().compress_vec(&plain).expect("it is small")),
    ];
    let mut seeds = vec![
        ("metadata".to_owned(), kind(0, &metadata().encode_to_vec())),
        ("batch".to_owned(), kind(1, &[&2_i32.to_le_bytes()[..], &batch()].concat())),
        ("broker-entry".to_owned(), kind(3, &[0x08, 5, 0x10, 0xac, 0x02])),
    ];
    let mut whole = BytesMut::new();
    encode_payload(&metadata(), &batch(), &mut whole);
    seeds.push(("whole".to_owned(), kind(2, &whole)));
    seeds.push(("shown".to_owned(), kind(5, &whole)));
    for (number, payload) in packed {
        let claim = [&[number][..], &(plain.len() as u32).to_le_bytes(), &payload].concat();
        seeds.push((format!("compressed-{number}"), kind(4, &claim)));
    }
    seeds
}

fn names() -> Seeds {
    let texts = [
        "persistent://public/default/topic-partition-3",
        "non-persistent://t/n/a%2Fb+c",
        "public/default",
        "t/n/0x00000000_0x40000000",
        "a-partition-01",
        "ü-partition-4294967295",
        "t/public/public%2Fdefault/x~1",
        "b/bookie-1",
    ];
    texts.iter().enumerate().map(|(at, text)| (format!("text-{at}"), text.as_bytes().to_vec())).collect()
}

fn ledger() -> LedgerRecord {
    let bookie = BookieId::new("bookie-1").map(|id| BookieRef { id, incarnation: Incarnation(7) });
    LedgerRecord {
        id: LedgerId(300),
        term: Term(2),
        state: LedgerState::Closed { last: Some(EntryId(9)), length: 1000 },
        quorum: QuorumSpec::new(2, 2, 1).expect("2/2/1 is a quorum"),
        fragments: vec![
            Fragment { first: EntryId(0), ensemble: vec![bookie.clone(), None] },
            Fragment { first: EntryId(4), ensemble: vec![None, bookie] },
        ],
        repair: vec![RepairRange { first: EntryId(0), last: Some(EntryId(3)), slot: 1 }],
        attributes: Arc::new(LedgerAttributes {
            kind: LedgerKind::TopicData,
            owner: "p/n/t".into(),
            topic: TopicId(1),
            ordinal: 2,
            predecessor: Some(LedgerId(0)),
            owner_epoch: OwnerEpoch(3),
            first_index: MessageIndex(4),
        }),
        op_id: OpId(9),
    }
}

fn records() -> Seeds {
    let ledger = ledger();
    let closed = ledger.closed().expect("it is closed");
    let first_index = MessageIndex(3);
    let header = Header { kind: Kind::Messages, messages: 2, first_index, timestamp_ms: 4, bytes_before: 5 };
    // Create(1: topic 1, "s", ...) with holes as ranges and a part of a batch; see the table of the format.
    let create = [1, 1, 1, b's', 7, 1, 1, 1, b'k', 1, b'v', 0, 3, 4, 1, 3, 0, 4, 6, 2, 3, 1, 1, 3, 9, 4, 1];
    let create = [&create[..], &[5, 0, 0, 0, 0, 0, 0, 0]].concat();
    let log = [&[1, 1, create.len() as u8][..], &create, &[4, 1, 1, 7, 0, 9, 1, 0]].concat();
    let mut packer = record::Packer::default();
    packer.push(&record::Record::Properties(CursorId(1), [("a".to_owned(), "b".to_owned())].into()));
    packer.push(&record::Record::DeleteTopic(TopicId(300)));
    let packed = packer.finish().concat();
    vec![
        ("ledger".into(), kind(0, &ledger.encode())),
        ("closed".into(), kind(1, &closed.encode())),
        ("attributes".into(), kind(2, &ledger.attributes.encode())),
        ("header".into(), kind(3, &header.encode())),
        ("cursor-log".into(), kind(4, &log)),
        ("cursor-packed".into(), kind(4, &packed)),
        ("topic".into(), kind(5, &topic(&closed.encode()))),
        ("tombstone".into(), kind(6, &encode_tombstone(&closed, TopicId(1), 5))),
        ("counter".into(), kind(7, &encode_counter(5))),
        ("tenant".into(), kind(8, &encode(&Tenant::default()))),
        ("policies".into(), kind(9, &encode(&Policies::default()))),
        ("topic-policies".into(), kind(10, &encode(&TopicRecord::default()))),
        ("partitioned".into(), kind(11, br#"{"v":1,"r":{"partitions":4,"properties":{"a":"b"}}}"#)),
    ]
}

/// A topic record with one segment and an open ledger, field by field.
fn topic(closed: &[u8]) -> Vec<u8> {
    let mut segment = vec![0x0a, closed.len() as u8];
    segment.extend(closed);
    segment.extend([0x10, 0, 0x18, 5, 0x20, 6]);
    let mut out = vec![0x08, 1, 0x10, 1, 0x18, 1, 0x2a, segment.len() as u8];
    out.extend(segment);
    out.extend([0x32, 5, 0x08, 0xff, 0x07, 0x10, 10, 0x38, 10, 0x50, 0xac, 0x02, 0x58, 9, 0x78, 2]);
    out
}

fn formats() -> Seeds {
    let hex = |text: &str| -> Vec<u8> {
        let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
        digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    };
    let mut seeds = Seeds::new();
    for (name, text) in GOLDEN.lines().filter_map(|line| line.split_once(": ")) {
        let bytes = hex(text);
        let number = match name {
            "journal header" | "journal batch" => 0,
            "segment block" => 1,
            "segment footer" => 2,
            "ledger row" => 3,
            _ => 4,
        };
        seeds.push((name.replace(' ', "-"), kind(number, &bytes)));
        // And without the head that the target makes itself.
        match name {
            "journal batch" => {
                seeds.push(("records".into(), kind(0, &[&[8, 0, 0, 0], &bytes[40..]].concat())))
            }
            "segment block" => {
                seeds.push(("entries".into(), kind(1, &[&[2, 0, 0, 0], &bytes[16..]].concat())))
            }
            _ => {}
        }
    }
    seeds
}

fn rpc() -> Seeds {
    let header = Header {
        kind: Kind::Messages,
        messages: 2,
        first_index: MessageIndex(3),
        timestamp_ms: 4,
        bytes_before: 5,
    };
    let (id, payload) = (LedgerId(300), Bytes::from_static(b"payload"));
    let entry = |at| Entry::new(id, EntryId(at), header, payload.clone());
    let add = Add {
        ledger: id,
        term: Term(2),
        lac: Some(EntryId(0)),
        lafr: None,
        attributes: Some(ledger().attributes),
        entries: vec![entry(1), entry(2)],
    };
    let adds = table::pack_adds(Incarnation(7), &[add.clone(), Add { attributes: None, ..add }]);
    let entries = table::pack_entries(id, &[entry(1), entry(2)]);
    let mended = |packed: Packed| {
        let (table, data) = packed.into_blob();
        let table = &table[..table.len() - 4];
        [&(table.len() as u16).to_le_bytes()[..], table, &data].concat()
    };
    let refusal =
        wire_bookie::Refusal { reason: wire_bookie::Reason::Sealed.into(), value: 9, size: 0, limit: 0 };
    let member = BookieId::new("bookie-1").map(|id| BookieRef { id, incarnation: Incarnation(7) });
    let order = Replicate {
        ledger: id,
        quorum: QuorumSpec::new(2, 2, 1).expect("2/2/1 is a quorum"),
        slot: 1,
        ensemble: vec![member, None],
        ids: IdRange { first: EntryId(1), last: EntryId(2) },
        bytes_max: 100,
    };
    let order = convert::replicate_out(wire_bookie::Target::default(), &order);
    vec![
        ("adds".into(), kind(0, &adds.encode_to_vec())),
        ("entries".into(), kind(1, &entries.encode_to_vec())),
        ("adds-mended".into(), kind(2, &mended(adds))),
        ("entries-mended".into(), kind(3, &mended(entries))),
        ("refusal".into(), kind(4, &refusal.encode_to_vec())),
        ("replicate".into(), kind(5, &order.encode_to_vec())),
    ]
}

/// Scripts are read as choices: any bytes are one. The same ones each time.
fn objects() -> Seeds {
    let digits = OBJECT.trim().as_bytes().chunks_exact(2);
    let digit =
        |pair: &[u8]| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let object: Vec<u8> = digits.map(|pair| digit(pair).expect("two hex digits")).collect();
    let trailer = Trailer::open(&object).expect("the golden object is sound");
    let mut footer = object[trailer.footer_offset as usize..object.len() - TRAILER_LEN].to_vec();
    let index = Footer::open(&footer, &trailer).expect("the golden object is sound");
    (footer[12], footer[13]) = (index.rows.len() as u8, trailer.ledger.0 as u8);
    let mut seeds = noise(12, 200);
    for (nth, row) in index.rows.iter().enumerate() {
        let block = &object[row.offset as usize..row.range().end as usize];
        // Not compressed, first id, count, lengths that the target reckons, body.
        let head = [&[0], &block[8..16], &block[16..18], &[0; 5]].concat();
        seeds.push((format!("block-{nth}"), kind(1, &[&head, &block[BLOCK_HEADER_LEN..]].concat())));
    }
    seeds.push(("footer".to_owned(), kind(2, &footer)));
    seeds.push(("object".to_owned(), kind(0, &object)));
    let part = |ledger| Row {
        ledger: LedgerId(ledger),
        offset: (ledger - 1) * object.len() as u64,
        shape: Shape {
            size: object.len() as u64,
            footer_offset: trailer.footer_offset,
            footer_crc: trailer.footer_crc,
        },
    };
    let directory = Directory { rows: vec![part(1), part(2)] }.seal();
    // Without what the target makes itself: magic and counts before the rows, their reserved bytes, the trailer.
    let rows: Vec<u8> = directory[16..96].chunks(40).flat_map(|row| &row[..36]).copied().collect();
    seeds.push(("directory".to_owned(), kind(4, &[&[3; 21], &rows[..]].concat())));
    seeds.push(("together".to_owned(), kind(0, &[&object, &object, &directory[..]].concat())));
    seeds
}

fn noise(count: usize, len: usize) -> Seeds {
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count).map(|at| (format!("noise-{at}"), (0..len).map(|_| byte()).collect())).collect()
}
