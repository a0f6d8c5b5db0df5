//! What is a name and what is not, as Pulsar 4.2 answers it.

use super::*;
use proptest::prelude::*;

fn topic(text: &str) -> TopicName {
    TopicName::parse(text).unwrap_or_else(|e| panic!("{text:?} is a topic name: {e}"))
}

#[test]
fn short_and_long_forms_name_the_same_topic() {
    let full = "persistent://public/default/orders";
    for text in ["orders", "public/default/orders", full] {
        assert_eq!(topic(text).to_string(), full);
    }
    let other = topic("non-persistent://a/b/c");
    assert_eq!(
        (other.domain(), other.namespace().as_str(), other.local()),
        (Domain::NonPersistent, "a/b", "c")
    );
    assert_eq!((other.tenant().as_str(), other.namespace().local()), ("a", "b"));
    assert_ne!(other, topic("a/b/c"));
}

#[test]
fn odd_local_names_are_names() {
    for local in [
        " ",
        "a b",
        "\u{1}\n",
        "%zz",
        "?",
        "..",
        ".",
        "日本語",
        "a:b",
        "x;y&z=1",
        "~",
        "-partition-0",
        "a://",
    ] {
        let name = TopicName::new(Domain::Persistent, NamespaceName::public_default(), local);
        if local == "a://" {
            assert_eq!(name, Err(NameError::TrailingSlash(local.into())));
            continue;
        }
        let name = name.unwrap_or_else(|e| panic!("{local:?}: {e}"));
        assert_eq!(topic(name.as_str()), name);
        assert_eq!(name.local(), local);
    }
}

#[test]
fn what_is_not_a_topic_name_says_why() {
    let is = |text: &str| TopicName::parse(text).expect_err("must be refused");
    assert_eq!(is(""), NameError::EmptyTopic);
    assert_eq!(is("a/b"), NameError::TopicShape("a/b".into()));
    assert_eq!(is("persistent://x"), NameError::TopicShape("persistent://x".into()));
    assert_eq!(is("a/b/"), NameError::EmptyTopic);
    assert!(matches!(is("a/b/c/"), NameError::TrailingSlash(_)));
    assert!(matches!(is("tenant/cluster/ns/topic"), NameError::V1Name(_)));
    assert!(matches!(is("persistent://tenant/cluster/ns/topic"), NameError::V1Name(_)));
    assert!(matches!(is("persistent://t/c/n/topic/with/slashes"), NameError::V1Name(_)));
    assert_eq!(is("topic://a/b/c"), NameError::UnknownDomain("topic".into()));
    assert_eq!(is("/b/c"), NameError::EmptyTenant);
    assert_eq!(is("a//c"), NameError::EmptyNamespace);
    assert_eq!(is("a!/b/c"), NameError::ForbiddenCharacter("a!".into(), '!'));
    assert_eq!(is("a/b c/d"), NameError::ForbiddenCharacter("b c".into(), ' '));
    assert_eq!(is("é/b/c"), NameError::ForbiddenCharacter("é".into(), 'é'));
}

#[test]
fn steps_of_a_path_and_nul_are_no_names() {
    for step in [".", ".."] {
        assert_eq!(TenantName::parse(step), Err(NameError::PathStep(step.into())));
        assert!(NamespaceName::parse(&format!("a/{step}")).is_err());
    }
    assert!(TenantName::parse("...").is_ok() && TenantName::parse(".a").is_ok());
    let error = TopicName::parse("a\0b").unwrap_err();
    assert_eq!(error, NameError::Nul("a\0b".into()));
    assert!(!error.to_string().contains('\0'), "{error}");
}

#[test]
fn lengths_are_bounded_and_the_message_says_so() {
    let longest = "x".repeat(LOCAL_BYTES_MAX);
    let name = topic(&longest);
    let partition = name.partition(i32::MAX as u32);
    assert_eq!(topic(partition.as_str()), partition, "a partition of the longest name is a name");
    let error = TopicName::parse(&format!("{longest}x")).unwrap_err();
    assert!(error.to_string().contains("2049") && error.to_string().contains("2048"), "{error}");
    assert!(TenantName::parse(&"t".repeat(256)).is_err());
    assert!(SubscriptionName::parse(&"s".repeat(1024)).is_ok());
    assert_eq!(SubscriptionName::parse(&"s".repeat(1025)), Err(NameError::SubscriptionTooLong(1025)));
    assert_eq!(SubscriptionName::parse(""), Err(NameError::EmptySubscription));
}

#[test]
fn partitions() {
    let base = topic("a/b/c");
    let third = base.partition(3);
    assert_eq!(third.as_str(), "persistent://a/b/c-partition-3");
    assert_eq!((third.partition_index(), third.base()), (Some(3), base.clone()));
    assert_eq!(third.partition(4), base.partition(4), "a partition's partition is its sibling");
    for plain in
        ["c", "c-partition-", "c-partition-03", "c-partition-x", "c-partition-+1", "c-partition-2147483648"]
    {
        let name = topic(plain);
        assert_eq!((name.partition_index(), name.base()), (None, name.clone()), "{plain}");
    }
    assert_eq!(topic("-partition-1").partition_index(), None, "no base, no partition");
    assert_eq!(topic("x-partition-1-partition-2").base_local(), "x-partition-1");
}

#[test]
fn namespaces() {
    let name = NamespaceName::parse("pulsar/host-1:8080").unwrap();
    assert_eq!((name.tenant().as_str(), name.local()), ("pulsar", "host-1:8080"));
    for bad in ["a", "", "a/b/c", "a/", "/b", "a/b/"] {
        assert!(NamespaceName::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn bundles_have_pulsars_bounds() {
    let four: Vec<_> = Bundles::default_of(4).ranges().map(|r| r.to_string()).collect();
    let expected =
        ["0x00000000_0x40000000", "0x40000000_0x80000000", "0x80000000_0xc0000000", "0xc0000000_0xffffffff"];
    assert_eq!(four, expected);
    let three = Bundles::default_of(3);
    assert_eq!(three.bounds(), [0, 0x5555_5555, 0xaaaa_aaaa, 0xffff_ffff]);
    assert_eq!(three.range_of(u32::MAX).to_string(), "0xaaaaaaaa_0xffffffff");
    assert_eq!(three.range_of(0x5555_5555).lower(), 0x5555_5555);
    assert!(Bundles::new(0).is_err() && Bundles::new(4097).is_err());
}

#[test]
fn the_topic_hash_is_the_catalogues_crc32() {
    assert_eq!(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, b"123456789"), 0xCBF4_3926);
    let name = topic("orders");
    let bundle = Bundles::default_of(4).bundle_of(&name);
    assert!(bundle.contains(&name));
    assert!(!bundle.contains(&topic("a/b/orders")));
    assert_eq!(Bundle::parse(&bundle.to_string()), Ok(bundle));
}

#[test]
fn bundles_split() {
    let two = Bundles::default_of(2);
    let first = two.range_of(0);
    let split = two.split(first, 0x1000).unwrap();
    assert_eq!(split.bounds(), [0, 0x1000, 0x8000_0000, 0xffff_ffff]);
    assert_eq!(two.split(first, 0x8000_0000), Err(BundleError::Split(first, 0x8000_0000)));
    assert!(split.split(first, 0x10).is_err(), "the range is no longer there");
    assert_eq!(Bundles::from_bounds(vec![0, 5]), Err(BundleError::Bounds));
    for bad in ["", "0x0_0x1", "0x00000001_0x00000001", "0x00000000", "0x+0000000_0x40000000"] {
        assert!(BundleRange::parse(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn every_local_name_survives_printing_and_encoding(local in "[^/\\x00]{1,40}") {
        let name = TopicName::new(Domain::NonPersistent, NamespaceName::public_default(), &local).unwrap();
        prop_assert_eq!(&topic(name.as_str()), &name);
        let encoded = name.local_encoded();
        prop_assert!(encoded.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'~'));
        prop_assert_eq!(percent_decode(&encoded), Some(local));
    }

    #[test]
    fn partition_and_base_undo_each_other(local in "[a-z0-9-]{1,20}", index in 0_u32..=i32::MAX as u32) {
        let base = topic(&local).base();
        let partition = base.partition(index);
        prop_assert_eq!(partition.partition_index(), Some(index));
        // A base that is itself spelt like a partition is a sibling, not a parent.
        if base.partition_index().is_none() {
            prop_assert_eq!(partition.base(), base);
        }
    }

    #[test]
    fn parsing_never_panics(text in "\\PC{0,60}") {
        if let Ok(name) = TopicName::parse(&text) {
            prop_assert_eq!(topic(name.as_str()), name);
        }
        let _ = percent_decode(&text);
        let _ = Bundle::parse(&text);
    }

    #[test]
    fn every_hash_has_exactly_one_bundle(count in 1_u32..=64, hash: u32) {
        let bundles = Bundles::default_of(count);
        let holders: Vec<_> = bundles.ranges().filter(|r| r.contains(hash)).collect();
        prop_assert_eq!(holders, vec![bundles.range_of(hash)]);
    }
}
