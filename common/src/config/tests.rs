//! Layers, unknown keys and units.

use super::*;
use proptest::prelude::*;

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(default)]
struct Role {
    pulsar_port: u16,
    data_dir: String,
    cache: ByteSize,
    linger: Duration,
    peers: Vec<String>,
    verbose: bool,
    journal: Journal,
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
#[serde(default)]
struct Journal {
    size: ByteSize,
    files: u32,
}

impl Default for Journal {
    fn default() -> Self {
        Self { size: ByteSize::mib(64), files: 4 }
    }
}

impl Default for Role {
    fn default() -> Self {
        Self {
            pulsar_port: 6650,
            data_dir: "data".into(),
            cache: ByteSize::mib(8),
            linger: Duration::millis(1),
            peers: vec![],
            verbose: false,
            journal: Journal::default(),
        }
    }
}

fn try_load(file: &str, env: &[(&str, &str)], flags: &str) -> Result<Role, ConfigError> {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    load("standalone", Some(file), env, flags.parse().unwrap())
}

#[test]
fn nothing_said_is_the_default() {
    assert_eq!(load::<Role>("standalone", None, std::iter::empty(), Table::new()), Ok(Role::default()));
    assert_eq!(
        try_load("[bookie]\nx = 1", &[("PATH", "/bin"), ("GEMINGA_BOOKIE_X", "1")], ""),
        Ok(Role::default())
    );
}

#[test]
fn later_layers_win_key_by_key() {
    let file =
        "[standalone]\npulsar_port = 1\ncache = '1GiB'\ndata_dir = 'f'\n[standalone.journal]\nfiles = 9";
    let env = [("GEMINGA_STANDALONE_PULSAR_PORT", "2"), ("GEMINGA_STANDALONE_DATA_DIR", "e")];
    let role = try_load(file, &env, "pulsar_port = 3").unwrap();
    assert_eq!((role.pulsar_port, role.data_dir.as_str(), role.cache), (3, "e", ByteSize::gib(1)));
    assert_eq!(role.journal, Journal { files: 9, ..Journal::default() });
    let nested = [
        ("GEMINGA_STANDALONE_JOURNAL_SIZE", "1MiB"),
        ("GEMINGA_STANDALONE_PEERS", "a, b"),
        ("GEMINGA_STANDALONE_LINGER", "2s"),
        ("GEMINGA_STANDALONE_VERBOSE", "true"),
    ];
    let role = try_load("", &nested, "journal = { files = 1 }").unwrap();
    assert_eq!(role.journal, Journal { size: ByteSize::mib(1), files: 1 });
    assert_eq!(
        (role.peers, role.linger, role.verbose),
        (vec!["a".into(), "b".into()], Duration::secs(2), true)
    );
}

#[test]
fn unknown_keys_are_errors_that_help() {
    let error = try_load("[standalone]\npulsar_prot = 1", &[], "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown key 'standalone.pulsar_prot' in the configuration file; did you mean 'standalone.pulsar_port'?"
    );
    assert_eq!(error.code(), Code::CONFIG_UNKNOWN_KEY);
    let error = try_load("[standalone.journal]\nfile = 1", &[], "").unwrap_err();
    assert!(error.to_string().contains("'standalone.journal.files'"), "{error}");
    let error = try_load("[standalone.jurnal]\nfiles = 1", &[], "").unwrap_err();
    assert!(
        error.to_string().contains("'standalone.jurnal'")
            && error.to_string().contains("'standalone.journal'"),
        "{error}"
    );
    let error = try_load("", &[("GEMINGA_STANDALONE_PULSARPORT", "1")], "").unwrap_err();
    assert!(error.to_string().contains("did you mean 'GEMINGA_STANDALONE_PULSAR_PORT'?"), "{error}");
    let error = try_load("[standalone]\nquite_another_thing = 1", &[], "").unwrap_err();
    assert!(matches!(error, ConfigError::UnknownKey { nearest: None, .. }), "{error}");
    assert!(try_load("", &[], "nope = 1").unwrap_err().to_string().contains("the command line"));
    let error = check_tables("[standalon]\nx = 1", &["standalone", "broker"]).unwrap_err();
    assert!(error.to_string().contains("did you mean 'standalone'?"), "{error}");
    assert_eq!(check_tables("[broker]\nx = 1", &["standalone", "broker"]), Ok(()));
}

#[test]
fn bad_values_name_their_key() {
    for (file, env, flags) in [
        ("[standalone]\npulsar_port = 70000", None, ""),
        ("[standalone]\npulsar_port = 'x'", None, ""),
        ("", Some(("GEMINGA_STANDALONE_PULSAR_PORT", "x")), ""),
        ("", Some(("GEMINGA_STANDALONE_PULSAR_PORT", "-1")), ""),
        ("", None, "pulsar_port = 1.5"),
    ] {
        let error = try_load(file, env.as_slice(), flags).unwrap_err();
        let text = error.to_string().to_lowercase();
        assert!(text.contains("pulsar_port") && error.code() == Code::CONFIG_INVALID, "{text}");
    }
    assert!(try_load("[standalone]\njournal = 3", &[], "").unwrap_err().to_string().contains("journal"));
    assert!(try_load("standalone = 3", &[], "").is_err());
    let error = try_load("[standalone]\ndata_dir = 'x'\n[standalone", &[], "").unwrap_err();
    assert_eq!(error.code(), Code::CONFIG_UNREADABLE);
    let text = error.to_string();
    assert!(text.contains("line 3") && !text.contains('\n'), "{text}");
    assert!(error.is_in_file());
}

#[test]
fn units() {
    let size = |text: &str| text.parse::<ByteSize>();
    assert_eq!(size("8MiB"), Ok(ByteSize(8 << 20)));
    assert_eq!(size("4096"), Ok(ByteSize(4096)));
    assert_eq!(size(" 2 kb "), Ok(ByteSize(2000)));
    for bad in ["", "MiB", "-1", "1.5GiB", "8XB"] {
        assert_eq!(size(bad), Err(UnitError::Size(bad.into())), "{bad}");
    }
    assert_eq!(size("16777215 TiB"), Ok(ByteSize(16_777_215 << 40)));
    for large in ["16777216 TiB", "99999999 TiB", "18446744073709551616", "9".repeat(99).as_str()] {
        assert_eq!(size(large), Err(UnitError::TooLarge(large.into())), "{large}");
    }
    let time = |text: &str| text.parse::<Duration>();
    assert_eq!(time("500ms"), Ok(Duration::millis(500)));
    assert_eq!(time("12h"), Ok(Duration::secs(43_200)));
    assert_eq!(time("213504d"), Err(UnitError::TooLarge("213504d".into())));
    for bad in ["", "5", "1.5s", "5 fortnights", "s", "5M"] {
        assert!(time(bad).is_err(), "{bad}");
    }
    assert_eq!((ByteSize(0).to_string(), Duration::secs(0).to_string()), ("0B".into(), "0s".into()));
    assert_eq!(
        (ByteSize::kib(1536).to_string(), Duration::secs(90).to_string()),
        ("1536KiB".into(), "90s".into())
    );
}

#[test]
fn distances() {
    assert_eq!((distance("", "abc"), distance("kitten", "sitting"), distance("same", "same")), (3, 3, 0));
}

proptest! {
    #[test]
    fn sizes_and_durations_survive_printing(bytes: u64, nanos: u64) {
        prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        let duration = Duration(std::time::Duration::from_nanos(nanos));
        prop_assert_eq!(duration.to_string().parse(), Ok(duration));
    }
}
